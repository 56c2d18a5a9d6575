"""Short runs of the soak test (tests/soak.py) and the fuzzer (tests/fuzz.py). Longer runs are not part of the tests."""

import ast
import collections
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOAK = """
import sys, torch
from pathlib import Path
import soak
torch.set_num_threads(1)
done = soak.soak(Path(sys.argv[1]), 6, 3, fractions={"training": 0.5, "cache": 0.5}, writes=["cache"])
print(*done.faults, sep="\\n")
print(soak.summary(done))
"""
FUZZ = """
import logging, torch
import fuzz
torch.set_num_threads(1)
logging.disable(logging.WARNING)
counts, faults = fuzz.fuzz(400, 1)
print(*faults, fuzz.table(counts), sep="\\n")
"""


def output(code, *arguments):
    """Return the output of code in a new process, because the code forks, sets alarms and needs no shape checks."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_training_and_cache_end_as_if_they_had_not_been_killed(tmp_path):
    text = output(SOAK, tmp_path)
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines() if line[-1:].isdigit()]
    counts = collections.defaultdict(int, {name.strip(): int(count) for name, count in lines})
    assert counts["kills"] >= 6 + counts["at a write"], text
    assert counts["at a write"] > 0
    assert counts["equal"] == counts["cycles"], text


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs signals and named pipes")
def test_random_inputs_are_used_or_refused_in_one_line():
    text = output(FUZZ)
    *_, total = text.splitlines()
    success, refused, *faults = map(int, total.split()[1:])
    assert success > 20, text
    assert refused > 100, text
    assert faults == [0, 0, 0], text


def test_every_test_that_the_readme_names_exists():
    """The table of the section about crashes has one test per row, in the form `file.py`: `test_name`."""
    text = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    section = text.split("## What happens after a crash?")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    named = [re.search(r"`(test_\w+\.py)`: `(test_\w+)` \|$", row) for row in rows]
    assert len(rows) > 10
    assert all(named), rows
    for match in named:
        functions = ast.parse((TESTS / match[1]).read_text(encoding="utf-8")).body
        assert match[2] in {node.name for node in functions if isinstance(node, ast.FunctionDef)}
