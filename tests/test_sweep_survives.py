"""If a worker process is killed during a sweep, its run is resumed, and every run ends exactly once."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from cvae_lab.runs.folder import RunFolder, find_runs

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweep")]


def worker_of_a_running_kernel(parent):
    """Return the Dask worker whose child process is a notebook kernel."""
    for process in psutil.Process(parent).children(recursive=True):
        if "ipykernel_launcher" in " ".join(process.cmdline()):
            return process.parent()
    return None


def test_the_run_of_a_killed_worker_is_resumed(tmp_path, start_sweep):
    out = tmp_path / "runs"
    sweep = start_sweep(out, ["none", "constant"], epochs=8, eval_every=8)
    try:
        deadline = time.monotonic() + 180
        while not list(out.glob("*/last.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(worker_of_a_running_kernel(sweep.pid).pid, signal.SIGKILL)
        text, _ = sweep.communicate(timeout=300)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, text
    assert text.count(": done (") == 2
    assert len(find_runs(out)) == 2
    for strategy in ("none", "constant"):
        history = RunFolder(out / f"{strategy}-seed0").history
        assert history["epoch"].tolist() == list(range(1, 9))
        assert history["step"].tolist() == sorted(set(history["step"]))
