"""The layout of the package: few entries, small subpackages, imports in one direction."""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cvae_lab"
LEVELS = (
    ("config", "objective", "schedules"),
    ("models", "data"),
    ("rollout",),
    ("evaluation",),
    ("training",),
    ("views",),
    ("runs", "bench"),
    ("teaching",),
    ("__main__", "__init__"),
)
"""Each entry of the package, from the bottom up. A module imports only from its own level and from lower levels."""

LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def test_the_package_has_at_most_14_entries_and_each_has_a_level():
    entries = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 14
    assert entries == set(LEVEL_OF)


@pytest.mark.parametrize(
    "folder",
    [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_a_subpackage_has_at_most_8_modules(folder):
    modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 8


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_at_most_300_lines_and_a_function_at_most_40(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    functions = (
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 40} == {}


def test_every_subpackage_is_installed():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    data = tuple(setuptools["package-dir"])  # notebooks and figures, which lie outside the package
    packages = {name for name in setuptools["packages"] if not name.startswith(data)}
    folders = {file.parent.relative_to(PACKAGE.parent) for file in FILES}
    assert packages == {".".join(folder.parts) for folder in folders}


def _imported_entries(file: Path):
    """Yield the entries of the package that a file imports at module level or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cvae_lab"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


@pytest.mark.parametrize("name", [name for name in LEVEL_OF if name != "__init__"])
def test_imports_go_down_only(name):
    path = PACKAGE / name
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        for imported in _imported_entries(file):
            assert LEVEL_OF[imported] <= LEVEL_OF[name], f"{file.relative_to(PACKAGE)} imports {imported}"
