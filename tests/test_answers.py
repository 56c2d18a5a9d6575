"""Find and read the true frames of the course: files in or beside a data folder, and files given by path."""

import shutil

import pytest
import torch

from cvae_lab.data import DataError, load, read_folder


def read(root, **options):
    return read_folder(root, progress=False, **options)


@pytest.fixture
def truth(data_folder):
    """Delete the answers in the data folder. Return true frames of clip k with the grey levels 0, 50 + k, 60 + k."""
    shutil.rmtree(data_folder / "test/test_answer")
    return [
        torch.stack([torch.full((3, 32, 64), v, dtype=torch.uint8) for v in (0, 50 + k, 60 + k)])
        for k in (0, 1)
    ]


def write_2023(folder, truth):
    folder.mkdir(parents=True, exist_ok=True)
    for k, clip in enumerate(truth):
        (folder / f"GT{k}.csv").write_text(" ".join(f"{v / 255:.6f}" for v in clip.flatten().tolist()))


def write_later(folder, truth):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [",".join(["id", *map(str, range(6144)), "Usage"])]
    for k, frame in enumerate(torch.cat(truth)):
        rows.append(",".join(map(str, [k, *frame.flatten().tolist(), "Private"])))
    (folder / "gt.csv").write_text("\n".join(rows))


@pytest.mark.parametrize(("write", "year"), [(write_2023, "2023"), (write_later, "later")])
@pytest.mark.parametrize("place", [".", "test", "Demo_Test", "../Demo_Test"])
def test_answers_are_found_in_the_data_folder_or_beside_it(data_folder, truth, write, year, place):
    assert read(data_folder).answer_format == "none"
    write(data_folder / place, truth)
    for _ in range(2):  # the second call reads the cache
        dataset = read(data_folder)
        assert dataset.answer_format == year
        assert all(torch.equal(clip.answer, one) for clip, one in zip(dataset.tests, truth, strict=True))


def test_answers_are_read_again_after_an_edit(data_folder, truth):
    write_later(data_folder, truth)
    read(data_folder)
    truth[0][1] = 77
    write_later(data_folder, truth)
    assert read(data_folder).tests[0].answer[1, 0, 0, 0] == 77


def test_answers_given_by_path_are_preferred(data_folder, truth, tmp_path):
    write_later(data_folder, truth)
    other = [clip.clone() for clip in truth]
    other[1][2] = 99
    write_2023(tmp_path / "elsewhere", other)
    dataset = load(data_folder, progress=False, answers=tmp_path / "elsewhere")
    assert dataset.answer_format == "2023"
    assert torch.equal(dataset.tests[1].answer, other[1])


def test_a_folder_of_pictures_may_be_given_as_answers(data_folder, truth, tmp_path, picture):
    for k, clip in enumerate(truth):
        (tmp_path / f"answers/{k}").mkdir(parents=True)
        for n, frame in enumerate(clip):
            picture(int(frame[0, 0, 0])).save(tmp_path / f"answers/{k}/{n}.png")
    dataset = read(data_folder, answers=tmp_path / "answers")
    assert dataset.answer_format == "folder"
    assert torch.equal(dataset.tests[0].answer, truth[0])


def test_picture_answers_are_preferred_to_text_files_that_are_found(data_folder, truth, picture):
    write_later(data_folder, truth)
    (data_folder / "test/test_answer/0").mkdir(parents=True)
    for n in range(3):
        picture(n).save(data_folder / f"test/test_answer/0/{n}.png")
    dataset = read(data_folder)
    assert dataset.answer_format == "folder"
    assert dataset.tests[0].answer[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert dataset.tests[1].answer is None


def test_wrong_answers_are_not_used_if_found_and_refused_if_given(data_folder, truth, caplog):
    write_later(data_folder, truth[:1])
    dataset = read(data_folder)
    assert (dataset.answer_format, dataset.tests[0].answer) == ("none", None)
    assert "gt.csv has 3 rows, but a submission has 6 rows" in caplog.text
    with pytest.raises(DataError, match=r"gt\.csv has 3 rows, but a submission has 6 rows"):
        read(data_folder, answers=data_folder / "gt.csv")
    (data_folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no true frames found"):
        read(data_folder, answers=data_folder / "empty")
    (data_folder / "GT7.csv").write_text("0.5")
    with pytest.raises(
        DataError, match=r"no file has the true frames of clip 0, 1; number the files like the test clips"
    ):
        read(data_folder, answers=data_folder / "GT7.csv")
    with pytest.raises(DataError, match=r"nowhere: no true frames found"):
        read(data_folder, answers=data_folder / "nowhere")


def test_a_data_set_without_test_clips_needs_no_answers(data_folder, truth):
    write_later(data_folder, truth)
    shutil.rmtree(data_folder / "test")
    assert read(data_folder).answer_format == "none"
