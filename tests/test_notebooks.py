"""What holds the series together: numbering, links, parameters, execution order, sizes."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SERIES = sorted(FOLDER.glob("*.ipynb"))
ALL = SERIES + sorted((FOLDER / "solutions").glob("*.ipynb"))


def _cells(path, kind):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


def _name(path):
    return path.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_executed_from_top_to_bottom_without_errors(path):
    cells = _cells(path, "code")
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_small_and_free_of_this_machine(path):
    text = path.read_text()
    assert len(text) < 500_000
    outputs = [o for c in _cells(path, "code") for o in c.outputs if "data" in o]
    pictures = [len(o.data["image/png"]) * 3 / 4 for o in outputs if "image/png" in o.data]
    assert all(size < 80_000 for size in pictures)
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"
    assert not re.search(r"/(home|root|work|Users|tmp)/", text)
    assert "widgets" not in nbformat.read(path, 4).metadata


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_opening(path):
    first, second, third = nbformat.read(path, 4).cells[:3]
    assert re.match(rf"# {path.name[:2]} · .+\?\n", first.source)  # one question each
    assert "**Claim:" in first.source
    assert "*Cost as committed:" in first.source
    assert second.source.startswith("**After this notebook you can**")
    assert third.metadata["tags"] == ["parameters"]
    for statement in ast.parse(third.source).body:
        ast.literal_eval(statement.value)  # literals only, so that papermill can replace them
    assert all("#" in line for line in third.source.splitlines())


def test_numbered_without_a_gap():
    assert [path.name[:3] for path in SERIES] == [f"{number:02}_" for number in range(10)]


@pytest.mark.parametrize("index", range(len(SERIES)))
def test_opening_and_closing_name_the_neighbours(index):
    cells = nbformat.read(SERIES[index], 4).cells
    before, after = SERIES[index - 1 : index], SERIES[index + 1 : index + 2]
    assert all(f"← [{path.name[:2]} " in cells[0].source and path.name in cells[0].source for path in before)
    assert all(
        re.search(rf"next: \[{path.name[:2]} .*\]\({path.name}\) →", cells[0].source) for path in after
    )
    assert all(path.name in cells[-1].source for path in after or SERIES[:1])
    assert "## Recap" in cells[-1].source


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_links_lead_somewhere(path):
    for cell in _cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_cells_are_short(path):
    lengths = sorted(len(c.source.splitlines()) for c in _cells(path, "code"))
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[-1] <= 25


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_readme_lists_it(path):
    assert f"notebooks/{path.name}" in (FOLDER.parent / "README.md").read_text()


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_exercises_have_hints_checks_and_solutions(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    checks = re.findall(r"def (check_\w+)\(", text)
    assert len(checks) >= 2
    assert text.count("**Exercise ") == text.count("<summary>Hint") == len(checks)
    solved = nbformat.read(FOLDER / "solutions" / path.name, 4).cells
    for check in checks:
        cell = next(cell for cell in solved if f"def {check}(" in cell.source)
        assert "right" in str(cell.outputs)
        assert f"def {check.removeprefix('check_')}(" in "\n".join(cell.source for cell in solved)


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_an_unsolved_exercise_says_so(path):
    for cell in _cells(path, "code"):
        if "def check_" in cell.source:
            assert "not attempted" in str(cell.outputs)
