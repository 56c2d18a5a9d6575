"""Commands that copy runs, draw the README's pictures and reproduce all results."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cvae_lab.runs.commands import WORKERS, Add, add_parameters, benchmark, log_line, values

REST = ("bench", "tables", "notebooks")
"""Records that are not studies."""


def add_commands(add: Add) -> None:
    export = add(
        "export", "copy finished runs without checkpoints, so that the copies are small enough to commit",
        "runs/reference figures/reference",
    )  # fmt: skip
    export.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs")
    export.add_argument("out", type=Path, metavar="OUT", help="folder of the copies")
    pictures = add("pictures", "draw the pictures of the README", "figures")
    pictures.add_argument("out", type=Path, metavar="OUT", help="folder of the pictures")
    text = "folder of runs; the run with the best score is shown"
    pictures.add_argument("--runs", type=Path, default=Path("figures/reference"), help=text)

    again = add(
        "reproduce", "reproduce all committed results: runs, tables, pictures, notebooks",
        "--dry-run", "--course data/LAB4_Dataset --workers 8",
        "--root copy --data tiny --seeds 0 -p epochs 1",
    )  # fmt: skip
    again.add_argument("--dry-run", action="store_true", help="only print the runs and their expected time")
    again.add_argument("--root", type=Path, default=Path(), help="repository whose results are replaced")
    text = "folder for the runs; it may contain runs of earlier commits"
    again.add_argument("--out", type=Path, default=Path("runs/reproduce"), help=text)
    again.add_argument("--workers", type=int, default=0, help=WORKERS)
    names = "studies, bench, tables, notebooks; default: all"
    again.add_argument("--only", nargs="+", default=[], metavar="NAME", help=names)
    text = "folder of the course data; default: the record course.csv stays unchanged"
    again.add_argument("--course", default="", metavar="DATA", help=text)
    again.add_argument("--data", default="", help="data of a trial run; default: the data of each study")
    text = "seeds of a trial run; default: the seeds of each study"
    again.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=text)
    add_parameters(again)


def export(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import best_run, find_runs
    from cvae_lab.runs.reference import export

    best = best_run(options.runs)
    for run in find_runs(options.runs):
        print(f"Wrote {export(run, options.out, pictures=run == best)}")


def pictures(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import best_run
    from cvae_lab.runs.reference import write_pictures

    for picture in write_pictures(options.out, best_run(options.runs)):
        print(f"Wrote {picture}")


def reproduce(options: argparse.Namespace) -> int:
    """Reproduce the results; return 1 if a run or a notebook failed."""
    from cvae_lab.config import ConfigError
    from cvae_lab.runs.result import commit_to_reproduce, provenance

    changes = values(options.params, ("data", "seed"))
    is_trial = bool(changes or options.data or options.seeds)
    if is_trial and options.root.resolve() == Path.cwd() and not options.dry_run:
        raise ConfigError(
            "-p, --data and --seeds are for a trial run, which must not replace the records of this folder; give "
            "another --root."
        )
    makes_runs = not options.only or set(options.only) - {"tables", "notebooks"}
    is_record = makes_runs and not (options.dry_run or is_trial)
    commit = commit_to_reproduce() if is_record else provenance()["commit"]
    out = options.out.resolve() / (f"trial-{commit}" if is_trial else commit)
    todo = _planned(options, out, changes)
    return 0 if options.dry_run else _reproduce(options, out, todo)


def _planned(options: argparse.Namespace, out: Path, changes: dict[str, Any]) -> list[Any]:
    """Return the studies to run, and print how many runs are left and how long they take."""
    from cvae_lab.runs.reproduce import steps

    only = [name for name in options.only if name not in REST]
    if options.only and not only:
        return []
    workers = options.workers or os.cpu_count() or 1
    trial = {"data": options.data, "seeds": options.seeds or ()}
    todo = steps(options.root, out, workers, only, options.course, **trial, **changes)
    for step in todo:
        counts = f"{len(step.to_do):>4} of {len(step.jobs):>3} runs to do, {step.workers} in parallel"
        copies = f", {len(step.copies)} copied" if step.copies else ""
        print(f"{step.name:<12}{counts}, about {step.minutes_left:.0f} min{copies}")
    log_line(
        f"About {sum(step.minutes_left for step in todo):.0f} min of training; the runs are written to {out}"
    )
    return todo


def _reproduce(options: argparse.Namespace, out: Path, todo: list[Any]) -> int:
    from cvae_lab.runs.reproduce import reproduce, write_tables

    rest = [name for name in REST if not options.only or name in options.only]
    failures = reproduce(todo, options.root, log_line)
    if "bench" in rest:
        _measure(options.root, out)
    for file in write_tables(options.root) if "tables" in rest else ():
        print(f"Wrote {file}")
    if "notebooks" in rest:
        failures += _execute_notebooks(options.root, out)
    if failures:
        print(
            f"{len(failures)} runs or notebooks failed; run the same command again to repeat only these:",
            *failures,
            sep="\n  ",
        )
    return 1 if failures else 0


def _measure(root: Path, out: Path) -> None:
    """Run `bench`, unless `out`/bench.json is there, and copy its table to the figures."""
    if not (out / "bench.json").exists():
        plain = {"gpu": None, "scaling": False, "sizes": False}
        benchmark.bench(
            argparse.Namespace(presets=["handout", "compact"], repeats=3, out=out / "bench.json", **plain)
        )
    shutil.copyfile(out / "bench.json", root / "figures" / "bench.json")


def _execute_notebooks(root: Path, out: Path) -> list[str]:
    """Execute the committed notebooks in place; return one line for each failed notebook.

    A file in `out`/notebooks marks each notebook that is done.
    """
    marks, failures = out / "notebooks", []
    marks.mkdir(parents=True, exist_ok=True)
    for notebook in sorted((root / "notebooks").glob("**/[0-9]*.ipynb")):
        mark = marks / notebook.relative_to(root / "notebooks").as_posix().replace("/", "-")
        if not mark.exists():
            command = [sys.executable, root / "tests" / "execute_notebook.py", notebook]
            if subprocess.run(command, check=False).returncode:
                failures.append(f"{notebook}: a cell failed")
                continue
            mark.touch()
            log_line(f"Executed {notebook}")
    return failures
