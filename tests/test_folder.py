"""Reading and writing data sets in the assignment's folder layout, and the errors for faulty folders."""

import dataclasses
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cvae_lab.data import DataError, Dataset, Video, folder, load, read_folder, write_folder
from cvae_lab.data.check import report

IMG, LABEL = "train/train_img", "train/train_label"


def read(root, **options):
    return read_folder(root, progress=False, **options)


def grey(pictures):
    return pictures[:, 0, 0, 0].tolist()


def test_every_split_is_read_in_the_order_of_numbers(data_folder):
    dataset = read(data_folder)
    assert dataset.name == "data"
    assert grey(dataset.train.frames) == list(range(20))  # sorted as text, 10 would come before 2
    assert grey(dataset.train.labels) == list(range(100, 120))
    assert grey(dataset.val.frames) == [0, 1, 2, 3]
    known, unknown = dataset.tests
    assert (known.name, unknown.name, unknown.answer) == ("0", "1", None)
    assert grey(known.answer) == [0, 1, 2]
    assert grey(unknown.labels) == [100, 101, 102]
    assert dataset.train.frames.shape[1:] == (3, 32, 64)


def test_channels_rows_and_columns_are_not_mixed_up(data_folder):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data_folder / "train/train_img/7.png")
    assert torch.equal(read(data_folder).train.frames[7], torch.from_numpy(pixels).permute(2, 0, 1))


NAMES = [
    "frame{}.png",
    "frame_{:05d}.png",
    "img{}.PNG",
    "{:05d}.PNG",
    "{} (1).png",
    "img ({}).png",
    "2023-01-05_{}.png",
]
NAMES += ["clip2_{}_rgb.png", "étape {}.png", "{}.jpeg"]


@pytest.mark.parametrize("name", NAMES)
def test_any_naming_with_one_number_per_frame_is_read(data_folder, name):
    for part in ("train/train_img", "train/train_label"):
        for file in list((data_folder / part).iterdir()):
            file.rename(data_folder / part / name.format(int(file.stem) + 5))
    assert grey(read(data_folder).train.frames) == list(range(20))


def test_frames_and_labels_may_be_named_differently(data_folder):
    for file in list((data_folder / "train/train_img").iterdir()):
        file.rename(file.with_name(f"img_{int(file.stem):04d}.png"))
    assert grey(read(data_folder).train.frames) == list(range(20))


def test_a_copy_that_replaces_a_missing_file_is_read(data_folder):
    (data_folder / IMG / "3.png").rename(data_folder / IMG / "3 (1).png")
    assert grey(read(data_folder).train.frames) == list(range(20))


def test_clip_folders_may_have_any_name_with_a_number(data_folder):
    for kind in ("img", "label", "answer"):
        for file in list((data_folder / f"test/test_{kind}").iterdir()):
            file.rename(file.with_name(f"seq{file.name}"))
    dataset = read(data_folder)
    assert [clip.name for clip in dataset.tests] == ["0", "1"]
    assert grey(dataset.tests[0].answer) == [0, 1, 2]


def test_larger_pictures_are_resized(data_folder, picture):
    for k in range(4):
        left_dark = picture(0, (64, 128))
        left_dark.paste((255, 255, 255), (64, 0, 128, 64))
        left_dark.save(data_folder / f"val/val_img/{k}.png")
    frame = read(data_folder).val.frames[0]
    assert frame.shape == (3, 32, 64)
    assert (frame[..., :31] == 0).all()
    assert (frame[..., 33:] == 255).all()


PART_SIZES = {"train": 20, "val": 4, "test": 2}


def part_sizes(dataset):
    return {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.tests)}


@pytest.mark.parametrize("there", [("test",), ("train",), ("val",), ("train", "test"), ("train", "val")])
def test_missing_splits_are_empty(data_folder, there):
    for part in PART_SIZES.keys() - set(there):
        shutil.rmtree(data_folder / part)
    dataset = read(data_folder)
    assert part_sizes(dataset) == {part: n if part in there else 0 for part, n in PART_SIZES.items()}
    assert len(report(dataset)) == len(there) + ("test" in there)


@pytest.mark.parametrize("part", PART_SIZES)
def test_a_required_split_must_exist(data_folder, part):
    assert part_sizes(read(data_folder, required=(part,))) == PART_SIZES
    shutil.rmtree(data_folder / part)
    with pytest.raises(DataError, match=rf"{part}_img: there is no such folder.*add the folder"):
        read(data_folder, required=(part,))
    with pytest.raises(DataError, match=rf"{part}_img: there is no such folder.*add the folder"):
        load(data_folder, progress=False, required=(part,))


def test_splits_that_are_not_read_may_be_damaged(data_folder):
    (data_folder / "train/train_img/3.png").write_text("not a picture")
    assert part_sizes(read(data_folder, parts=("test",))) == {"train": 0, "val": 0, "test": 2}


def test_a_split_with_empty_folders_is_not_read_and_logged(data_folder, caplog):
    for kind in ("img", "label", "answer"):
        for clip in (data_folder / f"test/test_{kind}").iterdir():
            shutil.rmtree(clip)
    assert part_sizes(read(data_folder)) == PART_SIZES | {"test": 0}
    assert "both picture folders are empty; the split test is not read" in caplog.text
    with pytest.raises(DataError, match=r"test_img: this folder contains no clip folders; add clip folders"):
        read(data_folder, required=("test",))


def test_test_clips_may_have_any_number_and_length(data_folder, picture):
    for k in range(2, 9):
        for kind, n, level in (("img", 1, 0), ("label", k, 100)):
            (data_folder / f"test/test_{kind}/{k}").mkdir()
            for frame in range(n):
                picture(level + frame).save(data_folder / f"test/test_{kind}/{k}/{frame}.png")
    assert [len(clip) for clip in read(data_folder).tests] == [3, 3, 2, 3, 4, 5, 6, 7, 8]


def test_a_validation_video_may_be_shorter_than_a_training_clip(data_folder):
    for k in (2, 3):
        for kind in ("img", "label"):
            (data_folder / f"val/val_{kind}/{k}.png").unlink()
    assert len(read(data_folder).val) == 2


def test_boundaries_are_detected_or_given(data_folder, picture):
    for k in range(10, 20):
        picture(200).save(data_folder / f"train/train_img/{k}.png")
    assert read(data_folder).train.boundaries == (10,)
    assert read(data_folder, boundaries=(4, 6)).train.boundaries == (4, 6)
    assert read(data_folder, boundaries=()).train.boundaries == ()


@pytest.mark.parametrize(
    ("text", "boundaries"), [("4 6\n", (4, 6)), ("4\n6", (4, 6)), ("\n", ()), ("\ufeff4 6", (4, 6))]
)
def test_cuts_txt_lists_the_boundaries(data_folder, picture, text, boundaries):
    for k in range(10, 20):
        picture(200).save(data_folder / f"train/train_img/{k}.png")  # a boundary that would be detected
    (data_folder / "train/cuts.txt").write_text(text, encoding="utf-8")
    (data_folder / "val/cuts.txt").write_text("2")
    dataset = read(data_folder)
    assert (dataset.train.boundaries, dataset.val.boundaries) == (boundaries, (2,))
    assert read(data_folder, boundaries=(9,)).train.boundaries == (9,)
    assert read(data_folder, parts=("test",)).train.boundaries == ()


@pytest.mark.parametrize("text", ["six", "6 4", "0", "20", "4 4", "-3", "4, 6", "9" * 30])
def test_a_damaged_cuts_txt_is_refused(data_folder, text):
    (data_folder / "train/cuts.txt").write_text(text)
    with pytest.raises(
        DataError, match=r"train/cuts.txt: the file must contain .* each from 1 to 19; correct the file"
    ):
        read(data_folder)


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


def pipe(name):
    return lambda root: ((root / name).unlink(), os.mkfifo(root / name))


def device(name):
    return lambda root: ((root / name).unlink(), (root / name).symlink_to("/dev/zero"))


def dangling(name):
    return lambda root: ((root / name).unlink(), (root / name).symlink_to("nowhere.png"))


def huge(name, side=60_000):
    """Write a PNG file of a few hundred bytes. Its header declares 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
    return lambda root: (root / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def enlarge(name):
    return lambda root: Image.open(root / name).resize((128, 64)).save(root / name)


FAULTS = {
    "folder missing": (shutil.rmtree, r"data: there is no such folder; give the folder that contains train"),
    "half a split missing": (
        lambda r: shutil.rmtree(r / "val/val_img"),
        r"val_img: there is no such folder.*add the folder",
    ),
    "nothing there": (
        lambda r: [shutil.rmtree(r / part) for part in ("train", "val", "test")],
        r"data: this folder contains none of train, val and test; give the folder that contains them",
    ),
    "folder empty": (
        lambda r: [f.unlink() for f in (r / IMG).iterdir()],
        r"train_img: this folder contains no PNG or JPEG files",
    ),
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
    "gap": (
        remove(f"{IMG}/3.png", f"{LABEL}/3.png"),
        r"train_img: the numbering has a gap before 4\.png; add",
    ),
    "duplicate": (
        copy(f"{IMG}/3.png", f"{IMG}/frame3.png"),
        r"frame3\.png: number 3 occurs twice, also in 3\.png",
    ),
    "name of text": (
        rename(f"{IMG}/3.png", f"{IMG}/three.png"),
        r"three\.png: the name has no number; rename it",
    ),
    "clip name of text": (rename("test/test_img/1", "test/test_img/one"), r"one: the name has no number"),
    "unreadable": (
        text(f"{IMG}/3.png"),
        r"3\.png: this is not a readable PNG or JPEG file .*replace the file",
    ),
    "truncated": (
        truncate(f"{IMG}/3.png"),
        r"3\.png: this is not a readable PNG or JPEG file .*replace the file",
    ),
    "truncated first": (truncate(f"{IMG}/0.png"), r"0\.png: this is not a readable PNG or JPEG file"),
    "empty file": (
        lambda r: (r / f"{IMG}/3.png").write_bytes(b""),
        r"3\.png: this is not a readable PNG or JPEG file",
    ),
    "two patterns": (
        rename(f"{IMG}/3.png", f"{IMG}/frame3.png"),
        r"frame3\.png: the name does not follow the pattern of 0\.png; use one pattern for all names in a folder",
    ),
    "copy": (
        copy(f"{IMG}/3.png", f"{IMG}/3 (1).png"),
        r"3\.png: number 3 occurs twice, also in 3 \(1\)\.png",
    ),
    "png and jpg": (copy(f"{IMG}/3.png", f"{IMG}/3.jpg"), r"3\.png: number 3 occurs twice, also in 3\.jpg"),
    "padded and not": (
        copy(f"{IMG}/3.png", f"{IMG}/003.png"),
        r"3\.png: number 3 occurs twice, also in 003\.png",
    ),
    "pipe": (pipe(f"{IMG}/3.png"), r"3\.png: this is not a regular file; replace it"),
    "device": (device(f"{IMG}/3.png"), r"3\.png: this is not a regular file; replace it"),
    "dangling link": (dangling(f"{IMG}/3.png"), r"3\.png: this is not a regular file; replace it"),
    "huge": (huge(f"{IMG}/3.png"), r"3\.png: the picture is too large \(.*\); make it smaller"),
    "size mix": (
        enlarge(f"{IMG}/3.png"),
        r"3\.png: the picture has 128 x 64 pixels, but the first picture .* 64 x 32; resize",
    ),
    "too few frames": (
        remove(*(f"{f}/{k}.png" for f in (IMG, LABEL) for k in range(8, 20))),
        r"train_img: 8 frames are too few, a clip needs 16; add frames",
    ),
    "few test labels": (
        remove(*(f"test/test_label/1/{k}.png" for k in (1, 2))),
        r"test_label.1: 1 label is too few",
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
def test_every_fault_is_refused_in_one_clear_sentence(data_folder, fault):
    spoil, message = FAULTS[fault]
    read(data_folder)  # no error before the fault is added; the filled cache must not hide the fault
    spoil(data_folder)
    with pytest.raises(DataError, match=message) as caught:
        read(data_folder)
    assert "\n" not in str(caught.value)


def test_the_folder_of_one_split_is_not_a_data_set(data_folder):
    with pytest.raises(DataError, match=r"one split of a data set; use .*data"):
        read(data_folder / "train")


@pytest.mark.parametrize("inside", ["lab4", "lab4/LAB4_Dataset", "a/b/c"])
def test_a_data_set_inside_other_folders_is_read_and_logged(data_folder, inside, caplog):
    (data_folder / inside).mkdir(parents=True)
    (data_folder / "__MACOSX/lab4/train").mkdir(parents=True)
    for part in ("train", "val", "test"):
        (data_folder / part).rename(data_folder / inside / part)
    assert part_sizes(read(data_folder)) == PART_SIZES
    assert f"data: the data set in the subfolder {inside} is read" in caplog.text


def test_two_data_sets_inside_a_folder_are_refused(data_folder, tmp_path):
    shutil.copytree(data_folder, data_folder.parent / "second")
    with pytest.raises(
        DataError, match=r"this folder contains several data sets; give one of .*data, .*second"
    ):
        read(tmp_path)


def test_the_error_for_a_zip_file_contains_the_command_that_unpacks_it(data_folder, tmp_path):
    shutil.make_archive(tmp_path / "lab4", "zip", data_folder)
    with pytest.raises(
        DataError, match=r'lab4\.zip: this is a file; unpack it with: python -m zipfile -e ".*lab4\.zip"'
    ):
        read(tmp_path / "lab4.zip")
    (tmp_path / "only").mkdir()
    (tmp_path / "lab4.zip").rename(tmp_path / "only/lab4.zip")
    with pytest.raises(
        DataError, match=r"only: this folder contains none of train, val and test; unpack it with"
    ) as caught:
        read(tmp_path / "only")
    # The command in the message unpacks the data set.
    subprocess.run(
        str(caught.value).split("unpack it with: ")[1].split(",")[0].replace("python", sys.executable, 1),
        shell=True,
        check=True,
    )
    assert part_sizes(read(tmp_path / "only")) == PART_SIZES


def test_files_created_by_operating_systems_are_ignored(data_folder):
    for part in (IMG, LABEL, "test/test_img/0", "test/test_label/0"):
        for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "notes.txt"):
            (data_folder / part / name).write_text("")
    for part in ("test/test_img", "test/test_label", "."):
        (data_folder / part / "__MACOSX").mkdir()
    assert part_sizes(read(data_folder)) == PART_SIZES


def never(*_, **__):
    raise AssertionError("decoded although cached")


def test_pictures_are_decoded_once_and_then_read_from_the_cache(data_folder, monkeypatch):
    first = read(data_folder)
    monkeypatch.setattr(folder, "decode", never)
    again = read(data_folder)
    assert torch.equal(first.train.labels, again.train.labels)
    assert torch.equal(first.tests[0].answer, again.tests[0].answer)


def test_every_edit_updates_the_cache_which_has_one_file_per_split(data_folder, picture, tmp_path):
    read(data_folder)
    file = data_folder / IMG / "3.png"
    before = file.stat()
    picture(99).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # restores the old modification time
    assert grey(read(data_folder).train.frames)[3] == 99
    for part in (IMG, LABEL):
        picture(77).save(data_folder / part / "20.png")
    assert len(read(data_folder).train) == 21
    read(data_folder, fit="crop")
    assert sorted(f.name.split("-")[0] for f in (tmp_path / "cache").iterdir()) == ["test", "train", "val"]


def test_a_damaged_cache_is_built_again(data_folder, tmp_path, caplog):
    read(data_folder)
    for file in (tmp_path / "cache").iterdir():
        content = bytearray(file.read_bytes())
        place = content.index(bytes([1] * 64))  # inside a frame of grey level 1
        content[place] ^= 1
        file.write_bytes(content)
    assert grey(read(data_folder).train.frames) == list(range(20))
    assert caplog.text.count("this cache file is damaged") == 3


def test_a_cache_that_cannot_be_written_gives_only_a_warning(data_folder, tmp_path, caplog):
    (tmp_path / "blocked").write_text("")
    assert len(read(data_folder, cache=tmp_path / "blocked/cache").train) == 20
    assert caplog.text.count("the cache file was not written") == 1


def test_written_data_is_unchanged_when_read(data_folder, tmp_path):
    dataset = read(data_folder, boundaries=(4, 6))  # these cannot be detected from the frames
    (tmp_path / "out").mkdir()  # an empty folder may exist already
    write_folder(dataset, tmp_path / "out")
    again = read(tmp_path / "out")
    assert (again.train.boundaries, again.val.boundaries) == ((4, 6), ())
    assert torch.equal(dataset.train.labels, again.train.labels)
    assert torch.equal(dataset.val.frames, again.val.frames)
    assert torch.equal(dataset.tests[0].answer, again.tests[0].answer)
    assert again.tests[1].answer is None
    with pytest.raises(
        DataError, match="out: this folder already exists and is not empty; choose a new or empty folder"
    ):
        write_folder(dataset, tmp_path / "out")
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".out")]


def test_clip_names_without_a_number_are_not_written(data_folder, tmp_path):
    dataset = dataclasses.replace(read(data_folder), tests=read(data_folder).val.as_clips())
    with pytest.raises(DataError, match="test clip 'val0': the name is not a number"):
        write_folder(dataset, tmp_path / "out")


def test_the_report_equals_a_computation_by_hand(data_folder):
    table = report(read(data_folder, boundaries=(8,))).set_index("part")
    assert table.loc["train", ["frames", "recordings", "boundaries"]].tolist() == [20, 2, "8"]
    # Frame k has grey level k, so consecutive frames differ by 1/255. Recordings begin at 0 and 8.
    step = 20 * np.log10(255)
    static = [k - 8 * (k > 8) for k in range(20) if k not in (0, 8)]
    np.testing.assert_allclose(table.loc["train", "copy_previous"], step, atol=1e-3)
    np.testing.assert_allclose(table.loc["train", "static"], step - 20 * np.log10(static).mean(), atol=1e-3)
    mean = [abs(k - 9.5) for k in (1, 2)]
    np.testing.assert_allclose(
        table.loc["test 0", "mean_frame"], step - 20 * np.log10(mean).mean(), atol=1e-3
    )
    assert table.loc["test 1", ["static", "copy_previous", "mean_frame"]].isna().all()


def test_the_report_of_many_recordings_has_short_rows():
    """With 100,000 frames of 2 x 4 pixels in 1,000 recordings, only the first boundaries are listed."""
    count = 100_000
    frames = (torch.arange(count) % 100).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 4)
    train = Video(frames, frames, tuple(range(100, count, 100)), "train")
    table = report(Dataset("many", train, Video(frames[:0], frames[:0]), ()))
    (row,) = table.to_dict("records")
    assert (row["frames"], row["recordings"]) == (count, 1000)
    assert row["boundaries"] == "100 200 300 400 500 600 700 800 900 1000 1100 1200 and 987 more"
    assert row["copy_previous"] == pytest.approx(20 * np.log10(255), abs=1e-3)


def test_identical_frames_score_100_db(data_folder, picture):
    for k in range(4):
        picture(9).save(data_folder / f"val/val_img/{k}.png")
    assert report(read(data_folder)).set_index("part").loc["val", "static"] == pytest.approx(100)


def test_the_synthetic_data_set_is_rendered_once_and_then_read_from_the_cache(monkeypatch):
    first = load("tiny", seed=3)
    monkeypatch.setattr("cvae_lab.data._render", never)
    again = load("tiny", seed=3)
    assert again.train.boundaries == first.train.boundaries
    assert torch.equal(again.train.frames, first.train.frames)
    assert torch.equal(again.tests[1].answer, first.tests[1].answer)
    with pytest.raises(AssertionError):
        load("tiny", seed=4)


def test_real_clips_are_read(real_data):
    dataset = read(real_data)
    assert (len(dataset.train), len(dataset.val), len(dataset.tests)) == (1887, 630, 3)
    assert {len(clip) for clip in dataset.tests} == {630}
    table = report(dataset).set_index("part")
    assert table.loc["val", "static"] == pytest.approx(35.5, abs=0.2)  # measured with independent code
