"""Commands for students and teachers. Each function imports the modules that it uses, so that help is shown quickly."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands for students and teachers to the command line.

    Args:
        add: function that creates a command from a name, a sentence and examples (`__main__._command`).
    """
    _add_doctor(add)
    _add_grading(add)
    _add_report(add)
    _add_notebooks(add)


def _add_doctor(add: Callable[..., argparse.ArgumentParser]) -> None:
    doctor = add(
        "doctor", "report common mistakes in the source code of a trainer, which is never "
        "executed", "trainer.py", "lab4.zip"
    )  # fmt: skip
    doctor.add_argument(
        "source", type=Path, nargs="?", metavar="FILE_OR_FOLDER", help=".py, .ipynb or .zip file, or a folder"
    )
    doctor.add_argument(
        "--measure", type=Path, metavar="CSV",
        help="train small networks with each mistake instead (takes minutes), and write the change in PSNR; default: "
            "no",
    )  # fmt: skip


def _add_grading(add: Callable[..., argparse.ArgumentParser]) -> None:
    grade = add(
        "grade", "score the submissions of a class and report copies; no code in a submission is executed",
        "submissions/ --data data/LAB4_Dataset --out grades.csv",
    )  # fmt: skip
    grade.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER",
        help="a folder with one file or folder per student, or the file or folder of one student",
    )  # fmt: skip
    grade.add_argument("--data", required=True, help="data with the true test frames; required, no default")
    grade.add_argument(
        "--answers", type=Path, metavar="PATH", help="true frames of the test clips; default: true frames in DATA or "
        "in its parent folder"
    )  # fmt: skip
    grade.add_argument("--out", type=Path, metavar="CSV", help="also write the table; default: print only")

    score = add(
        "score", "score predicted frames against true frames, in any of the accepted file formats",
        "submission.csv data/LAB4_Dataset/Demo_Test --out psnr.csv",
    )  # fmt: skip
    formats = "a submission CSV, text file(s) of 2023, folder(s) of PNGs, GIF, video or npz"
    score.add_argument("prediction", type=Path, metavar="PREDICTION", help=formats)
    score.add_argument("answers", type=Path, metavar="ANSWERS", help="true frames, in any of these formats")
    score.add_argument(
        "--frames", type=int, help="frames per clip in text formats; default: the number in the other file, or 630"
    )  # fmt: skip
    score.add_argument(
        "--out", type=Path, metavar="CSV", help="also write a row per frame; default: print only"
    )


def _add_report(add: Callable[..., argparse.ArgumentParser]) -> None:
    report = add(
        "report", "write a lab report: figures and tables of finished runs, and questions that you answer",
        "runs/cyclical-seed0 runs/none-seed0 --out report.html",
    )  # fmt: skip
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, or a folder of runs")
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file of the HTML page; a notebook is written to the "
        "same folder"
    )  # fmt: skip


def _add_notebooks(add: Callable[..., argparse.ArgumentParser]) -> None:
    notebooks = add(
        "notebooks", "copy the notebooks to a folder of your own; your changes there are kept", "work"
    )
    notebooks.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a new folder, or the folder of an earlier call"
    )

    student = add(
        "student", "build the student edition of the notebooks for nbgrader, without solutions and hidden tests",
        "course", "course --only 00_start_here --check 00_start_here",
    )  # fmt: skip
    student.add_argument("folder", type=Path, metavar="FOLDER", help="course folder of nbgrader")
    student.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="only these notebooks; default: all"
    )
    text = (
        "test the grading with a correct, an empty and a wrong submission of these notebooks; default: none"
    )
    student.add_argument("--check", nargs="+", default=[], metavar="NAME", help=text)


def doctor(options: argparse.Namespace) -> None:
    from cvae_lab.teaching.doctor import CANNOT_SEE, costs, examine

    if options.measure:
        costs.measure(costs.Setting(), options.measure, _log_line)
        return
    if options.source is None:
        raise ValueError("doctor needs a .py, .ipynb or .zip file, or a folder")
    unread: list[str] = []
    findings = sorted(examine(options.source, unread.append), key=lambda finding: finding.rule.note)
    measured, conditions = costs.measured()
    shown = {finding.rule.name for finding in findings} & set(measured)
    for finding in findings:
        print(finding, *filter(None, [measured.pop(finding.rule.name, "")]))
    for message in unread:
        print(f"Not examined: {message}.")
    notes = sum(finding.rule.note for finding in findings)
    print(
        f"{len(findings) - notes} mistakes, {notes} notes.", *[conditions] * bool(shown), CANNOT_SEE, sep="\n"
    )


def grade(options: argparse.Namespace) -> None:
    from cvae_lab.data import load
    from cvae_lab.teaching.grading import grade_class

    data = load(options.data, parts=("val", "test"), required=("test",), answers=options.answers)
    table = grade_class(options.folders, data, log=_log_line)
    # The error messages were printed by `grade_class`.
    shown = table[["submission", "mean PSNR", "static baseline", "grade", "similar to"]]
    print("", shown.to_string(index=False, float_format="%.2f", na_rep="-"), sep="\n")
    if options.out:
        _write_table(options.out, table)


def score(options: argparse.Namespace) -> None:
    from cvae_lab.teaching.grading import averages, read_pair, score

    table = score(*read_pair(options.prediction, options.answers, options.frames))
    print(
        f"{len(table)} predicted frames of {table['clip'].nunique()} clips; frame 0 of a clip is not scored."
    )
    for name, value in averages(table).items():
        print(f"{name:<42}{value:>9.3f}{'' if 'SSIM' in name else ' dB'}")
    if options.out:
        _write_table(options.out, table)


def report(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import find_runs
    from cvae_lab.teaching.report import write_report

    runs = [run for path in options.runs for run in find_runs(path)]
    for file in write_report(runs, options.out):
        print(f"Wrote {file}.")


def notebooks(options: argparse.Namespace) -> None:
    from cvae_lab.teaching.workspace import copy_notebooks

    lines = copy_notebooks(options.folder)
    print(*(lines or [f"{options.folder}: every notebook is up to date"]), sep="\n")


def student(options: argparse.Namespace) -> None:
    from cvae_lab.teaching.student import build, check

    released = build(options.folder, options.only)
    print(f"For students: {len(released)} notebook(s) in {released[0].parent}")
    print(f"Teacher's edition, with solutions and hidden tests: {options.folder / 'source'}")
    if options.check:
        print(check(options.check).to_string(index=False))


def _write_table(path: Path, table: "pd.DataFrame") -> None:
    from cvae_lab.data.files import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    print(f"Wrote {path}.")


def _log_line(text: str) -> None:
    print(text, flush=True)
