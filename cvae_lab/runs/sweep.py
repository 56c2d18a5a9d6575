"""Many runs of the training notebook: papermill on Dask, one process a run, on one machine or many."""

import contextlib
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
from distributed import Client, LocalCluster, as_completed

from cvae_lab.config import RunConfig
from cvae_lab.runs.record import RunFolder

QUIET_KERNEL = ["--log-level=ERROR"]
"""A kernel's remarks on its own start-up are no news to who watches a sweep."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    run_dir: str
    ok: bool
    message: str
    minutes: float


def plan(
    template: Path,
    data: str,
    out: Path,
    strategies: Sequence[str],
    seeds: Sequence[int],
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Notebook parameters of every run, strategies x seeds; ConfigError for a name or value that cannot be.

    papermill itself only warns of an unknown name and runs on, so names are checked here, before anything starts.
    """
    own = set(
        papermill.inspect_notebook(str(template))
    )  # of the notebook's parameters cell; the rest go in by `extra`
    direct = {name: value for name, value in options.items() if name in own}
    extra = {name: value for name, value in options.items() if name not in own}
    source = str(Path(data).resolve()) if Path(data).is_dir() else data
    runs = []
    for seed, strategy in itertools.product(
        seeds, strategies
    ):  # a sweep cut short has whole rounds of strategies
        chosen = {"kl_strategy": strategy, "seed": seed}
        checked = {
            name: value for name, value in direct.items() if name not in ("data", "run_dir", "progress")
        }
        RunConfig.from_params(data, **checked | extra | chosen)
        run_dir = out.resolve() / f"{strategy}-seed{seed}"
        runs.append({**direct, **chosen, "data": source, "run_dir": str(run_dir), "extra": extra})
    return runs


def sweep(
    template: Path, runs: Sequence[dict[str, Any]], workers: int = 0, scheduler: str | None = None
) -> Iterator[Outcome]:
    """Run them all; yields an Outcome as each ends. Runs already done are skipped; a failing one stops no other."""
    waiting = deque(runs)
    names: dict[str, str] = {}
    with _client(workers or min(len(runs), os.cpu_count() or 1), scheduler) as client:
        finished = as_completed()
        while waiting or finished.count():
            # No more at a time than there are workers: a run handed out early would wait behind a busy one.
            while waiting and finished.count() < sum(client.nthreads().values()):
                params = waiting.popleft()
                key = f"{params['run_dir']}-{time.time_ns()}"
                names[key] = params["run_dir"]
                finished.add(client.submit(execute, str(template.resolve()), params, key=key, retries=2))
            future = next(finished)
            if future.status == "finished":
                yield future.result()
            else:
                error = future.exception()
                yield Outcome(names[future.key], False, f"{type(error).__name__}: {error}", 0.0)


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Client]:
    if scheduler:
        with Client(scheduler) as client:
            yield client
        return
    # One thread per process: runs side by side that share cores are many times slower with more.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0",
            silence_logs=logging.ERROR, env={"OMP_NUM_THREADS": threads},
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def execute(template: str, params: dict[str, Any]) -> Outcome:
    """One run in this process. Safe to repeat: a done run is skipped, an interrupted one resumes."""
    run = RunFolder(Path(params["run_dir"]))
    started = time.monotonic()
    if run.done:
        return Outcome(params["run_dir"], True, "done before", 0.0)
    run.path.mkdir(parents=True, exist_ok=True)
    unfinished = run.path / ".notebook.ipynb"
    try:
        papermill.execute_notebook(
            template, str(unfinished), parameters=params, kernel_name="python3", cwd=str(Path(template).parent),
            progress_bar=False, extra_arguments=QUIET_KERNEL,
        )  # fmt: skip
    except Exception as error:
        return Outcome(params["run_dir"], False, _reason(error), (time.monotonic() - started) / 60)
    if not run.done:
        return Outcome(params["run_dir"], False, "the notebook ended without a result.json", 0.0)
    unfinished.replace(run.path / "notebook.ipynb")
    return Outcome(params["run_dir"], True, "done", (time.monotonic() - started) / 60)


def _reason(error: Exception) -> str:
    """The notebook's own error where there is one, in one line."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {value}".splitlines()[0]
