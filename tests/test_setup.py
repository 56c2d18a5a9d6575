"""The set-up files agree with each other, and README with the results it shows."""

import re
import tomllib
from pathlib import Path

import pandas as pd
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cvae_lab.runs.folder import find_runs
from cvae_lab.runs.tables import END, START, compare, markdown, study_markdown

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


def test_every_dependency_says_why():
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


def test_readme_names_real_make_targets():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


TABLES = ("ablation", "minutes", "course")


def test_readme_shows_the_tables_of_reference_runs_and_studies():
    text, studies = (ROOT / "README.md").read_text(), ROOT / "figures/studies"
    tables = {name: study_markdown(pd.read_csv(studies / f"{name}.csv")) for name in TABLES}
    for name, table in {
        "results": markdown(compare(find_runs(ROOT / "figures/reference"))),
        **tables,
    }.items():
        assert text.split(START.format(name), 1)[1].split(END.format(name), 1)[0].strip() == table
