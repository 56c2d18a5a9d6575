"""The layout of the package: few entries, small subpackages, imports in one direction."""

import ast
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
    "folder", [path for path in PACKAGE.iterdir() if path.is_dir()], ids=lambda path: path.name
)
def test_a_subpackage_has_at_most_8_modules(folder):
    modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 8


def _imported_entries(file: Path):
    """Entries of the package that a file imports at module level or inside a function."""
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
