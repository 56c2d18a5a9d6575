"""Output, files and errors of the commands doctor, grade, score, report and notebooks."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.metrics import peak_signal_noise_ratio

from cvae_lab.__main__ import main
from cvae_lab.data import load, write_folder
from cvae_lab.data.course_csv import write_submission
from cvae_lab.teaching.doctor import CANNOT_SEE

REFERENCE = Path(__file__).parents[1] / "figures/reference"
TRAINER = """
import torch
def clamp(loss):
    return torch.clamp(loss, 0, 1)
def reparameterize(mu, logvar):
    return mu + torch.exp(logvar) * torch.randn_like(mu)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write the data set `tiny` to a folder; return the folder and the data set."""
    folder = tmp_path_factory.mktemp("commands") / "data"
    found = load("tiny", progress=False)
    write_folder(found, folder)
    return folder, found


@pytest.fixture(scope="module")
def static(data, tmp_path_factory):
    """A submission that repeats the first frame of every clip."""
    file = tmp_path_factory.mktemp("static") / "anna.csv"
    write_submission(file, [(clip.answer[:1] / 255).expand(len(clip), -1, -1, -1) for clip in data[1].tests])
    return file


def static_psnr(clips):
    """Mean PSNR (dB) of the static baseline over clips and over all frames except the first, by scikit-image."""
    means = []
    for clip in clips:
        first, *others = clip.answer.numpy()
        means.append(np.mean([peak_signal_noise_ratio(frame, first, data_range=255) for frame in others]))
    return np.mean(means)


def test_doctor_prints_mistakes_first_then_what_it_cannot_see(tmp_path, capsys):
    (tmp_path / "trainer.py").write_text(TRAINER)
    assert main(["doctor", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == CANNOT_SEE
    places = [re.match(r"trainer\.py:\d+: (mistake|note)", line) for line in lines]
    kinds = [place[1] for place in places if place]
    assert "mistake" in kinds
    assert kinds == sorted(kinds)
    assert lines[len(kinds)] == f"{kinds.count('mistake')} mistakes, {kinds.count('note')} notes."


def test_score_prints_each_average_and_writes_a_row_per_frame(data, static, tmp_path, capsys):
    out = tmp_path / "new" / "psnr.csv"
    assert main(["score", str(static), str(data[0] / "test/test_answer"), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    wanted = static_psnr(data[1].tests)
    assert float(re.search(r"^mean PSNR +(\S+) dB$", text, re.M)[1]) == pytest.approx(wanted, abs=1e-3)
    assert float(re.search(r"^static baseline +(\S+) dB$", text, re.M)[1]) == pytest.approx(wanted, abs=1e-3)
    of_2023 = float(re.search(r"^course average of 2023.* (\S+) dB$", text, re.M)[1])
    assert of_2023 == pytest.approx(wanted * 95 / 94, abs=1e-3)
    table = pd.read_csv(out)
    assert table.groupby("clip").size().tolist() == [95, 95]
    assert table["psnr"].mean() == pytest.approx(wanted, abs=1e-3)


def test_grade_prints_and_writes_a_row_per_submission(data, static, tmp_path, capsys):
    (tmp_path / "class").mkdir()
    for name in ("anna.csv", "ben.csv"):
        (tmp_path / "class" / name).write_bytes(static.read_bytes())
    (tmp_path / "class" / "carla.csv").write_text("id,0\n")
    arguments = [
        "grade",
        str(tmp_path / "class"),
        "--data",
        str(data[0]),
        "--out",
        str(tmp_path / "grades.csv"),
    ]
    assert main(arguments) == 0
    assert "anna.csv" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "grades.csv").set_index("submission")
    assert table.loc[["anna.csv", "ben.csv"], "mean PSNR"].to_numpy() == pytest.approx(
        static_psnr(data[1].tests), abs=1e-3
    )
    assert table["similar to"]["anna.csv"] == "ben.csv (identical)"
    assert table["fault"].notna().tolist() == [False, False, True]


def test_report_writes_a_page_and_a_notebook(tmp_path, capsys):
    out = tmp_path / "report.html"
    assert (
        main(["report", str(REFERENCE / "cyclical-seed0"), str(REFERENCE / "none-seed0"), "--out", str(out)])
        == 0
    )
    assert capsys.readouterr().out == f"Wrote {out}.\nWrote {out.with_suffix('.ipynb')}.\n"
    assert out.read_text().startswith("<!doctype html>")


def test_notebooks_are_copied_once_and_changes_are_kept(tmp_path, capsys):
    work = tmp_path / "work"
    assert main(["notebooks", str(work)]) == 0
    assert f"{work / '00_start_here.ipynb'}: copied" in capsys.readouterr().out
    (work / "00_start_here.ipynb").write_text("mine")
    assert main(["notebooks", str(work)]) == 0
    assert "every notebook is up to date" in capsys.readouterr().out
    assert (work / "00_start_here.ipynb").read_text() == "mine"


def test_refusals_are_one_line_with_exit_status_1(data, static, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def f(:\n")
    for arguments in (
        ["doctor", str(tmp_path / "none.py")],
        ["doctor", str(tmp_path / "broken.py")],
        ["score", str(static), str(tmp_path / "none")],
        ["score", str(static), str(static), "--frames", "100"],
        ["grade", str(tmp_path / "none"), "--data", str(data[0])],
        ["grade", str(tmp_path), "--data", str(tmp_path / "none")],
        ["report", str(tmp_path / "none")],
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("cvae-lab: ")
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
