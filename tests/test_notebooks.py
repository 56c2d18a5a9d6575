"""Test the numbering, links, parameters, execution order, sizes and exercises of the notebooks."""

import ast
import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

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
    assert "*Run time with the committed settings:" in first.source
    assert second.source.startswith("**After this notebook you can**")
    assert third.metadata["tags"] == ["parameters"]
    for statement in ast.parse(third.source).body:
        ast.literal_eval(statement.value)  # literals only, so that papermill can replace them
    assert all("#" in line for line in third.source.splitlines())


def test_numbered_without_a_gap():
    assert [path.name[:3] for path in SERIES] == [f"{number:02}_" for number in range(11)]


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


def _ignores_output(cell):
    return "NBVAL_IGNORE_OUTPUT" in cell.source or "nbval-ignore-output" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_each_cell_whose_output_is_not_compared_has_an_assert(path):
    for cell in filter(_ignores_output, _cells(path, "code")):
        statements = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
        assert any(not isinstance(node.test, ast.Constant) for node in statements), cell.source


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_each_interactive_output_has_a_picture_that_every_viewer_shows(path):
    """GitHub shows PNGs, but no SVG, script or iframe. VS Code shows no HTML in a folder that is not trusted."""
    for output in (o for c in _cells(path, "code") for o in c.outputs if "data" in o):
        interactive = output.data.get("text/plain", "").startswith("Run this cell for the interactive")
        graphic = set(output.data) & {"image/svg+xml", "image/gif", "application/javascript"}
        html = re.search("<(img|svg|iframe|script|video)", output.data.get("text/html", ""))
        if interactive or graphic or html:
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            assert picture.width > 30
            assert len(output.metadata["image/png"]["alt"]) > 10


def _exercises(path):
    """Return the cells that call a check of `cvae_lab.teaching`, with the names of the checks as keys."""
    calls = [(re.match(r"exercises\.(check_\d\d_\d)\(", c.source), c) for c in _cells(path, "code")]
    return {call[1]: cell for call, cell in calls if call}


def _printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_exercises_are_numbered_and_have_hints(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    checks = list(_exercises(path))
    assert len(checks) >= 2
    assert checks == [f"check_{path.name[:2]}_{k}" for k in range(1, len(checks) + 1)]
    assert text.count("**Exercise ") == text.count("<summary>Hint") == len(checks)


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_an_unsolved_exercise_prints_one_line(path):
    for cell in _exercises(path).values():
        assert re.fullmatch(
            r"not yet: \w+ returns None; replace its body with your answer\.\n", _printed(cell)
        )


@pytest.mark.parametrize("path", SERIES, ids=_name)
def test_the_solutions_pass_the_same_checks(path):
    solved = _exercises(FOLDER / "solutions" / path.name)
    assert list(solved) == list(_exercises(path))
    for cell in solved.values():
        assert re.fullmatch(r"right: .+\n", _printed(cell))
