"""The commands of the command line. Each function gets the parsed options and returns an exit status or None."""

import argparse
import ast
import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvae_lab.config import ConfigError, RunConfig, parameters


def values(pairs: Sequence[Sequence[str]], reserved: Sequence[str] = ("data",)) -> dict[str, Any]:
    """Return the parameters given by -p. A value that is a Python literal is evaluated; other values are text.

    Args:
        reserved: names that the command sets itself. Raises ConfigError if one of them is given.
    """
    for name, _ in pairs:
        if name in reserved:
            raise ConfigError(
                f"this command does not accept -p {name}, because it sets {name} itself; see its --help."
            )
    return {name: _literal(text) for name, text in pairs}


def _literal(text: str) -> Any:  # noqa: ANN401
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def params(options: argparse.Namespace) -> None:
    """Print the parameters of `config` as text of 80 columns. Raises ValueError for an unknown name."""
    found = [p._replace(name="preset") if p.name == "name" else p for p in parameters()]
    if unknown := sorted(set(options.names) - {p.name for p in found}):
        raise ValueError(f"There is no parameter {unknown[0]!r}; `cvae-lab params` lists all parameters.")
    for p in found:
        if not options.names or p.name in options.names:
            default = '""' if p.default == "" else str(p.default)
            limits = " | ".join(map(str, p.choices)) or f"{p.kind}{f', {p.range}' if p.range else ''}"
            print(f"{p.name}: {limits}; default {default}")
            print(textwrap.fill(p.meaning, 78, initial_indent="    ", subsequent_indent="    "))


def synthetic(options: argparse.Namespace) -> None:
    from cvae_lab.data import load, write_folder

    write_folder(load(options.size, options.seed, height=options.height), options.out)
    size = f"{options.height} x {2 * options.height} pixels"
    print(f"Wrote the synthetic data set ({options.size}, seed {options.seed}, {size}) to {options.out}.")


def check(options: argparse.Namespace) -> None:
    from cvae_lab.data import load
    from cvae_lab.data.check import report
    from cvae_lab.data.video.report import read_report

    print(
        report(load(options.data, height=options.height)).to_string(
            index=False, float_format="%.2f", na_rep="-"
        )
    )
    print("\nstatic, copy_previous, mean_frame: mean PSNR (dB) of three predictions without a model.")
    if video_report := read_report(options.data):
        print("\nThis data set was made from a video:", *video_report.lines, sep="\n")


def video(options: argparse.Namespace) -> None:
    from cvae_lab.data.video import make_data_set

    names = ("file", "out", "pose", "fps", "seconds", "fit", "max_gap", "smooth")
    crop = tuple(options.crop) if options.crop else None
    size = tuple(map(int, options.size.split("x")))
    report = make_data_set(**{name: getattr(options, name) for name in names}, size=size, crop=crop)
    print(
        *report.lines,
        f"Wrote {options.out}; open {options.out / 'index.html'} and check the labels before training.",
        sep="\n",
    )


def video_setup(options: argparse.Namespace) -> None:
    from cvae_lab.data.video import estimator

    folder = estimator.environment()
    print(f"Installing {estimator.MEDIAPIPE} in {folder}; about 140 MB are downloaded.", flush=True)
    estimator.install(options.python)
    print(f"The pose estimator is ready in {folder}.")


def train(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import train_run
    from cvae_lab.training import distributed

    given = values(options.params)
    if options.minutes:
        given["minutes"] = options.minutes
    config = RunConfig.from_params(options.data, **given)
    with distributed.process_group():
        train_run(options.run_dir, config, options.resume, options.tensorboard)


def sweep(options: argparse.Namespace) -> int:
    from cvae_lab.runs.sweep import template

    variants = {name: {"kl_strategy": name} for name in options.strategies}
    # kl_target is reserved, because a controller would then set the KL weight and the strategy would have no effect.
    given = values(options.params, ("data", "seed", "kl_strategy", "kl_target"))
    return _run_all(template(), options, options.data, variants, options.seeds, given)


def study(options: argparse.Namespace) -> int:
    from cvae_lab.runs.studies import STUDIES

    chosen = STUDIES[options.name]
    wanted = options.variants or list(chosen.variants)
    if unknown := [name for name in wanted if name not in chosen.variants]:
        raise ConfigError(
            f"study {options.name} has no variant {unknown[0]!r}; it has {', '.join(chosen.variants)}."
        )
    print(chosen.about)
    given = chosen.base | values(options.params, ("data", "seed"))
    variants = {name: chosen.variants[name] for name in wanted}
    return _run_all(None, options, chosen.data, variants, options.seeds or chosen.seeds, given)


def _run_all(
    template: Path | None,
    options: argparse.Namespace,
    data: str,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    params: dict[str, Any],
) -> int:
    from cvae_lab.data import load
    from cvae_lab.runs.studies import plan
    from cvae_lab.runs.sweep import sweep

    jobs = plan(data, options.out, variants, seeds, params)
    # Load the data once before the workers start. This fills the cache, and an error in the folder is raised here.
    load(data, required=("train",), height=params.get("height", 32))
    print(f"{len(jobs)} runs to {options.out}", flush=True)
    failed = 0
    log = _log_line
    for count, outcome in enumerate(sweep(template, jobs, options.workers, options.scheduler, log), 1):
        failed += not outcome.ok
        state = outcome.message if outcome.ok else f"FAILED: {outcome.message}"
        took = f" ({outcome.minutes:.1f} min)" if outcome.minutes else ""
        log(f"[{count}/{len(jobs)}] {Path(outcome.run_dir).name}: {state}{took}")
    return 1 if failed else 0


def _log_line(text: str) -> None:
    print(text, flush=True)


def predict(options: argparse.Namespace) -> None:
    from cvae_lab.runs.predict import predict_run

    predict_run(
        options.runs,
        options.data,
        options.seed,
        options.csv,
        _log_line,
        out=options.out,
        plain=options.plain,
        answers=options.answers,
        output=options.output,
    )


def diagnose(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import find_runs
    from cvae_lab.runs.tables import latent_rows, write_csv

    rows = []
    for name, summary, row in latent_rows(find_runs(options.runs)):
        _log_line(f"{name}: {summary}")
        rows.append(row)
        if options.out:  # after each run, so that an interrupted command has written the finished rows
            write_csv(options.out, rows)
    if options.out:
        print(f"Wrote {options.out}.")


def compare(options: argparse.Namespace) -> None:
    import pandas as pd

    from cvae_lab.runs import tables
    from cvae_lab.runs.folder import find_runs

    if options.runs.suffix == ".csv":
        if options.csv:
            raise ValueError(f"{options.runs} is already a table; use --csv only with a folder of runs.")
        text = tables.markdown(pd.read_csv(options.runs), tables.STUDY)
        print(text)
        if options.into:
            tables.into_markdown(options.into, options.runs.stem, text)
        return
    runs = find_runs(options.runs)
    table = tables.runs_table(runs)
    print(tables.terminal(table))
    if options.csv:
        tables.write_csv(options.csv, [tables.run_row(run) for run in runs])
        print(f"Wrote {options.csv}.")
    elif options.into:
        tables.into_markdown(options.into, "results", tables.markdown(table, tables.RESULTS))
        print(f"Wrote the table into {options.into}.")
    else:
        for picture in tables.write_pictures(runs, table, options.runs):
            print(f"Wrote {picture}")


def bench(options: argparse.Namespace) -> None:
    from cvae_lab.bench import HEAD, bench, write

    about = {"command": "python -m cvae_lab bench", **_provenance()}
    if options.gpu:
        _bench_gpu(options, about)
        return
    if options.scaling:
        _bench_scaling(options, about)
        return
    if options.sizes:
        _bench_sizes(options, about)
        return
    print(HEAD)
    rows = []
    for row in bench(tuple(options.presets), options.repeats):
        rows.append(row)
        _log_line(str(row))
    if options.out:
        write(options.out, rows, about)
        print(f"Wrote {options.out}.")


def _provenance() -> dict[str, str]:
    """Versions and commit. Empty if the package or pandas is missing, because `bench --gpu` must run without them."""
    try:
        from cvae_lab.runs.result import provenance
    except ImportError:
        return {}
    with contextlib.suppress(ImportError):
        return provenance()
    return {}


def _bench_gpu(options: argparse.Namespace, about: dict[str, str]) -> None:
    from cvae_lab.bench.gpu import gpu
    from cvae_lab.bench.table import gpu_table

    about["command"] += " --gpu"
    rows = gpu(options.gpu, options.device, options.tiny, options.budget, options.only, about, _log_line)
    print("\n".join(["", *gpu_table(rows, with_targets=not options.tiny), f"Wrote {options.gpu}."]))


def _bench_scaling(options: argparse.Namespace, about: dict[str, str]) -> None:
    from cvae_lab.bench.scaling import HEAD, TINY, as_json, scaling
    from cvae_lab.data.files import write_text

    print(HEAD)
    rows = []
    for row in scaling(TINY if options.tiny else None):
        rows.append(row)
        _log_line(str(row))
    if options.out:
        about["command"] += " --scaling"
        write_text(options.out, as_json(rows, about))
        print(f"Wrote {options.out}.")


def _bench_sizes(options: argparse.Namespace, about: dict[str, str]) -> None:
    import json
    from dataclasses import asdict

    from cvae_lab.bench.sizes import HEAD, sizes
    from cvae_lab.data.files import write_text

    print(HEAD)
    rows = []
    for row in sizes(repeats=options.repeats):
        rows.append(asdict(row))
        _log_line(str(row))
    if options.out:
        about["command"] += " --sizes"
        write_text(options.out, json.dumps({**about, "rows": rows}, indent=2))
        print(f"Wrote {options.out}.")


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


def reproduce(options: argparse.Namespace) -> None:
    from cvae_lab.runs import reference
    from cvae_lab.runs.result import commit_to_reproduce, provenance

    changes = values(options.params, ("data", "seed"))
    is_trial = bool(changes or options.data or options.seeds)
    if is_trial and options.root.resolve() == Path.cwd() and not options.dry_run:
        raise ConfigError(
            "-p, --data and --seeds are for a trial run, which must not replace the records of this folder; give "
            "another --root."
        )
    commit = provenance()["commit"] if options.dry_run or is_trial else commit_to_reproduce()
    out = options.out.resolve() / (f"trial-{commit}" if is_trial else commit)
    rest = [name for name in ("bench", "tables", "notebooks") if not options.only or name in options.only]
    only = [name for name in options.only if name not in rest]
    extra = {"data": options.data, "seeds": options.seeds or ()}
    workers = options.workers or os.cpu_count() or 1
    todo = []
    if only or not options.only:
        todo = reference.steps(options.root, out, workers, only, options.course, **extra, **changes)
    for step in todo:
        counts = f"{len(step.to_do):>4} of {len(step.jobs):>3} runs to do, {step.workers} at a time"
        print(f"{step.name:<12}{counts}, about {step.minutes_left / 60:.1f} h")
    _log_line(
        f"About {sum(step.minutes_left for step in todo) / 60:.1f} h of training; the runs are written to {out}"
    )
    if options.dry_run:
        return
    reference.reproduce(todo, options.root, _log_line)
    if "bench" in rest and not (out / "bench.json").exists():
        plain = {"gpu": None, "scaling": False, "sizes": False}
        bench(argparse.Namespace(presets=["handout", "compact"], repeats=3, out=out / "bench.json", **plain))
    if "bench" in rest:
        shutil.copyfile(out / "bench.json", options.root / "figures" / "bench.json")
    for file in reference.write_tables(options.root) if "tables" in rest else ():
        print(f"Wrote {file}")
    if "notebooks" in rest:
        _execute_notebooks(options.root, out)


def _execute_notebooks(root: Path, out: Path) -> None:
    """Execute the committed notebooks in place. A file in `out`/notebooks marks each notebook that is done."""
    marks = out / "notebooks"
    marks.mkdir(parents=True, exist_ok=True)
    for notebook in sorted((root / "notebooks").glob("**/[0-9]*.ipynb")):
        mark = marks / notebook.relative_to(root / "notebooks").as_posix().replace("/", "-")
        if not mark.exists():
            subprocess.run([sys.executable, root / "tests" / "execute_notebook.py", notebook], check=True)
            mark.touch()
            _log_line(f"Executed {notebook}")
