"""Many runs of the training notebook: papermill on Dask, one process a run, on one machine or many."""

import contextlib
import io
import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import papermill
from distributed import Client, LocalCluster, as_completed

from cvae_lab.config import RunConfig
from cvae_lab.data import SYNTHETIC
from cvae_lab.runs.folder import RunError, RunFolder
from cvae_lab.runs.train import train_run

QUIET_KERNEL = ["--log-level=ERROR"]
"""A kernel's remarks on its own start-up are no news to who watches a sweep."""


def template() -> Path:
    """Return the training notebook, which lies in the package where it is installed and beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "notebooks" / "03_training.ipynb"
    return installed if installed.exists() else package.parent / "notebooks" / "03_training.ipynb"


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    run_dir: str
    ok: bool
    message: str
    minutes: float


@dataclass(frozen=True)
class Job:
    """One run: where it goes, what it is trained on, with which parameters of `config`."""

    run_dir: str
    data: str
    params: dict[str, Any]


def plan(
    data: str,
    out: Path,
    variants: Mapping[str, dict[str, Any]],
    seeds: Sequence[int],
    options: dict[str, Any],
) -> list[Job]:
    """A job for every variant and seed; ConfigError for a name or value that cannot be.

    papermill itself only warns of an unknown name and runs on, so names are checked here, before anything starts.
    """
    source = data if data in SYNTHETIC else str(Path(data).resolve())
    jobs = []
    for seed, (name, changes) in itertools.product(seeds, variants.items()):  # cut short, it has whole rounds
        params = {**options, **changes, "seed": seed}
        if params.get("init_from"):  # a worker has a working directory of its own
            params["init_from"] = str(Path(params["init_from"]).resolve())
        RunConfig.from_params(data, **params)
        jobs.append(Job(str(out.resolve() / f"{name}-seed{seed}"), source, params))
    return jobs


def sweep(
    template: Path | None, jobs: Sequence[Job], workers: int = 0, scheduler: str | None = None
) -> Iterator[Outcome]:
    """Run them all, as executions of the `template` notebook where one is given; yields an Outcome as each ends.

    Runs already done are skipped; a failing one stops no other.
    """
    waiting = deque(jobs)
    names: dict[str, str] = {}
    notebook = str(template.resolve()) if template else None
    with _client(workers or min(len(jobs), os.cpu_count() or 1), scheduler) as client:
        finished = as_completed()
        while waiting or finished.count():
            # No more at a time than there are workers: a run handed out early would wait behind a busy one.
            while waiting and finished.count() < max(1, len(client.nthreads())):
                job = waiting.popleft()
                key = f"{job.run_dir}-{time.time_ns()}"
                names[key] = job.run_dir
                finished.add(client.submit(execute, notebook, job, key=key, retries=2))
            future = next(finished)
            if future.status == "finished":
                yield future.result()
            else:
                error = future.exception()
                yield Outcome(names[future.key], False, f"{type(error).__name__}: {error}", 0.0)


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Client]:
    if workers < 0:
        raise ValueError(f"workers = {workers}: give 1 or more, or 0 for one per core.")
    if scheduler:
        with Client(scheduler) as client:
            client.wait_for_workers(1)
            yield client
        return
    # One thread per process: runs side by side that share cores are many times slower with more.
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {"OMP_NUM_THREADS": threads}  # before a worker starts: later is too late
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def execute(template: str | None, job: Job) -> Outcome:
    """One run in this process. Safe to repeat: a done run is skipped, an interrupted one resumes."""
    run = RunFolder(Path(job.run_dir))
    started = time.monotonic()
    try:
        if run.done:
            return _done_before(job, run)
        if template:
            _execute_notebook(template, job, run)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                train_run(
                    run.path, RunConfig.from_params(job.data, **job.params), resume=True, pictures=False
                )
    except Exception as error:
        return Outcome(job.run_dir, False, _reason(error), (time.monotonic() - started) / 60)
    if not run.done:
        return Outcome(job.run_dir, False, "the notebook ended without a result.json", 0.0)
    return Outcome(job.run_dir, True, "done", (time.monotonic() - started) / 60)


def _done_before(job: Job, run: RunFolder) -> Outcome:
    """A run that was finished before counts only if it is the one asked for."""
    difference = run.config.difference(RunConfig.from_params(job.data, **job.params), ignore=("threads",))
    if difference:
        raise RunError(f"{run.path} holds a run with {difference}; give another --out, or remove it.")
    return Outcome(job.run_dir, True, "done before", 0.0)


def _execute_notebook(template: str, job: Job, run: RunFolder) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    unfinished = run.path / ".notebook.ipynb"
    papermill.execute_notebook(
        template, str(unfinished), parameters=notebook_parameters(template, job), kernel_name="python3",
        cwd=str(Path(template).parent), progress_bar=False, extra_arguments=QUIET_KERNEL,
    )  # fmt: skip
    if run.done:
        unfinished.replace(run.path / "notebook.ipynb")


def notebook_parameters(template: str, job: Job) -> dict[str, Any]:
    """A job in the words of the notebook's parameters cell; names it does not have go in by `extra`."""
    own = set(papermill.inspect_notebook(template))
    params = json.loads(json.dumps(job.params))  # papermill would write a tuple as text
    direct = {name: value for name, value in params.items() if name in own}
    extra = {name: value for name, value in params.items() if name not in own}
    return {**direct, "data": job.data, "run_dir": job.run_dir, "extra": extra}


def _reason(error: Exception) -> str:
    """The notebook's own error where there is one, in one line."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {value}".splitlines()[0]
