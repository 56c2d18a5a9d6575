import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cvae_lab.data import DataError, cache, load, read_folder, write_folder
from cvae_lab.data.check import report


def read(root, **options):
    return read_folder(root, progress=False, **options)


def grey(pictures):
    return pictures[:, 0, 0, 0].tolist()


def test_reads_every_part_in_the_order_of_numbers(handout):
    dataset = read(handout)
    assert dataset.name == "data"
    assert grey(dataset.train.frames) == list(range(20))  # as text, 10 would come before 2
    assert grey(dataset.train.labels) == list(range(100, 120))
    assert grey(dataset.val.frames) == [0, 1, 2, 3]
    known, unknown = dataset.tests
    assert (known.name, unknown.name, unknown.answer) == ("0", "1", None)
    assert grey(known.answer) == [0, 1, 2]
    assert grey(unknown.labels) == [100, 101, 102]
    assert dataset.train.frames.shape[1:] == (3, 32, 64)


def test_channels_and_rows_keep_their_places(handout):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(handout / "train/train_img/7.png")
    assert torch.equal(read(handout).train.frames[7], torch.from_numpy(pixels).permute(2, 0, 1))


def test_frame_names_and_any_first_number(handout):
    for folder in (handout / "train/train_img", handout / "train/train_label"):
        for file in list(folder.iterdir()):
            file.rename(folder / f"frame{int(file.stem) + 5}.png")
    assert grey(read(handout).train.frames) == list(range(20))


def test_larger_pictures_are_resized(handout, picture):
    for k in range(4):
        left_dark = picture(0, (64, 128))
        left_dark.paste((255, 255, 255), (64, 0, 128, 64))
        left_dark.save(handout / f"val/val_img/{k}.png")
    frame = read(handout).val.frames[0]
    assert frame.shape == (3, 32, 64)
    assert (frame[..., :31] == 0).all()
    assert (frame[..., 33:] == 255).all()


def test_parts_not_asked_for_stay_empty(handout):
    shutil.rmtree(handout / "train")
    shutil.rmtree(handout / "val")
    dataset = read(handout, parts=("test",))
    assert (len(dataset.train), len(dataset.val), len(dataset.tests)) == (0, 0, 2)
    with pytest.raises(DataError, match=r"train_img: no such folder"):
        read(handout)


def test_cuts_are_found_or_given(handout, picture):
    for k in range(10, 20):
        picture(200).save(handout / f"train/train_img/{k}.png")
    assert read(handout).train.boundaries == (10,)
    assert read(handout, boundaries=(4, 6)).train.boundaries == (4, 6)
    assert read(handout, boundaries=()).train.boundaries == ()


@pytest.mark.parametrize(("text", "cuts"), [("4 6\n", (4, 6)), ("4\n6", (4, 6)), ("\n", ())])
def test_cuts_txt_names_cuts(handout, picture, text, cuts):
    for k in range(10, 20):
        picture(200).save(handout / f"train/train_img/{k}.png")  # a cut that would be found
    (handout / "train/cuts.txt").write_text(text)
    (handout / "val/cuts.txt").write_text("2")
    dataset = read(handout)
    assert (dataset.train.boundaries, dataset.val.boundaries) == (cuts, (2,))
    assert read(handout, boundaries=(9,)).train.boundaries == (9,)
    assert read(handout, parts=("test",)).train.boundaries == ()


@pytest.mark.parametrize("text", ["six", "6 4", "0", "20", "4 4", "-3", "4, 6"])
def test_bad_cuts_txt_is_refused(handout, text):
    (handout / "train/cuts.txt").write_text(text)
    with pytest.raises(DataError, match=r"train/cuts.txt: must hold .* each from 1 to 19; correct it"):
        read(handout)


def remove(*names):
    return lambda root: [(root / name).unlink() for name in names]


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


def copy(old, new):
    return lambda root: shutil.copy(root / old, root / new)


def text(name):
    return lambda root: (root / name).write_text("not a picture")


def truncate(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:60])


def convert(name, mode):
    return lambda root: Image.open(root / name).convert(mode).save(root / name)


def enlarge(name):
    return lambda root: Image.open(root / name).resize((128, 64)).save(root / name)


def nest(root):
    inner = root / "lab4"
    inner.mkdir()
    for part in ("train", "val", "test"):
        (root / part).rename(inner / part)


IMG, LABEL = "train/train_img", "train/train_label"
FAULTS = {
    "folder missing": (shutil.rmtree, r"data: no such folder; give the folder that holds train"),
    "part missing": (lambda r: shutil.rmtree(r / "val"), r"val_img: no such folder.*add it"),
    "nested": (nest, r"data: the data is one folder down; use .*lab4"),
    "folder empty": (lambda r: [f.unlink() for f in (r / IMG).iterdir()], r"train_img: holds no PNG files"),
    "image without label": (
        remove(f"{LABEL}/3.png"),
        r"train_img: 3\.png without a matching label in .*train_label",
    ),
    "label without image": (
        remove(f"{IMG}/3.png", f"{IMG}/4.png"),
        r"3\.png, 4\.png without a matching image",
    ),
    "many lone files": (
        remove(*(f"{LABEL}/{k}.png" for k in range(9))),
        r"0\.png, 1\.png, 2\.png and 6 more",
    ),
    "gap": (remove(f"{IMG}/3.png", f"{LABEL}/3.png"), r"train_img: gap in the numbering before 4\.png; add"),
    "duplicate": (
        copy(f"{IMG}/3.png", f"{IMG}/frame3.png"),
        r"frame3\.png: number 3 is there twice, see 3\.png",
    ),
    "name of text": (rename(f"{IMG}/3.png", f"{IMG}/three.png"), r"three\.png: the name is text .*rename it"),
    "clip name of text": (rename("test/test_img/1", "test/test_img/one"), r"one: the name is text"),
    "unreadable": (text(f"{IMG}/3.png"), r"3\.png: not a readable PNG .*replace the file"),
    "truncated": (truncate(f"{IMG}/3.png"), r"3\.png: not a readable PNG .*replace the file"),
    "truncated first": (truncate(f"{IMG}/0.png"), r"0\.png: not a readable PNG"),
    "empty file": (lambda r: (r / f"{IMG}/3.png").write_bytes(b""), r"3\.png: not a readable PNG"),
    "grey": (convert(f"{IMG}/3.png", "L"), r"3\.png: mode L instead of RGB; convert to RGB"),
    "palette": (convert(f"{LABEL}/0.png", "P"), r"0\.png: mode P instead of RGB"),
    "transparent": (convert("test/test_label/0/1.png", "RGBA"), r"1\.png: mode RGBA instead of RGB"),
    "size mix": (enlarge(f"{IMG}/3.png"), r"3\.png: 128 x 64 pixels, but the first file .* 64 x 32; bring"),
    "too few frames": (
        remove(*(f"{f}/{k}.png" for f in (IMG, LABEL) for k in range(8, 20))),
        r"train_img: 8 frames are too few, a clip needs 16; add frames",
    ),
    "few test labels": (
        remove(*(f"test/test_label/1/{k}.png" for k in (1, 2))),
        r"test_label.1: 1 label, too few",
    ),
    "clip without labels": (
        lambda r: shutil.rmtree(r / "test/test_label/1"),
        r"test_img: 1 without a matching label",
    ),
    "two first frames": (copy("test/test_img/1/0.png", "test/test_img/1/1.png"), r"test_img.1: 2 images"),
    "short answer": (remove("test/test_answer/0/2.png"), r"2\.png without a matching image in .*test_answer"),
    "other answer": (
        copy("test/test_answer/0/2.png", "test/test_answer/0/0.png"),
        r"0\.png: the answer does not begin with the clip's first frame",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_one_clear_sentence(handout, fault):
    spoil, message = FAULTS[fault]
    read(handout)  # sound before, so the fault alone speaks, and a filled cache does not hide it
    spoil(handout)
    with pytest.raises(DataError, match=message) as caught:
        read(handout)
    assert "\n" not in str(caught.value)


def test_the_folder_of_one_part_is_no_data_set(handout):
    with pytest.raises(DataError, match=r"one part of a data set; use .*data"):
        read(handout / "train")


def test_what_systems_leave_behind_is_no_fault(handout):
    (handout / IMG / ".DS_Store").write_text("")
    (handout / IMG / "notes.txt").write_text("")
    assert len(read(handout).train) == 20


def never(*_, **__):
    raise AssertionError("decoded although cached")


def test_second_read_comes_from_the_cache(handout, monkeypatch):
    first = read(handout)
    monkeypatch.setattr(cache, "decode", never)
    again = read(handout)
    assert torch.equal(first.train.labels, again.train.labels)
    assert torch.equal(first.tests[0].answer, again.tests[0].answer)


def test_cache_is_never_stale_and_never_piles_up(handout, picture, tmp_path):
    read(handout)
    file = handout / IMG / "3.png"
    before = file.stat()
    picture(99).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # even with its old time put back
    assert grey(read(handout).train.frames)[3] == 99
    for folder in (IMG, LABEL):
        picture(77).save(handout / folder / "20.png")
    assert len(read(handout).train) == 21
    assert sorted(f.name.split("-")[0] for f in (tmp_path / "cache").iterdir()) == ["test", "train", "val"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_cache_is_built_anew(handout, tmp_path, damage):
    read(handout)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert grey(read(handout).train.frames) == list(range(20))


def test_a_cache_that_cannot_be_written_only_warns(handout, tmp_path):
    (tmp_path / "blocked").write_text("")
    with pytest.warns(UserWarning, match="no cache written"):
        assert len(read(handout, cache=tmp_path / "blocked/cache").train) == 20


def test_several_processes_decode_the_same(handout):
    files = sorted((handout / IMG).iterdir()) * 30
    assert torch.equal(cache.decode([files], (32, 64), workers=2), cache.decode([files], (32, 64), workers=1))
    Image.open(files[0]).convert("L").save(files[-1])
    with pytest.raises(DataError, match="mode L instead of RGB"):
        cache.decode([files], (32, 64), workers=2)


def test_written_data_reads_back_the_same(handout, tmp_path):
    dataset = read(handout, boundaries=(4, 6))  # which nobody could find from the frames
    (tmp_path / "out").mkdir()  # empty is as good as new
    write_folder(dataset, tmp_path / "out")
    again = read(tmp_path / "out")
    assert (again.train.boundaries, again.val.boundaries) == ((4, 6), ())
    assert torch.equal(dataset.train.labels, again.train.labels)
    assert torch.equal(dataset.val.frames, again.val.frames)
    assert torch.equal(dataset.tests[0].answer, again.tests[0].answer)
    assert again.tests[1].answer is None
    with pytest.raises(DataError, match="out: already holds something; choose a new or empty folder"):
        write_folder(dataset, tmp_path / "out")
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".out")]


def test_writing_refuses_clip_names_it_could_not_read(handout, tmp_path):
    dataset = dataclasses.replace(read(handout), tests=read(handout).val.as_clips())
    with pytest.raises(DataError, match="test clip 'val0': the name is text"):
        write_folder(dataset, tmp_path / "out")


def test_report_counts_and_scores_by_hand(handout):
    table = report(read(handout, boundaries=(8,))).set_index("part")
    assert table.loc["train", ["frames", "takes", "cuts"]].tolist() == [20, 2, "8"]
    # Frame k is grey level k: one step is 1/255, and takes begin at 0 and 8.
    step = 20 * np.log10(255)
    static = [k - 8 * (k > 8) for k in range(20) if k not in (0, 8)]
    np.testing.assert_allclose(table.loc["train", "copy_previous"], step, atol=1e-3)
    np.testing.assert_allclose(table.loc["train", "static"], step - 20 * np.log10(static).mean(), atol=1e-3)
    mean = [abs(k - 9.5) for k in (1, 2)]
    np.testing.assert_allclose(
        table.loc["test 0", "mean_frame"], step - 20 * np.log10(mean).mean(), atol=1e-3
    )
    assert table.loc["test 1", ["static", "copy_previous", "mean_frame"]].isna().all()


def test_identical_frames_score_the_cap(handout, picture):
    for k in range(4):
        picture(9).save(handout / f"val/val_img/{k}.png")
    assert report(read(handout)).set_index("part").loc["val", "static"] == pytest.approx(100)


def test_embedded_set_comes_from_the_cache_the_second_time(monkeypatch):
    first = load("tiny", seed=3)
    monkeypatch.setattr("cvae_lab.data._render", never)
    again = load("tiny", seed=3)
    assert again.train.boundaries == first.train.boundaries
    assert torch.equal(again.train.frames, first.train.frames)
    assert torch.equal(again.tests[1].answer, first.tests[1].answer)
    with pytest.raises(AssertionError):
        load("tiny", seed=4)


def test_real_folders_read(real_data):
    dataset = read(real_data)
    assert (len(dataset.train), len(dataset.val), len(dataset.tests)) == (1887, 630, 3)
    assert {len(clip) for clip in dataset.tests} == {630}
    table = report(dataset).set_index("part")
    assert table.loc["val", "static"] == pytest.approx(35.5, abs=0.2)  # measured elsewhere, by other code
