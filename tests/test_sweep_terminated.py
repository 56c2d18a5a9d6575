"""SIGTERM ends a sweep, its Dask worker and its papermill notebook with one line and exit status 143."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from cvae_lab.data.files import TEMPORARY
from cvae_lab.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweep")]


def is_kernel(process):
    """Return whether a process executes a notebook."""
    try:
        return "ipykernel_launcher" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_sigterm_ends_a_sweep_and_its_notebook_and_leaves_no_process(tmp_path, start_sweep):
    out = tmp_path / "runs"
    sweep = start_sweep(out, ["none"], epochs=200, eval_every=100)
    try:
        deadline = time.monotonic() + 280
        children = []
        while not any(map(is_kernel, children)) and time.monotonic() < deadline:
            time.sleep(0.05)
            children = psutil.Process(sweep.pid).children(recursive=True)
        assert any(map(is_kernel, children))
        sweep.send_signal(signal.SIGTERM)
        text, errors = sweep.communicate(timeout=280)
    finally:
        sweep.kill()
    assert sweep.returncode == 143, text + errors
    assert [line for line in errors.splitlines() if line.startswith("cvae-lab: ")] == [
        "cvae-lab: terminated; to continue, run the same command again; for `train`, add --resume."
    ]
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []  # neither a worker nor a notebook kernel stays
    run = RunFolder(out / "none-seed0")
    assert not run.done
    assert not (run.path / "notebook.ipynb").exists()
    run.lock()  # the folder is not locked any more, and lock removes the files of dead writers
    assert not [path for path in run.path.iterdir() if TEMPORARY.fullmatch(path.name)]
    run.unlock()
