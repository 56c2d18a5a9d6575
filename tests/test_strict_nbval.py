"""The notebook tests of `make test` fail if a cell did not run or took almost as long as the timeout."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

TESTS = Path(__file__).parent
CATCHES = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass"


def run_nbval(tmp_path, monkeypatch, cells, timeout):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "n.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "strict_nbval",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--nbval", "--nbval-current-env", f"--nbval-cell-timeout={timeout}", "n.ipynb"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "timeout", "message"),
    [([CATCHES, "assert False"], 3, "timed out"), (["import time; time.sleep(3)"], 4, "a cell may take 2 s")],
)
def test_a_cell_at_or_near_the_timeout_fails_the_run(tmp_path, monkeypatch, cells, timeout, message):
    result = run_nbval(tmp_path, monkeypatch, cells, timeout)
    assert result.returncode == 1, result.stdout
    assert message in result.stdout


@pytest.mark.slow
def test_quick_cells_pass(tmp_path, monkeypatch):
    result = run_nbval(tmp_path, monkeypatch, ["x = 1", "assert x == 1"], 30)
    assert result.returncode == 0, result.stdout
