"""The student edition contains no solutions or hidden tests. The autograder gives points to correct answers only."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

from cvae_lab.__main__ import main
from cvae_lab.teaching import exercises, exercises_05_09, exercises_10  # noqa: F401  # they register their checks
from cvae_lab.teaching.check import CHECKS
from cvae_lab.teaching.student import StudentEditionError, build, check, teacher_notebook

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
REGION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION", re.MULTILINE | re.DOTALL)


def merged(file):
    return teacher_notebook(
        nbformat.read(file, 4), nbformat.read(file.parent / "solutions" / file.name, 4)
    )  # fmt: skip


def graded(notebook, kind):
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get(kind)]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_without_solutions_and_hidden_tests_a_notebook_is_the_committed_one(file):
    committed = nbformat.read(file, 4)
    for original, cell in zip(committed.cells, merged(file).cells, strict=True):
        source = REGION.sub(r"\1return None", cell.source)
        source = re.sub(r"\n### BEGIN HIDDEN TESTS.*### END HIDDEN TESTS", "", source, flags=re.DOTALL)
        if "Solutions: [" in original.source:
            assert "solutions/" not in source
        else:
            assert source == original.source.replace("../figures/", "figures/")


def test_every_check_of_the_package_is_graded_once():
    ids = [cell.metadata.nbgrader.grade_id for file in NOTEBOOKS for cell in graded(merged(file), "grade")]
    assert sorted(ids) == sorted(CHECKS)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_metadata_are_valid_for_nbgrader(file):
    notebook = merged(file)
    nbformat.validate(notebook)
    cells = graded(notebook, "grade") + graded(notebook, "solution")
    assert len({cell.metadata.nbgrader.grade_id for cell in cells}) == len(cells)
    for cell in graded(notebook, "grade"):
        assert cell.metadata.nbgrader.points == 1
        assert cell.metadata.nbgrader.locked
        assert "BEGIN HIDDEN TESTS" in cell.source
    for cell in graded(notebook, "solution"):
        assert not cell.metadata.nbgrader.locked
        compile(cell.source, file.name, "exec")
    assert not any(cell.get("outputs") for cell in notebook.cells)


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_a_solution_imports_what_it_needs():
    solutions = notebook_of(
        "import math\nimport numpy as np\nfrom itertools import pairwise",
        "def f(x):\n    return math.exp(x) + len(list(pairwise(x)))",
    )
    stub = "def f(x):\n    return None"
    cell = teacher_notebook(notebook_of(stub, "exercises.check_00_1(f)"), solutions).cells[0]
    assert cell.source.splitlines()[1:5] == [
        "    ### BEGIN SOLUTION",
        "    import math",
        "    from itertools import pairwise",
        "    return math.exp(x) + len(list(pairwise(x)))",
    ]


def test_an_exercise_without_solution_or_check_is_refused():
    stub, call = "def f(x):\n    return None", "exercises.check_00_1(f)"
    with pytest.raises(StudentEditionError, match="f has no solution"):
        teacher_notebook(notebook_of(stub, call), notebook_of("import math"))
    for cells in ((stub,), (call,)):
        with pytest.raises(StudentEditionError, match="has no stub or no check"):
            teacher_notebook(notebook_of(*cells), notebook_of("def f(x):\n    return x"))


def test_the_command_says_how_to_install_nbgrader(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["student", str(tmp_path / "course")]) == 1
    assert (
        capsys.readouterr().err == "cvae-lab: nbgrader is not installed; run pip install 'cvae-lab[teach]'\n"
    )
    assert not (tmp_path / "course").exists()


def test_an_installed_package_without_solutions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(StudentEditionError, match="contains no solutions"):
        build(tmp_path / "course", source=tmp_path / "notebooks")
    assert not (tmp_path / "course").exists()


@pytest.mark.slow
def test_the_autograder_gives_full_marks_to_a_correct_submission_only():
    """Each of two notebooks is graded for a correct, an empty and a wrong submission."""
    if importlib.util.find_spec("nbgrader") is None:
        pytest.skip("nbgrader is not installed: pip install 'cvae-lab[teach]'")
    table = check(["00_start_here", "01_derivation"]).set_index("student")
    assert table["max_score"].tolist() == [5, 5, 5]
    assert table["score"].to_dict() == {"correct": 5, "empty": 0, "wrong": 0}
