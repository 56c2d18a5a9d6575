"""The course's formats, read by plain Python and held against what was written."""

import pytest
import torch

from cvae_lab.data import DataError
from cvae_lab.runs import course


def test_submission_layout(tmp_path):
    clip = torch.rand(3, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    clip[1, 2, 4, 5] = 1.7  # must clamp, not wrap
    course.write_submission(tmp_path / "s.csv", [clip, clip])
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == ",".join(["id", *map(str, range(6144))])
    assert len(lines) == 1 + 6
    row = [int(v) for v in lines[2].split(",")]
    assert row[0] == 1
    assert row[1 + 2 * 2048 + 4 * 64 + 5] == 255  # channel, row, column
    assert row[1 + 7 * 64 + 9] == round(255 * float(clip[1, 0, 7, 9]))
    assert lines[4].split(",")[1:] == lines[1].split(",")[1:]  # clip after clip


def test_submission_reads_back(tmp_path):
    clip = torch.rand(4, 3, 32, 64)
    course.write_submission(tmp_path / "s.csv", [clip])
    (back,) = course.read_submission(tmp_path / "s.csv", 4)
    assert torch.equal(back, (clip * 255).round().to(torch.uint8))
    with pytest.raises(DataError, match=r"s\.csv has 4 rows"):
        course.read_submission(tmp_path / "s.csv", 3)


def test_clip_of_2023(tmp_path):
    truth = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    file = tmp_path / "GT0.csv"
    file.write_text("\n".join(f"{v / 255:.8f}" for v in truth.flatten().tolist()))
    assert torch.equal(course.read_2023(file, frames=2), truth)
    with pytest.raises(DataError, match=r"GT0\.csv holds 12288 numbers"):
        course.read_2023(file)
    file.write_text("2.0 " * 6144)
    with pytest.raises(DataError, match="answers lie in"):
        course.read_2023(file, frames=1)


def test_clip_of_2023_is_written_to_the_step(tmp_path):
    steps = torch.arange(256).repeat(24).reshape(1, 3, 32, 64) / 255
    clip = torch.cat([steps, 2 * steps - 0.5])  # the second frame must clamp
    course.write_2023(tmp_path / "pred0.csv", clip)
    numbers = [[float(n) for n in line.split()] for line in (tmp_path / "pred0.csv").read_text().splitlines()]
    assert [len(row) for row in numbers] == [6144, 6144]
    assert numbers[0] == pytest.approx(steps.flatten().tolist(), abs=5e-5)
    assert (min(numbers[1]), max(numbers[1])) == (0, 1)
    assert torch.equal(
        course.read_2023(tmp_path / "pred0.csv", 2), (255 * clip.clamp(0, 1)).round().to(torch.uint8)
    )


def test_the_two_averages():
    psnr = torch.full((629,), 30.0)
    assert course.average_2023(psnr) == pytest.approx(30 * 629 / 628)
    psnr[600:] = 0
    assert course.average_later(psnr) == 30
