"""The command line as a person meets it: exit codes, one clear line, nothing half-written."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cvae_lab.__main__ import _parser, _values, main
from cvae_lab.config import RunConfig
from cvae_lab.data import load, read_folder, write_folder
from cvae_lab.data.course_csv import read_2023, read_submission
from cvae_lab.evaluation.corrections import predict_corrected
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.runs.folder import RunFolder
from cvae_lab.runs.studies import STUDIES
from cvae_lab.training.checkpoint import load_model

SMALL = ["-p", "precision", "float32", "-p", "width", "8", "-p", "clips_per_epoch", "24", "-p", "epochs", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", str(folder), "--data", "tiny", *SMALL]) == 0
    return folder


def test_stage_writes_what_check_reads(tmp_path, capsys):
    out = tmp_path / "stage"
    assert main(["stage", str(out), "--size", "tiny"]) == 0
    assert main(["check", str(out)]) == 0
    text = capsys.readouterr().out
    assert "test 1" in text
    assert len(read_folder(out, progress=False).tests) == 2
    assert main(["stage", str(out), "--size", "tiny"]) == 1  # never over what is there
    assert str(out) in capsys.readouterr().err


def test_refusals_are_one_line_on_standard_error(tmp_path, capsys):
    for arguments in (
        ["check", str(tmp_path / "none")],
        ["train", str(tmp_path / "run"), "--data", str(tmp_path / "none")],
        ["train", str(tmp_path / "run"), "--data", "tiny", "-p", "epoch", "3"],
        ["train", str(tmp_path / "run"), "--data", "tiny", "--minutes", "1", "-p", "n_frames", "400"],
        ["compare", str(tmp_path)],
        ["predict", str(tmp_path / "run.pt"), "--data", "tiny"],
        ["train", str(tmp_path / "run"), "--data", "tiny", "-p", "start", str(tmp_path / "nowhere")],
        ["study", "ablation", "--out", str(tmp_path / "run"), "--variants", "no-such"],
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("cvae-lab: ")
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("study", STUDIES)
def test_a_runs_command_makes_the_same_run(study):
    for variant in STUDIES[study].variants.values():
        config = RunConfig.from_params("small", **(STUDIES[study].base | variant))
        words = shlex.split(config.command())
        assert words[:5] == ["python", "-m", "cvae_lab", "train", "RUN"]
        given = _parser().parse_args(words[3:])
        assert RunConfig.from_params(given.data, **_values(given.params)) == config


def test_a_runs_command_names_no_folder_of_this_machine(tmp_path):
    config = RunConfig.from_params(str(tmp_path / "lab4"), start=str(tmp_path / "stage"))
    assert config.command().endswith("--data lab4 -p start stage")


def test_wrong_usage_exits_2():
    with pytest.raises(SystemExit) as error:
        main(["no-such-command"])
    assert error.value.code == 2


def test_train_refuses_a_second_run_in_one_folder(run, capsys):
    assert main(["train", str(run), "--data", "tiny", *SMALL]) == 1
    assert "--resume" in capsys.readouterr().err


def test_train_can_go_on_for_longer(run, tmp_path):
    import shutil

    copy = tmp_path / "longer"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    assert main(["train", str(copy), "--data", "tiny", "--resume", *SMALL[:-1], "2"]) == 0
    assert RunFolder(copy).history["epoch"].tolist() == [1, 2]
    assert RunFolder(copy).history["loss"][0] == RunFolder(run).history["loss"][0]


def test_predict_and_compare(run, capsys):
    assert main(["predict", str(run), "--data", "tiny"]) == 0
    text = capsys.readouterr().out
    assert "grade" in text
    names = {f.name for f in (run / "test").iterdir()}
    assert names == {"clip0.gif", "clip0.html", "clip1.gif", "clip1.html", "submission.csv"}
    assert main(["predict", str(run), "--data", "tiny", "--csv", "2023"]) == 0
    (whole, _), clip = (
        read_submission(run / "test" / "submission.csv", 96),
        read_2023(run / "test" / "pred0.csv", 96),
    )
    assert torch.equal(clip, whole)
    assert main(["compare", str(run)]) == 0
    assert (run / "strategies.png").exists()


def test_predict_scores_validation_where_no_test_clip_has_an_answer(run, tmp_path, capsys):
    data = load("tiny", progress=False)
    tests = tuple(replace(clip, answer=None) for clip in data.tests)
    write_folder(replace(data, tests=tests), tmp_path / "data")
    assert main(["predict", str(run), "--data", str(tmp_path / "data")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validation")]
    clips = [*tests, *data.val.as_clips()]  # as one batch, so that each draws the z it drew there
    firsts, labels = (
        torch.stack(part) / 255 for part in zip(*((c.first, c.labels) for c in clips), strict=True)
    )
    generator = torch.Generator().manual_seed(0)
    films = predict_corrected(load_model(run / "best.pt"), firsts, labels, generator, mirror=True)
    truth = clips[-1].answer[1:] / 255
    wanted = [float(psnr(film, truth).mean()) for film in (films[-1], firsts[-1:].expand_as(truth))]
    said = [float(number) for number in re.findall(r"[0-9.]+(?= dB)", line)]
    assert said == pytest.approx(wanted, abs=0.006)  # as it is printed


def test_several_runs_are_averaged(tmp_path):
    """In the first one's folder, within the half step that bytes are off."""
    runs, films = [tmp_path / "0", tmp_path / "1"], []
    for run in runs:
        assert main(["train", str(run), "--data", "tiny", *SMALL, "-p", "seed", run.name]) == 0
        assert main(["predict", str(run), "--data", "tiny"]) == 0
        films.append(read_submission(run / "test" / "submission.csv", 96)[0].double())
    assert main(["predict", *map(str, runs), "--data", "tiny"]) == 0
    joined = read_submission(runs[0] / "test" / "submission.csv", 96)[0].double()
    assert (films[0] - films[1]).abs().max() > 10
    assert (joined - (films[0] + films[1]) / 2).abs().max() <= 1


def test_a_run_sets_its_threads(tmp_path):
    """In a process of its own, since threads belong to the process."""
    code = (
        "import sys, torch; from pathlib import Path; from cvae_lab import RunConfig;"
        "from cvae_lab.runs.folder import RunFolder; torch.set_num_threads(2);"
        "RunFolder(Path(sys.argv[1])).begin(RunConfig.from_params('tiny', threads=1, width=8));"
        "print(torch.get_num_threads())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"
