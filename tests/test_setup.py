"""Consistency of the set-up files, and of the committed tables with the committed results."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cvae_lab.bench.gpu.report import gpu_markdown, read_gpu
from cvae_lab.runs.folder import find_runs
from cvae_lab.runs.reference import learning_runs, learning_summary
from cvae_lab.runs.reproduce import TABLES
from cvae_lab.runs.tables import END, RESULTS, START, STUDY, markdown, runs_table

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(pin) for name, pin in (line.split("==") for line in lines)}


def test_environment_is_python_pip_and_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, from_pip = environment["dependencies"]
    assert Requirement(python).specifier == Requirement(f"python{PROJECT['requires-python']}").specifier
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", "-e ."]}


def test_every_dependency_is_pinned_within_its_range():
    pins = _pins()
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_every_dependency_has_a_comment_with_its_purpose():
    block = (ROOT / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("]", 1)[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert all("#" in line for line in lines)


def test_ci_calls_make_test_only():
    commands = [
        line
        for line in (ROOT / ".ci/run").read_text().splitlines()
        if line and not line.startswith(("#", "set", "cd"))
    ]
    assert commands == ["CI=true exec make test"]


def test_the_make_targets_in_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


def _tables():
    """Yield the file of every committed table, the table's name, and its text computed from the records."""
    yield ROOT / "README.md", "results", markdown(runs_table(find_runs(ROOT / "figures/reference")), RESULTS)
    for name in TABLES:
        table = pd.read_csv(ROOT / "figures/studies" / f"{name}.csv")
        yield ROOT / "figures/README.md", name, markdown(table, STUDY)
    runs = learning_runs(ROOT / "figures/handout")
    yield ROOT / "figures/README.md", "handout", "\n".join(f"- {learning_summary(run)}" for run in runs)
    yield ROOT / "figures/README.md", "gpu", gpu_markdown(read_gpu(ROOT / "figures/gpu.json"))


def test_committed_tables_match_the_committed_records():
    for file, name, table in _tables():
        text = file.read_text()
        assert text.split(START.format(name), 1)[1].split(END.format(name), 1)[0].strip() == table


def test_the_text_about_initial_weights_agrees_with_its_record():
    table = pd.read_csv(ROOT / "figures/studies/initial_weights.csv")
    assert (table["psnr_mean"] < table["baseline_static"]).all()
    means = table.groupby("variant")[["heldout_psnr", "psnr_mean"]].mean()
    gain = means.loc["pretrained-300-frames-2-minutes"] - means.loc["random-300-frames-2-minutes"]
    assert 0 < gain["heldout_psnr"] < gain["psnr_mean"] < 2
    untrained = means.loc["pretrained-without-training"]
    assert untrained["heldout_psnr"] == means["heldout_psnr"].min()
    assert untrained["psnr_mean"] == means["psnr_mean"].max()


def _code_blocks(heading):
    """Return the Python code blocks in a section of README."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def test_training_runs_with_the_example_schedule_of_readme(tmp_path):
    """Append the code in README to a copy of the package, and train with the new schedule."""
    shutil.copytree(ROOT / "cvae_lab", tmp_path / "cvae_lab", ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = _code_blocks("Add your own KL schedule")
    with (tmp_path / "cvae_lab/schedules.py").open("a") as file:
        file.write("\n\n" + code)
    options = {"kl_strategy": "late", "epochs": "2", "width": "8", "clips_per_epoch": "10", "eval_every": "2"}
    words = [word for pair in options.items() for word in ("-p", *pair)]
    command = [sys.executable, "-m", "cvae_lab", "train", "run", "--data", "tiny", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert pd.read_csv(tmp_path / "run/history.csv")["beta"].tolist() == [0.0, 1.0]
