"""Runs that are killed, damaged or in use by two processes."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cvae_lab.__main__ import main
from cvae_lab.config import RunConfig, TrainConfig
from cvae_lab.runs import sweep as sweeping
from cvae_lab.runs.folder import RunFolder, RunInUseError, find_runs, train_run
from cvae_lab.runs.result import RunError
from cvae_lab.runs.studies import plan
from cvae_lab.training.progress import RunStatus, sweep_status

ROOT = Path(__file__).parents[1]
TINY = {"epochs": 2, "eval_every": 1, "width": 8, "clips_per_epoch": 10, "precision": "float32"}


def trained(path, **changes):
    train_run(path, RunConfig.from_params("tiny", **(TINY | changes)), resume=True, pictures=False)
    return RunFolder(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("faults") / "run")


@pytest.fixture
def copy(run, tmp_path):
    return RunFolder(shutil.copytree(run.path, tmp_path / "run"))


def killed_after(write, path, epochs):
    """Train in a forked process that exits without clean-up after writing file number `write`; return its status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    replace, count = Path.replace, itertools.count(1)

    def replace_and_die(self, target):
        replace(self, target)
        if next(count) == write:
            os._exit(9)

    Path.replace = replace_and_die
    try:
        trained(path, epochs=epochs)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def kill_after_every_write(out):
    """Train runs of one and two epochs. Each run is killed after a different written file, then resumed to its end."""
    torch.set_num_threads(1)
    for epochs, first in ((1, 1), (2, 5)):  # the first four files are those of epoch 1
        for write in itertools.count(first):
            run = out / str(epochs) / str(write)
            status = killed_after(write, run, epochs)
            if status == 0:
                break
            assert status == 9, status
            assert RunFolder(run).done or killed_after(0, run, epochs) == 0


def deterministic(result):
    return {name: value for name, value in result.items() if name not in ("minutes", "commit")}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_after_any_write_continues_to_the_same_result(tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, cwd=ROOT, env=environment)
    # Each epoch writes config.json, best.pt, last.pt, history.csv. The end writes scores, predictions, result.
    for epochs in ("1", "2"):
        *killed, whole = sorted((tmp_path / epochs).iterdir(), key=lambda path: int(path.name))
        # Epoch 2 does not write best.pt if its score is lower.
        assert len(killed) == 7 or (epochs, len(killed)) == ("2", 6)
        for folder in killed:
            run, wanted = RunFolder(folder), RunFolder(whole)
            ours, theirs = (one.history.drop(columns=["seconds", "frames_per_s"]) for one in (run, wanted))
            assert ours.equals(theirs), folder
            assert deterministic(run.result) == deterministic(wanted.result)
            for name, frames in wanted.predictions().items():
                np.testing.assert_array_equal(run.predictions()[name], frames)


def test_a_missing_history_row_is_restored_from_the_checkpoint(copy):
    """This is the state after a kill between last.pt and history.csv of the last epoch."""
    rows = (copy.path / "history.csv").read_text()
    (copy.path / "history.csv").write_text("".join(rows.splitlines(True)[:-1]))
    (copy.path / "result.json").unlink()
    trained(copy.path)
    assert (copy.path / "history.csv").read_text() == rows
    assert RunFolder(copy.path).result["epochs"] == 2


def test_every_score_of_a_result_describes_the_named_checkpoint(tmp_path):
    """In this run the held-out score falls, so best.pt is from epoch 1 and last.pt is from epoch 2."""
    path = tmp_path / "run"
    trained(path, epochs=1)
    first = RunFolder(path).result
    best = torch.load(path / "best.pt", weights_only=True)
    best["history"][-1]["heldout_psnr"] = last_score = 1000.0
    last = torch.load(path / "last.pt", weights_only=True)
    last["history"][-1]["heldout_psnr"] = last_score
    torch.save(best, path / "best.pt")
    torch.save(last, path / "last.pt")
    (path / "result.json").unlink()
    result = trained(path, epochs=2).result
    history = RunFolder(path).history
    assert result["checkpoint"] == "best.pt, epoch 1"
    assert (result["best_epoch"], result["epochs"]) == (1, 2)
    for name in ("kl_nats", "val_psnr_prior", "val_psnr_posterior"):
        assert result[name] == pytest.approx(history[name][0])
        assert result[name] != pytest.approx(history[name][1])
    assert result["psnr_mean"] == first["psnr_mean"]
    assert result["psnr_final"] != result["psnr_mean"]
    assert result["kl_nats_final"] == pytest.approx(history["kl_nats"][1])


def test_a_run_without_a_finite_kl_is_not_done(copy, tmp_path):
    for name in ("best.pt", "last.pt"):
        content = torch.load(copy.path / name, weights_only=True)
        content["history"][-1]["kl_nats"] = float("nan")
        torch.save(content, copy.path / name)
    (copy.path / "result.json").unlink()
    with pytest.raises(RunError, match="kl_nats = nan"):
        trained(copy.path)
    assert not RunFolder(copy.path).done


DAMAGES = {
    "result.json": [
        ("", "is empty"), ("{", "is not complete JSON"), ("[]", "is not a result"), ("{}", "strategy is missing"),
    ],
    "config.json": [
        ("", "damaged"), ("{", "damaged"), ("{}", "damaged"), ("[]", "damaged"), ('{"data": 1}', "damaged"),
    ],
    "history.csv": [("", "no readable column"), ("epoch\nx\n", "no readable column")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"), [(name, *pair) for name, pairs in DAMAGES.items() for pair in pairs]
)
def test_a_damaged_file_is_named_and_the_other_runs_are_shown(run, copy, name, text, message, capsys, caplog):
    (copy.path / name).write_text(text)
    with pytest.raises(RunError, match=message) as error:
        RunFolder(copy.path).check()
    assert str(copy.path / name) in str(error.value)
    assert main(["compare", str(copy.path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    shutil.copytree(run.path, copy.path.parent / "whole")
    assert [found.path.name for found in find_runs(copy.path.parent)] == ["whole"]
    (warning,) = caplog.messages
    assert str(copy.path / name) in warning
    assert main(["compare", str(copy.path.parent)]) == 0
    assert "whole" in capsys.readouterr().out


def test_a_truncated_history_raises_an_error(copy):
    file = copy.path / "history.csv"
    text = file.read_text()
    for length in range(len(text)):
        file.write_text(text[:length])
        whole_rows = text[:length].endswith("\n") and text[:length].count("\n") > 1
        if not whole_rows:  # complete rows are also a valid history of fewer epochs
            with pytest.raises(RunError):
                _ = RunFolder(copy.path).history


@pytest.mark.parametrize("field", ["psnr_mean", "heldout_psnr", "seed", "hardware", "psnr_by_clip"])
def test_a_missing_field_of_a_result_is_named_in_the_error(copy, field):
    file = copy.path / "result.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in content.items() if name != field}))
    with pytest.raises(RunError, match=f"{field} is missing"):
        _ = RunFolder(copy.path).result
    file.write_text(json.dumps(content | {field: float("nan")}))
    with pytest.raises(RunError, match=field):
        _ = RunFolder(copy.path).result


HOLDER = (
    "import sys, time; from pathlib import Path; from cvae_lab.runs.folder import RunFolder;"
    "RunFolder(Path(sys.argv[1])).lock(); print('locked', flush=True); time.sleep(600)"
)


@pytest.fixture
def held(tmp_path):
    """Yield a run folder and the process that has locked it."""
    folder = tmp_path / "held-seed0"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "locked\n"
    yield folder, process
    process.kill()
    process.communicate()


def test_a_folder_can_be_used_by_a_second_training_only_after_the_first_ends(held, capsys):
    folder, first = held
    words = [
        "train",
        str(folder),
        "--data",
        "tiny",
        "-p",
        "width",
        "8",
        "-p",
        "clips_per_epoch",
        "10",
        "-p",
        "epochs",
        "1",
    ]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{folder} is in use by another training" in error
    first.kill()  # the operating system releases its lock
    first.wait()
    assert main(words) == 0
    assert not (folder / ".lock").exists()


@pytest.mark.slow
def test_a_sweep_waits_for_a_run_that_another_process_trains(held, monkeypatch):
    folder, first = held
    jobs = plan("tiny", folder.parent, {"held": {}, "free": {}}, [0], TINY | {"epochs": 1})
    monkeypatch.setattr(sweeping, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(sweeping, "STATUS_SECONDS", 1.0)
    log, order = [], []
    for outcome in sweeping.sweep(None, jobs, workers=1, log=log.append):
        order.append((Path(outcome.run_dir).name, outcome.ok))
        if len(order) == 1:
            assert order == [("free-seed0", True)]
            first.kill()
            first.wait()
    assert order == [("free-seed0", True), ("held-seed0", True)]


def test_a_process_can_lock_its_own_run_again(run):
    run.lock()
    run.lock()
    with pytest.raises(RunInUseError):
        _lock_elsewhere(run.path)
    run.unlock()
    _lock_elsewhere(run.path)


def _lock_elsewhere(path):
    code = HOLDER.replace("time.sleep(600)", "pass")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT)
    if "RunInUseError" in done.stderr:
        raise RunInUseError(done.stderr)
    assert done.returncode == 0, done.stderr


def test_workers_set_their_number_of_threads_even_if_the_user_exports_another(tmp_path, monkeypatch):
    for name in sweeping.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    seen = {}
    monkeypatch.setattr(
        sweeping, "train_run", lambda *_, **__: seen.update(os.environ, torch=torch.get_num_threads())
    )
    (job,) = plan("tiny", tmp_path, {"none": {}}, [0], TINY)
    before = torch.get_num_threads()
    try:
        sweeping.execute(None, job, threads=2)
        assert [seen[name] for name in sweeping.THREAD_VARIABLES] == ["2", "2", "2"]
        assert seen["torch"] == 2
    finally:
        torch.set_num_threads(before)


def test_a_sweep_opens_ports_on_the_loopback_interface_only():
    import psutil

    with sweeping._client(1, 1, None) as client:
        client.submit(int).result()
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {
            connection.laddr.ip
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert listening == {"127.0.0.1"}


def test_a_status_line_names_runs_and_minutes_left_in_80_columns():
    config = TrainConfig(epochs=40)
    first = RunStatus("cyclical-seed0", 10, 28.414, 120.0, config)
    second = RunStatus("monotonic-seed0", 0, float("nan"), 0.0, config)
    # A run takes 480 s. The first run needs 360 s more, the second needs 480 s more, and a third has not started and
    # needs 480 s. With two workers, this is 11 minutes.
    assert (
        sweep_status([first, second], 1)
        == "11 min left: cyclical-seed0 epoch 10 28.41 dB, monotonic-seed0 starts"
    )
    assert sweep_status([second], 3) == "? min left: monotonic-seed0 starts"
    many = sweep_status([first] * 9, 0)
    assert len(many) <= 80
    assert many.endswith(" more")
    timed = RunStatus("a", 3, float("nan"), 60.0, TrainConfig(minutes=4.0))
    assert sweep_status([timed], 0) == "3 min left: a epoch 3"
    assert sweep_status([], 0, 2) == "another process is training 2 of the runs; waiting until these runs end"


@pytest.mark.slow
def test_two_hundred_tiny_runs_pass_through_one_sweep(tmp_path, monkeypatch):
    """Every run ends immediately with an error, so the measured time is that of the sweep without training."""
    jobs = plan("tiny", tmp_path / "runs", {f"v{index}": {} for index in range(200)}, [0], TINY)
    jobs = [
        sweeping.Job(job.run_dir, str(tmp_path / "nowhere"), job.params) for job in jobs
    ]  # each fails immediately
    begun = time.monotonic()
    outcomes = list(sweeping.sweep(None, jobs, workers=2))
    assert sorted(outcome.run_dir for outcome in outcomes) == sorted(job.run_dir for job in jobs)
    assert not any(outcome.ok for outcome in outcomes)
    assert time.monotonic() - begun < 240


if __name__ == "__main__":
    kill_after_every_write(Path(sys.argv[1]))
