"""Text formats of the course: the content of written files, and errors for damaged files with line and column."""

import os
import subprocess
import sys

import pytest
import torch

from cvae_lab.data import Clip, DataError, course_csv
from cvae_lab.data.answers import read_answers


def random_clip(frames, seed=0):
    return torch.randint(
        256, (frames, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def as_lines(clip, usage=False, first_id=0):
    header = ["id", *map(str, range(6144)), *(["Usage"] if usage else [])]
    rows = [
        [first_id + k, *frame.flatten().tolist(), *(["Public"] if usage else [])]
        for k, frame in enumerate(clip)
    ]
    return [",".join(map(str, row)) for row in (header, *rows)]


def test_a_submission_has_one_row_per_frame_and_clamped_pixels_in_channel_row_column_order(tmp_path):
    clip = torch.rand(3, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    clip[1, 2, 4, 5] = 1.7  # the written value must be clamped, not wrapped around
    course_csv.write_submission(tmp_path / "s.csv", [clip, clip])
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == ",".join(["id", *map(str, range(6144))])
    assert len(lines) == 1 + 6
    row = [int(v) for v in lines[2].split(",")]
    assert row[0] == 1
    assert row[1 + 2 * 2048 + 4 * 64 + 5] == 255  # channel, row, column
    assert row[1 + 7 * 64 + 9] == round(255 * float(clip[1, 0, 7, 9]))
    assert lines[4].split(",")[1:] == lines[1].split(",")[1:]  # clip after clip


def test_a_submission_is_read_back_as_written(tmp_path):
    clip = torch.rand(4, 3, 32, 64)
    course_csv.write_submission(tmp_path / "s.csv", [clip])
    (back,) = course_csv.read_submission(tmp_path / "s.csv", 4)
    assert torch.equal(back, (clip * 255).round().to(torch.uint8))
    first, second = course_csv.read_submission(tmp_path / "s.csv", [1, 3])
    assert torch.equal(torch.cat([first, second]), back)
    with pytest.raises(DataError, match=r"s\.csv has 4 rows"):
        course_csv.read_submission(tmp_path / "s.csv", 3)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("usage", [False, True])
def test_a_usage_column_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path, usage, line_end):
    clip = random_clip(3)
    (tmp_path / "gt.csv").write_bytes(b"\xef\xbb\xbf" + line_end.join([*as_lines(clip, usage), ""]).encode())
    assert torch.equal(course_csv.read_submission(tmp_path / "gt.csv", 3)[0], clip)


VALUE_FAULTS = {
    "nan": r"line 3, column 17: 'nan' is not a whole number from 0 to 255",
    "300": r"line 3, column 17: '300' is not",
    "-7": r"line 3, column 17: '-7' is not",
    "0.5": r"line 3, column 17: '0\.5' is not",
    "inf": r"line 3, column 17: 'inf' is not",
    "": r"line 3, column 17: '' is not",
    "seven": r"line 3, column 17: 'seven' is not",
    "1e400": r"line 3, column 17: '1e400' is not",
}


@pytest.mark.parametrize("value", VALUE_FAULTS)
def test_the_error_for_a_value_that_is_no_pixel_has_line_and_column(tmp_path, value):
    lines = as_lines(random_clip(3))
    fields = lines[2].split(",")
    fields[1 + 17] = value
    lines[2] = ",".join(fields)
    (tmp_path / "s.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"s\.csv: " + VALUE_FAULTS[value]):
        course_csv.read_submission(tmp_path / "s.csv", 3)


def swap(lines):
    lines[1], lines[2] = lines[2], lines[1]


TABLE_FAULTS = {
    "ids out of order": (swap, r"s\.csv: line 2, column id: '1' should be 0"),
    "a row is missing": (lambda lines: lines.pop(2), r"line 3, column id: '2' should be 1"),
    "a row is short": (
        lambda lines: lines.__setitem__(2, lines[2].rpartition(",")[0]),
        r"line 3 has 6144 columns; it needs id and 6144 values",
    ),
    "no header": (
        lambda lines: lines.pop(0),
        r"line 1 must be a header with the names of 6145 columns .* the first is '0'",
    ),
    "an extra column": (
        lambda lines: lines.__setitem__(0, lines[0] + ",note"),
        r"line 1 must be a header with the names of 6145 columns .* it names 6146",
    ),
    "an extra row": (
        lambda lines: lines.append("3" + ",0" * 6144),
        r"s\.csv has 4 rows",
    ),
    "empty": (lambda lines: lines.clear(), r"s\.csv is empty"),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_a_damaged_table_is_refused(tmp_path, fault):
    lines = as_lines(random_clip(3))
    spoil, message = TABLE_FAULTS[fault]
    spoil(lines)
    (tmp_path / "s.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        course_csv.read_submission(tmp_path / "s.csv", 3)


def test_a_table_with_too_many_rows_is_refused_before_they_are_read(tmp_path):
    (tmp_path / "s.csv").write_text("\n".join(as_lines(random_clip(6))))
    with pytest.raises(DataError, match=r"has more than 5 rows"):
        course_csv.read_submission(tmp_path / "s.csv", [2, 3])


def test_a_huge_sparse_file_is_refused_in_little_memory(tmp_path):
    """A process that may allocate 200 MB reads two sparse files of 2 GB, which need no disk space."""
    for name in ("submission.csv", "GT0.csv"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2 * 1024**3)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from cvae_lab.data import DataError, course_csv\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + 200 * 1024**2\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for read, name in ((lambda p: course_csv.read_submission(p, 630), 'submission.csv'),\n"
        "                   (course_csv.read_2023, 'GT0.csv')):\n"
        "    try:\n"
        "        read(Path(sys.argv[1]) / name)\n"
        "    except DataError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, timeout=120
    )
    assert "submission.csv: line 1 is longer than a row of 6144 values" in done.stdout
    assert "GT0.csv: 2147483648 bytes are more than 630 frames can need" in done.stdout


def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "gt.csv")
    for read in (course_csv.read_2023, lambda path: course_csv.read_submission(path, 3)):
        with pytest.raises(DataError, match=r"gt\.csv: there is no regular file at this path"):
            read(tmp_path / "gt.csv")


def test_a_clip_of_2023_is_read(tmp_path):
    truth = random_clip(2)
    file = tmp_path / "GT0.csv"
    file.write_text("\n".join(f"{v / 255:.8f}" for v in truth.flatten().tolist()))
    assert torch.equal(course_csv.read_2023(file, frames=2), truth)
    with pytest.raises(DataError, match=r"GT0\.csv contains 12288 numbers"):
        course_csv.read_2023(file)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("2.0", r"frame 1, value 5: 2 is not in \[0, 1\]"),
        ("-0.1", r"frame 1, value 5: -0\.1 is not in \[0, 1\]"),
        ("nan", r"frame 1, value 5: nan is not in \[0, 1\]"),
        ("x", r"frame 1, value 5: 'x' is not a number"),
    ],
)
def test_the_error_for_a_damaged_clip_of_2023_has_frame_and_value(tmp_path, word, message):
    words = ["0.5"] * (2 * 6144)
    words[6144 + 5] = word
    (tmp_path / "GT0.csv").write_text(" ".join(words))
    with pytest.raises(DataError, match=r"GT0\.csv: " + message):
        course_csv.read_2023(tmp_path / "GT0.csv", frames=2)


def test_every_level_of_a_clip_of_2023_is_recovered_after_writing(tmp_path):
    steps = torch.arange(256).repeat(24).reshape(1, 3, 32, 64) / 255
    clip = torch.cat([steps, 2 * steps - 0.5])  # values of the second frame must be clamped
    course_csv.write_2023(tmp_path / "pred0.csv", clip)
    numbers = [[float(n) for n in line.split()] for line in (tmp_path / "pred0.csv").read_text().splitlines()]
    assert [len(row) for row in numbers] == [6144, 6144]
    assert numbers[0] == pytest.approx(steps.flatten().tolist(), abs=5e-5)
    assert (min(numbers[1]), max(numbers[1])) == (0, 1)
    assert torch.equal(
        course_csv.read_2023(tmp_path / "pred0.csv", 2), (255 * clip.clamp(0, 1)).round().to(torch.uint8)
    )


def two_clips():
    """Return two test clips of unequal length without answers, and their true frames."""
    truths = [random_clip(3, seed=1), random_clip(5, seed=2)]
    labels = torch.full((5, 3, 32, 64), 255, dtype=torch.uint8)
    return [Clip(str(k), truth[0], labels[: len(truth)]) for k, truth in enumerate(truths)], truths


def test_answers_of_2023_are_one_file_per_clip(tmp_path, caplog):
    clips, truths = two_clips()
    for k, truth in enumerate(truths):
        (tmp_path / f"GT{k}.csv").write_text(" ".join(f"{v / 255:.6f}" for v in truth.flatten().tolist()))
    answered = read_answers(tmp_path, clips)
    assert all(torch.equal(clip.answer, truth) for clip, truth in zip(answered, truths, strict=True))
    one = read_answers(tmp_path / "GT1.csv", clips)
    assert one[0].answer is None
    assert torch.equal(one[1].answer, truths[1])
    assert not caplog.records


def test_answers_of_later_years_are_one_table_with_a_usage_column(tmp_path):
    clips, truths = two_clips()
    (tmp_path / "gt.csv").write_text("\n".join(as_lines(torch.cat(truths), usage=True)))
    for path in (tmp_path, tmp_path / "gt.csv"):
        answered = read_answers(path, clips)
        assert all(torch.equal(clip.answer, truth) for clip, truth in zip(answered, truths, strict=True))


def test_answers_of_other_clips_give_a_warning(tmp_path, caplog):
    clips, truths = two_clips()
    (tmp_path / "gt.csv").write_text("\n".join(as_lines(torch.cat(truths).flip(-1), usage=True)))
    answered = read_answers(tmp_path, clips)
    assert torch.equal(answered[1].answer[0], clips[1].first)  # frame 0 is known and is never scored
    assert "first frame of clip 1 differs from the frame in test_img" in caplog.text


def test_missing_or_incomplete_answers_are_refused(tmp_path):
    clips, truths = two_clips()
    with pytest.raises(DataError, match=r"no true frames found; give GT0\.csv"):
        read_answers(tmp_path, clips)
    (tmp_path / "gt.csv").write_text("\n".join(as_lines(truths[0])))
    with pytest.raises(DataError, match=r"gt\.csv has 3 rows, but a submission has 8 rows"):
        read_answers(tmp_path, clips)
