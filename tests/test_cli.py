"""The command line: exit status, errors in one line, help, and complete files."""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cvae_lab.__main__ import main, parser
from cvae_lab.config import RunConfig, parameters
from cvae_lab.data import load, read_folder, write_folder
from cvae_lab.data.course_csv import read_2023, read_submission
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.runs import predict as predicting
from cvae_lab.runs.commands import values
from cvae_lab.runs.commands.benchmark import PRESETS
from cvae_lab.runs.commands.training import STUDIES as STUDY_NAMES
from cvae_lab.runs.folder import RunFolder
from cvae_lab.runs.studies import STUDIES
from cvae_lab.schedules import KL_STRATEGIES
from cvae_lab.training.checkpoint import load_model, train_config

ROOT = Path(__file__).parents[1]
SMALL = ["-p", "precision", "float32", "-p", "width", "8", "-p", "clips_per_epoch", "24", "-p", "epochs", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", str(folder), "--data", "tiny", *SMALL]) == 0
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Replace the writing of GIFs and players by no-ops, for tests of other files."""
    for name in ("write_clip_gif", "write_clip_player"):
        monkeypatch.setattr(predicting, name, lambda *_: None)


def commands():
    (found,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return {name: command for name, command in found.choices.items() if name != "stage"}


def test_check_reads_what_synthetic_writes(tmp_path, capsys):
    out = tmp_path / "data"
    assert main(["synthetic", str(out), "--size", "tiny"]) == 0
    assert main(["check", str(out)]) == 0
    text = capsys.readouterr().out
    assert "test 1" in text
    assert len(read_folder(out, progress=False).tests) == 2
    assert main(["synthetic", str(out), "--size", "tiny"]) == 1  # existing files are never replaced
    assert str(out) in capsys.readouterr().err


def test_the_old_name_of_synthetic_still_works():
    assert parser().parse_args(["stage", "data"]).function == "synthetic"


def test_errors_are_one_line_on_standard_error(tmp_path, capsys):
    for arguments in (
        ["check", str(tmp_path / "none")],
        ["train", str(tmp_path / "run"), "--data", str(tmp_path / "none")],
        ["train", str(tmp_path / "run"), "--data", "tiny", "-p", "epoch", "3"],
        ["train", str(tmp_path / "run"), "--data", "tiny", "--minutes", "1", "-p", "n_frames", "400"],
        ["compare", str(tmp_path)],
        ["predict", str(tmp_path / "run.pt"), "--data", "tiny"],
        ["train", str(tmp_path / "run"), "--data", "tiny", "-p", "init_from", str(tmp_path / "nowhere")],
        ["study", "ablation", "--out", str(tmp_path / "run"), "--variants", "no-such"],
        ["params", "no-such"],
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("cvae-lab: ")
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("study", STUDIES)
def test_the_command_of_a_run_gives_the_same_configuration(study):
    for variant in STUDIES[study].variants.values():
        config = RunConfig.from_params("small", **(STUDIES[study].base | variant))
        words = shlex.split(config.command())
        assert words[:5] == ["python", "-m", "cvae_lab", "train", "RUN"]
        given = parser().parse_args(words[3:])
        assert RunConfig.from_params(given.data, **values(given.params)) == config


def test_the_command_of_a_run_has_no_path_of_this_machine(tmp_path):
    config = RunConfig.from_params(str(tmp_path / "lab4"), init_from=str(tmp_path / "pretrained"))
    assert config.command().endswith("--data lab4 -p init_from pretrained -p lr 0.001")


def test_wrong_usage_exits_2():
    with pytest.raises(SystemExit) as error:
        main(["no-such-command"])
    assert error.value.code == 2


def test_every_option_has_a_description_and_a_default():
    for name, command in commands().items():
        assert f"\n  cvae-lab {name}" in command.epilog, name  # the help has an example
        text = command.format_help()
        for action in command._actions:
            assert action.help, (name, action.dest)
            if action.option_strings and action.dest not in ("help", "params"):
                shown = command._get_formatter()._get_help_string(action)
                assert "default" in shown, (name, action.dest)
        assert max(map(len, text.splitlines())) <= 110


def test_every_example_can_be_parsed():
    for command in commands().values():
        for line in re.findall(r"^  cvae-lab (.*)$", command.epilog, re.M):
            parser().parse_args(shlex.split(line))


def test_a_new_kl_schedule_can_be_given_to_sweep(monkeypatch):
    monkeypatch.setitem(KL_STRATEGIES, "quadratic", lambda progress, *_: float(progress) ** 2)
    chosen = ["quadratic", "stages", "cyclical"]
    assert parser().parse_args(["sweep", "--strategies", *chosen]).strategies == chosen
    assert "quadratic" in commands()["sweep"].format_help()
    assert parser().parse_args(["sweep"]).strategies == ["cyclical", "monotonic", "none", "constant"]


def test_choices_are_those_of_the_studies_and_presets():
    assert list(STUDIES) == sorted(STUDIES, key=list(STUDIES).index)
    assert set(STUDY_NAMES) == set(STUDIES)
    assert set(PRESETS) == {"handout", "compact"}


def test_params_lists_every_parameter_with_range_default_and_meaning(capsys):
    assert main(["params"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    for parameter in parameters():
        name = "preset" if parameter.name == "name" else parameter.name
        assert re.search(rf"^{name}: .*default ", text, re.M), name
    assert main(["params", "lr"]) == 0
    line, *meaning = capsys.readouterr().out.splitlines()
    assert line == "lr: float, 1e-08 to 1; default 0.008"
    assert " ".join(meaning).split(";")[0].strip() == "learning rate after warm-up"


def test_every_help_text_fits_into_80_columns_and_has_an_example(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    root = parser()
    commands = next(action.choices for action in root._actions if action.choices)
    for name, command in {"": root, **commands}.items():
        text = command.format_help()
        assert max(map(len, text.splitlines())) <= 80, name
        assert re.search(r"^examples?:\n  cvae-lab", text, re.MULTILINE), name


def test_help_loads_neither_torch_nor_pandas():
    code = (
        "import sys\nfrom cvae_lab.__main__ import main\n"
        "try: main(['predict', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_train_refuses_a_second_run_in_one_folder(run, capsys):
    assert main(["train", str(run), "--data", "tiny", *SMALL]) == 1
    assert "--resume" in capsys.readouterr().err


def test_train_continues_a_finished_run_for_longer(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "longer")
    assert main(["train", str(copy), "--data", "tiny", "--resume", *SMALL[:-1], "2"]) == 0
    assert RunFolder(copy).history["epoch"].tolist() == [1, 2]
    assert RunFolder(copy).history["loss"][0] == RunFolder(run).history["loss"][0]


def test_predict_writes_its_files_and_prints_both_scores(run, capsys):
    assert main(["predict", str(run), "--data", "tiny"]) == 0
    text = capsys.readouterr().out
    names = {f.name for f in (run / "test").iterdir()}
    assert names == {"clip0.gif", "clip0.html", "clip1.gif", "clip1.html", "submission.csv"}
    assert text.splitlines()[-1] == f"Open first: {run / 'test' / 'clip0.html'}"
    plain, corrected, static = map(float, re.search(r"^mean +(\S+) +(\S+) +(\S+)$", text, re.M).groups())
    assert plain == pytest.approx(
        RunFolder(run).result["psnr_mean"], abs=0.01
    )  # the score in the result of the run
    assert static == pytest.approx(RunFolder(run).result["baseline_static"], abs=0.01)
    change = float(re.search(r"change the mean by ([+-]\S+) dB", text)[1])
    assert change == pytest.approx(corrected - plain, abs=0.011)
    assert main(["predict", str(run), "--data", "tiny", "--csv", "2023"]) == 0
    (whole, _) = read_submission(run / "test" / "submission.csv", 96)
    assert torch.equal(read_2023(run / "test" / "pred0.csv", 96), whole)


def test_plain_predictions_equal_those_of_the_run_and_have_their_own_folder(run, no_pictures):
    assert main(["predict", str(run), "--data", "tiny", "--plain"]) == 0
    written = read_submission(run / "test-plain" / "submission.csv", 96)[0][1:]
    assert torch.equal(written, torch.from_numpy(RunFolder(run).predictions()["0"]))


def test_compare_draws_pictures(run, capsys):
    assert main(["compare", str(run)]) == 0
    assert (run / "strategies.png").exists()


def test_predict_prints_the_chosen_run_and_the_reason(run, no_pictures, tmp_path, capsys):
    for name in ("a-seed0", "b-seed0"):
        shutil.copytree(run, tmp_path / name)
    file = tmp_path / "b-seed0" / "result.json"
    file.write_text(re.sub(r'"heldout_psnr": [0-9.]+', '"heldout_psnr": 99.5', file.read_text()))
    assert main(["predict", str(tmp_path), "--data", "tiny", "--plain"]) == 0
    text = capsys.readouterr().out
    assert f"Predicting with {tmp_path / 'b-seed0' / 'best.pt'}" in text
    assert "the best held-out score of 2 runs: 99.50 dB" in text


def test_checkpoints_in_one_folder_have_separate_predictions(run, no_pictures, tmp_path):
    for name in ("epoch=3.ckpt", "epoch=6.ckpt"):
        shutil.copyfile(run / "best.pt", tmp_path / name)
        assert main(["predict", str(tmp_path / name), "--data", "tiny", "--plain"]) == 0
    assert {f.parent.name for f in tmp_path.glob("*/submission.csv")} == {
        "epoch=3-test-plain",
        "epoch=6-test-plain",
    }


def test_predict_writes_to_the_folder_given_by_out(run, no_pictures, tmp_path):
    out = tmp_path / "a" / "b"
    assert main(["predict", str(run), "--data", "tiny", "--plain", "--out", str(out)]) == 0
    assert (out / "submission.csv").exists()


def test_predict_checks_that_its_folder_is_writable_before_it_predicts(run, capsys):
    out = Path("/proc/no-such-folder")
    if not out.parent.is_dir():
        pytest.skip("no /proc, where even root cannot make a folder")
    assert main(["predict", str(run), "--data", "no-such-data", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "cannot be written to" in error
    assert "--out" in error


def test_predict_scores_validation_if_no_test_clip_has_true_frames(run, no_pictures, tmp_path, capsys):
    data = load("tiny", progress=False)
    tests = tuple(replace(clip, answer=None) for clip in data.tests)
    write_folder(replace(data, tests=tests), tmp_path / "data")
    assert main(["predict", str(run), "--data", str(tmp_path / "data")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("val")]
    clips = [*tests, *data.val.as_clips()]
    model, trained = load_model(run / "best.pt"), train_config(run / "best.pt")
    truth = clips[-1].answer[1:] / 255
    found = [predict_clips(model, clips, trained, corrected=corrected)[-1] for corrected in (False, True)]
    wanted = [
        float(psnr(video, truth).mean()) for video in (*found, (clips[-1].first / 255).expand_as(truth))
    ]
    assert [float(number) for number in line.split()[1:]] == pytest.approx(wanted, abs=0.006)  # as printed


def test_predictions_of_several_runs_are_averaged(tmp_path, no_pictures):
    """The tolerance is half a grey level, because predictions are stored with 8 bits per value."""
    runs, videos = [tmp_path / "0", tmp_path / "1"], []
    for run in runs:
        assert main(["train", str(run), "--data", "tiny", *SMALL, "-p", "seed", run.name]) == 0
        assert main(["predict", str(run), "--data", "tiny"]) == 0
        videos.append(read_submission(run / "test" / "submission.csv", 96)[0].double())
    assert main(["predict", *map(str, runs), "--data", "tiny"]) == 0
    joined = read_submission(runs[0] / "test-mean-of-2" / "submission.csv", 96)[0].double()
    assert (videos[0] - videos[1]).abs().max() > 10
    assert (joined - (videos[0] + videos[1]) / 2).abs().max() <= 1


def test_a_run_sets_its_threads(tmp_path):
    """This runs in a separate process, because the number of threads is set for the whole process."""
    code = (
        "import sys, torch; from pathlib import Path; from cvae_lab import RunConfig;"
        "from cvae_lab.runs.folder import RunFolder; torch.set_num_threads(2);"
        "RunFolder(Path(sys.argv[1])).begin(RunConfig.from_params('tiny', threads=1, width=8));"
        "print(torch.get_num_threads())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"


def test_sigterm_ends_a_training_with_one_line_and_status_143(tmp_path):
    run = tmp_path / "run"
    long = [*SMALL[:-1], "1000"]
    command = [sys.executable, "-m", "cvae_lab", "train", str(run), "--data", "tiny", *long]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert (
        error == "cvae-lab: terminated; to continue, run the same command again; for `train`, add --resume.\n"
    )
    assert {f.name for f in run.iterdir()} <= {
        "config.json",
        "history.csv",
        "last.pt",
        "best.pt",
    }  # no lock and no temporary file
    epochs = len(RunFolder(run).history)
    assert main(["train", str(run), "--data", "tiny", *SMALL[:-1], str(epochs + 2), "--resume"]) == 0
