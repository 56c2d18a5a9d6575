"""Build and grade a student edition of the notebooks with nbgrader (`pip install 'cvae-lab[teach]'`).

`build` merges the committed notebooks and their solutions into a course folder of nbgrader. `source/` is for the
teacher and contains solutions and hidden tests. `release/` is for the students and contains neither.

Both nbgrader 0.9.6 and otter-grader 7.0.0 were tried on notebook 00. Both remove solutions and hidden tests. nbgrader
keeps its data in the metadata of cells, so the public checks still run in a notebook without nbgrader. otter-grader
needs raw cells in the source notebook and replaces each check with `grader.check(...)`, so students must install it,
and `otter grade` needs Docker. nbgrader was chosen for these reasons.

Save submissions as `submitted/STUDENT/lab4/`. `autograde` executes the code of the students, so call this function in a
container or on a machine without other data.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from cvae_lab.data.files import replacing, write_text
from cvae_lab.teaching.workspace import copy_records, originals

ASSIGNMENT = "lab4"
CHECK = re.compile(r"exercises\.(?P<check>check_\d+_\d+)\((?P<answer>\w+)(?P<data>.*)\)")
STUB = re.compile(r"def (?P<answer>\w+)\(.*\):\n    return None")
SOLUTIONS_LINK = re.compile(r"Solutions: \[solutions/\d+\]\(solutions/\w+\.ipynb\)\.\s*")
TIMEOUT = 600  # time limit of one cell of a submission in seconds

CONFIG = f"""c = get_config()
c.CourseDirectory.course_id = "{ASSIGNMENT}"
c.ClearSolutions.code_stub = {{"python": "return None"}}
c.ExecutePreprocessor.timeout = {TIMEOUT}
"""
HIDDEN_TEST = """{call}
### BEGIN HIDDEN TESTS
from cvae_lab.teaching.check import CHECKS

outcome = CHECKS["{check}"]({answer}{data})
assert outcome.right, outcome.line
### END HIDDEN TESTS"""
SOLUTION = """{head}
    ### BEGIN SOLUTION
{body}
    ### END SOLUTION"""


class StudentEditionError(RuntimeError):
    """Error while the student edition is built or graded. The message gives the reason."""


def teacher_notebook(notebook: NotebookNode, solutions: NotebookNode) -> NotebookNode:
    """Merge a notebook and the solutions of its exercises to a source notebook of nbgrader.

    Solutions are marked, a hidden test is added to every check, and nbgrader's metadata are added to the cells. Raises
    StudentEditionError if an exercise has no solution or no check.
    """
    answers = _answers(solutions)
    merged = nbformat.from_dict(notebook)
    stubs, checked = set(), set()
    for cell in merged.cells:
        # nbgrader copies only files in the folder of a notebook.
        cell.source = cell.source.replace("../figures/", "figures/")
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            cell.source = SOLUTIONS_LINK.sub("", cell.source)
            continue
        cell.outputs, cell.execution_count = [], None
        if match := CHECK.fullmatch(source):
            checked.add(match["answer"])
            cell.source = HIDDEN_TEST.format(call=source, **match.groupdict())
            cell.metadata["nbgrader"] = _metadata(match["check"], grade=True)
        elif match := STUB.fullmatch(source):
            stubs.add(match["answer"])
            if match["answer"] not in answers:
                raise StudentEditionError(
                    f"exercise {match['answer']} has no solution; add a cell that defines this function"
                )
            head, body = answers[match["answer"]]
            cell.source = SOLUTION.format(head=head, body=body)
            cell.metadata["nbgrader"] = _metadata(f"answer_{match['answer']}", grade=False)
    if stubs != checked:
        raise StudentEditionError(
            f"exercise {sorted(stubs ^ checked)[0]} has no stub or no check; add the missing cell"
        )
    return merged


def _metadata(grade_id: str, grade: bool) -> dict[str, object]:
    """Return metadata of nbgrader's schema 3. A check is locked and gives one point; students can edit an answer."""
    points = {"points": 1} if grade else {}
    kind = {"grade": grade, "solution": not grade, "locked": grade, "task": False}
    return {"schema_version": 3, "grade_id": grade_id, "cell_type": "code", **kind, **points}


def _answers(solutions: NotebookNode) -> dict[str, tuple[str, str]]:
    """Return first line and body of every function in a notebook of solutions.

    The body includes the necessary imports.
    """
    codes = [cell.source for cell in solutions.cells if cell.cell_type == "code"]
    imports = [line for code in codes for line in code.splitlines() if re.match("(import|from) ", line)]
    found = {}
    for code in codes:
        if match := re.match(r"def (\w+)\(", code):
            head, body = code.split("\n", 1)
            needed = [f"    {line}\n" for line in imports if _names(line) & set(re.findall(r"\w+", body))]
            found[match[1]] = head, "".join(needed) + body.rstrip()
    return found


def _names(line: str) -> set[str]:
    """Return the names that an import line defines."""
    parts = re.split(r"\bimport\b", line)[1].split(",")
    return {part.split()[-1].split(".")[0] for part in parts}


def build(folder: Path, names: Sequence[str] = (), source: Path | None = None) -> list[Path]:
    """Write notebooks for the teacher to `folder`/source and for students to `folder`/release.

    Earlier versions in both folders are replaced, and notebooks that are not in `names` are removed. Submissions and
    the gradebook stay unchanged. Returns the files in `folder`/release.

    Args:
        names: names of the notebooks, such as 00_start_here; default: all notebooks.
        source: folder of the committed notebooks and their solutions.
    """
    if importlib.util.find_spec("nbgrader") is None:
        raise StudentEditionError("nbgrader is not installed; run pip install 'cvae-lab[teach]'")
    source = source or originals()
    if not (source / "solutions").is_dir():
        raise StudentEditionError(f"{source} contains no solutions; install cvae-lab again")
    files = [source / f"{name}.ipynb" for name in names] or sorted(source.glob("[0-9]*.ipynb"))
    target = folder / "source" / ASSIGNMENT
    target.mkdir(parents=True, exist_ok=True)
    write_text(folder / "nbgrader_config.py", CONFIG)
    for other in source.glob("[0-9]*.ipynb"):
        if other not in files:
            (target / other.name).unlink(missing_ok=True)
    for file in files:
        if not file.exists():
            raise StudentEditionError(
                f"there is no notebook {file.stem}; see {source} for the names of the notebooks"
            )
        merged = teacher_notebook(nbformat.read(file, 4), nbformat.read(source / "solutions" / file.name, 4))
        with replacing(target / file.name) as temporary:
            nbformat.write(merged, temporary)
    copy_records(source.parent / "figures", target / "figures")
    _nbgrader(folder, "generate_assignment", ASSIGNMENT, "--force")
    return sorted((folder / "release" / ASSIGNMENT).glob("*.ipynb"))


def autograde(folder: Path) -> pd.DataFrame:
    """Run every submission in `folder`/submitted; return a row per student with columns student, score, max_score."""
    _nbgrader(folder, "autograde", ASSIGNMENT, "--force")
    _nbgrader(folder, "export", "--to", "grades.csv")
    table = pd.read_csv(folder / "grades.csv", dtype={"student_id": str})
    return table.rename(columns={"student_id": "student"})[["student", "score", "max_score"]]


def check(names: Sequence[str] = (), source: Path | None = None) -> pd.DataFrame:
    """Test the grading: grade a correct, an empty and a wrong submission in a temporary folder; return the scores.

    Raises StudentEditionError unless the correct submission gets all points and the others get none.
    """
    kinds: dict[str, Callable[[str, str], str]] = {
        "correct": lambda stub, solution: solution,
        "empty": lambda stub, solution: stub,
        "wrong": lambda stub, solution: stub.replace("return None", "return 0.5"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for released in build(folder, names, source):
            merged = nbformat.read(folder / "source" / ASSIGNMENT / released.name, 4)
            for kind, answer in kinds.items():
                submission = nbformat.read(released, 4)
                for cell, solved in zip(submission.cells, merged.cells, strict=True):
                    if cell.metadata.get("nbgrader", {}).get("solution"):
                        cell.source = answer(cell.source, solved.source)
                target = folder / "submitted" / kind / ASSIGNMENT
                target.mkdir(parents=True, exist_ok=True)
                nbformat.write(submission, target / released.name)
        table = autograde(folder)
    scores = table.set_index("student")
    wanted = {"correct": scores["max_score"]["correct"], "empty": 0, "wrong": 0}
    if scores["max_score"]["correct"] == 0 or scores["score"].to_dict() != wanted:
        raise StudentEditionError(
            f"the autograder gave wrong scores: {scores['score'].to_dict()}, not {wanted}"
        )
    return table


def _nbgrader(folder: Path, *arguments: str) -> None:
    """Run nbgrader in a course folder. PATH includes the folder of Python, because nbgrader calls alembic."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error" in line or "ERROR" in line] or [
            "no message"
        ]
        raise StudentEditionError(f"nbgrader {arguments[0]} failed in {folder}: {errors[0].strip()}")
