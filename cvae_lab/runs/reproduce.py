"""Reproduce all committed records: plan the studies, train equal runs only once, and write the records."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cvae_lab.bench.gpu.report import gpu_markdown, read_gpu
from cvae_lab.config import RunConfig
from cvae_lab.data import load
from cvae_lab.data.files import replacing
from cvae_lab.runs import tables
from cvae_lab.runs.folder import RunFolder, best_run, find_runs
from cvae_lab.runs.reference import (
    export,
    learning_curve_picture,
    learning_runs,
    learning_summary,
    write_pictures,
)
from cvae_lab.runs.result import RunError
from cvae_lab.runs.studies import STUDIES, Job, Study, plan
from cvae_lab.runs.sweep import sweep

PRETRAINED = {"minutes": 25.0, "threads": 1}
"""Pretraining on the synthetic data set `full`, for the study `course`."""

FOLDERS = ("reference", "handout")  # studies whose record is a folder of runs; the others have a table
ON_REQUEST = (
    "handout",
    "initial-weights",
)  # they need a GPU or your own data, and run only if they are named
ALONE = ("pretrained", "course")  # studies with a limit on elapsed time: one run at a time
TABLES = ("ablation", "minutes", "initial_weights", "course")  # studies whose tables figures/README.md shows
OVERHEAD = {"compact": 0.3, "handout": 2.5}
"""Minutes per run for loading data, prediction and writing files."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """Step of the reproduction: a study, and the runs from which the record of the study is made.

    `copies` maps the folder of a run to the folder of an equal run, which has the same configuration and seed.
    """

    name: str
    jobs: list[Job]
    workers: int
    minutes: float  # expected minutes of one run
    copies: dict[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> list[Job]:
        """Jobs that are trained, not copied from an equal run."""
        return [job for job in self.jobs if job.run_dir not in self.copies]

    @property
    def to_do(self) -> list[Job]:
        """Jobs that are not finished and must be trained."""
        return [job for job in self.trained if not RunFolder(Path(job.run_dir)).done]

    @property
    def minutes_left(self) -> float:
        """Expected minutes until the last job ends."""
        return len(self.to_do) * self.minutes / self.workers


def steps(
    root: Path,
    out: Path,
    workers: int,
    only: Sequence[str] = (),
    course: str = "",
    **changes: Any,  # noqa: ANN401
) -> list[Step]:
    """Return the studies to run, in order.

    Args:
        root: the repository. The reference runs in the repository are used to estimate the time of a run.
        out: folder of the runs, one folder per study.
        only: names of studies; empty: all except ON_REQUEST.
        course: folder of the course's data; empty: leave out the studies of course data.
        changes: parameters, `data` and `seeds` that replace those of every run, for a trial run.
    """
    data, seeds = changes.pop("data", ""), changes.pop("seeds", ())
    studies = STUDIES | (_course_studies(out, course) if course else {})
    if unknown := set(only) - set(studies):
        raise RunError(f"There is no record {min(unknown)!r}; choose from {', '.join(studies)}.")
    rate, found, trained = _minutes_per_frame(root), [], {}
    for name, study in studies.items():
        if name in only or not (only or name in ON_REQUEST):
            variants = {key: {**variant, **changes} for key, variant in study.variants.items()}
            jobs = plan(data or study.data, out / name, variants, seeds or study.seeds, study.base)
            minutes = float(np.mean([_minutes(_config(job), rate) for job in jobs]))
            copies = {job.run_dir: trained[_config(job)] for job in jobs if _config(job) in trained}
            trained |= {_config(job): job.run_dir for job in jobs if job.run_dir not in copies}
            found.append(Step(name, jobs, 1 if name in ALONE else max(1, workers), minutes, copies))
    return found


def _course_studies(out: Path, course: str) -> dict[str, Study]:
    variants: dict[str, dict[str, Any]] = {
        "random-weights-10-minutes": {"minutes": 10.0},
        "random-weights-35-minutes": {"minutes": 35.0},
        "pretrained-10-minutes": {"minutes": 10.0, "init_from": str(out / "pretrained" / "full-seed0")},
    }
    return {
        "pretrained": Study("", PRETRAINED, {"full": {}}, seeds=(0,), data="full"),
        "course": Study("", {"threads": 1}, variants, data=course),
    }


def _config(job: Job) -> RunConfig:
    """Return the configuration of a job without the number of threads, which does not change the result."""
    config = RunConfig.from_params(job.data, **job.params)
    return replace(config, train=replace(config.train, threads=0))


def _minutes(config: RunConfig, rate: float) -> float:
    """Return the expected minutes of a run, from the time limit or the number of frames."""
    train, overhead = config.train, OVERHEAD[config.model.name]
    if train.minutes or train.stop_after:
        return train.minutes + train.stop_after + overhead
    kept = len(load(config.data, progress=False).train) * (1 - train.holdout)
    frames = train.clips_per_epoch * (train.n_frames - 1) or kept
    return train.epochs * frames * rate + overhead


def _minutes_per_frame(root: Path) -> float:
    """Return the minutes that the reference runs needed for one predicted frame."""
    runs = find_runs(root / "figures" / "reference")
    frames = [
        run.history["step"].iloc[-1] * run.config.train.batch_size * (run.config.train.n_frames - 1)
        for run in runs
    ]
    return float(np.median([run.result["minutes"] / n for run, n in zip(runs, frames, strict=True)]))


def reproduce(todo: Sequence[Step], root: Path, log: Log = print) -> list[str]:
    """Run every step and write its record below `root`/figures; return one line for each failed run.

    Finished runs are skipped, so this function can be interrupted and called again. If a run fails, the other runs
    continue, and the previous record of this step is kept.
    """
    failures: list[str] = []
    for step in todo:
        log(
            f"{step.name}: {len(step.to_do)} of {len(step.jobs)} runs to do, {len(step.copies)} are copied from equal "
            f"runs"
        )
        failed = [*_train(step, log), *_copy(step)]
        if failed:
            log(f"  {step.name} keeps the previous record, because {len(failed)} runs failed")
        else:
            log(f"  wrote {_write_record(step, root / 'figures')}")
        failures += failed
    return failures


def _train(step: Step, log: Log) -> list[str]:
    failures = []
    for outcome in sweep(None, step.trained, step.workers, log=log):
        name = f"{step.name}/{Path(outcome.run_dir).name}"
        log(f"  {name}: {outcome.message} ({outcome.minutes:.1f} min)")
        if not outcome.ok:
            failures.append(f"{name}: {outcome.message}")
    return failures


def _copy(step: Step) -> list[str]:
    """Copy the runs that are equal to a run of an earlier step."""
    failures = []
    for target, source in step.copies.items():
        if RunFolder(Path(target)).done:
            continue
        if not RunFolder(Path(source)).done:
            failures.append(f"{step.name}/{Path(target).name}: the equal run {source} is not finished")
            continue
        unfinished = Path(target).with_name(f".{Path(target).name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns(".lock"))
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    return failures


def _write_record(step: Step, figures_dir: Path) -> Path | str:
    runs = [RunFolder(Path(job.run_dir)) for job in step.jobs]
    if step.name == "pretrained":
        return "nothing, because these runs only provide initial weights"
    if step.name in FOLDERS:
        new, best = figures_dir / f".{step.name}", best_run(runs[0].path.parent)
        shutil.rmtree(new, ignore_errors=True)
        for run in runs:
            export(run, new, pictures=step.name == "reference" and run == best)
        shutil.rmtree(figures_dir / step.name, ignore_errors=True)
        return new.rename(figures_dir / step.name)
    table = figures_dir / "studies" / f"{step.name.replace('-', '_')}.csv"
    rows = (
        [row for _, _, row in tables.latent_rows(runs)]
        if step.name == "latent"
        else [tables.run_row(run) for run in runs]
    )
    tables.write_csv(table, rows)
    return table


def write_tables(root: Path) -> list[Path]:
    """Write the tables and pictures of README.md and figures/README.md from the committed records; return the files."""
    figures_dir = root / "figures"
    readme, more = root / "README.md", figures_dir / "README.md"
    runs = find_runs(figures_dir / "reference")
    tables.into_markdown(readme, "results", tables.markdown(tables.runs_table(runs), tables.RESULTS))
    for name in TABLES:
        table = pd.read_csv(figures_dir / "studies" / f"{name}.csv")
        tables.into_markdown(more, name, tables.markdown(table, tables.STUDY))
    written = [readme, more, *write_pictures(figures_dir, best_run(figures_dir / "reference"))]
    if (figures_dir / "gpu.json").exists():
        tables.into_markdown(more, "gpu", gpu_markdown(read_gpu(figures_dir / "gpu.json")))
    if (figures_dir / "handout").exists():  # the study needs a GPU, so its record may be missing
        handout = learning_runs(figures_dir / "handout")
        tables.into_markdown(more, "handout", "\n".join(f"- {learning_summary(run)}" for run in handout))
        figure = learning_curve_picture(handout)
        with replacing(figures_dir / "handout.png") as temporary:
            figure.savefig(temporary, dpi=100, format="png")
        plt.close(figure)
        written.append(figures_dir / "handout.png")
    return written
