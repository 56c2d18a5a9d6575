"""Sweeps: many runs of the training notebook by papermill and Dask, on one or more machines."""

import ast
import contextlib
import difflib
import io
import json
import logging
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import papermill
import torch
from distributed import Client, Future, LocalCluster, wait

from cvae_lab.config import RENAMED, ConfigError, RunConfig, parameters
from cvae_lab.data.files import temporary_path
from cvae_lab.runs.folder import RunFolder, RunInUseError, train_run
from cvae_lab.runs.result import RunError
from cvae_lab.runs.studies import Job
from cvae_lab.training.progress import RunStatus, sweep_status

QUIET_KERNEL = ["--log-level=ERROR"]
"""Arguments of a notebook kernel that keep its start-up messages out of a sweep's output."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STATUS_SECONDS = 60.0  # seconds between two status lines of a sweep
RETRY_SECONDS = 2.0  # seconds between two attempts to start a run that another process is training


def template() -> Path:
    """Return the path of the training notebook: in the installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "notebooks" / "03_training.ipynb"
    return installed if installed.exists() else package.parent / "notebooks" / "03_training.ipynb"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run."""

    run_dir: str
    ok: bool
    message: str
    minutes: float
    in_use: bool = False  # another process is training the run


@dataclass
class _Queue:
    """Jobs of a sweep: not started, running, and in training by another process."""

    waiting: deque[Job]
    running: dict[Future, Job] = field(default_factory=dict)
    elsewhere: list[Job] = field(default_factory=list)

    def submit(self, client: Client, notebook: str | None, threads: int) -> None:
        """Start one job per free worker.

        More jobs are not submitted, because Dask could assign them to a busy worker.
        """
        if not self.waiting and not self.running:
            time.sleep(RETRY_SECONDS)
            self.waiting.extend(self.elsewhere)
            self.elsewhere.clear()
        while self.waiting and len(self.running) < max(1, len(client.nthreads())):
            job = self.waiting.popleft()
            key = f"{job.run_dir}-{time.time_ns()}"
            self.running[client.submit(execute, notebook, job, threads, key=key, retries=2)] = job

    def finished(self, seconds: float) -> list[Outcome]:
        """Wait at most `seconds`; return the outcomes of runs that ended.

        Runs that another process is training are left out.
        """
        try:
            done = wait(list(self.running), timeout=seconds, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            return []
        outcomes = []
        for future in done:
            job = self.running.pop(future)
            if future.status == "finished":
                outcome = future.result()
            else:
                error = future.exception()
                outcome = Outcome(job.run_dir, False, f"{type(error).__name__}: {error}", 0.0)
            if outcome.in_use:
                self.elsewhere.append(job)
            else:
                outcomes.append(outcome)
        return outcomes


def sweep(
    template: Path | None,
    jobs: Sequence[Job],
    workers: int = 0,
    scheduler: str | None = None,
    log: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """Run all jobs and yield an Outcome when a run ends. With `template`, each run is an execution of this notebook.

    Finished runs are skipped. If a run fails, the other runs continue. If another process is training a run, the sweep
    waits until that run ends.

    Args:
        workers: number of processes; 0: one per core.
        scheduler: address of a running Dask scheduler, which is used instead of processes on this machine.
        log: called once a minute with a line of text: running runs, epochs, held-out scores, minutes left.
    """
    workers = workers or max(1, min(len(jobs), os.cpu_count() or 1))
    threads = 0 if scheduler else max(1, (os.cpu_count() or 1) // max(1, workers))
    notebook = str(template.resolve()) if template else None
    queue = _Queue(deque(jobs))
    with _client(workers, threads, scheduler) as client:
        due = time.monotonic() + STATUS_SECONDS
        while queue.waiting or queue.running or queue.elsewhere:
            queue.submit(client, notebook, threads)
            yield from queue.finished(max(0.1, due - time.monotonic()))
            if time.monotonic() >= due:
                due += STATUS_SECONDS
                if log:
                    running = [_status(job) for job in queue.running.values()]
                    log(sweep_status(running, len(queue.waiting), len(queue.elsewhere)))


def _status(job: Job) -> RunStatus:
    """Return the progress of a running job, read from the history in the run folder."""
    train = RunConfig.from_params(job.data, **job.params).train
    run = RunFolder(Path(job.run_dir))
    try:
        last, scores = run.history.iloc[-1], run.history["heldout_psnr"].dropna()
    except RunError:  # no epoch has ended
        return RunStatus(run.path.name, 0, math.nan, 0.0, train)
    score = scores.iloc[-1] if len(scores) else math.nan
    return RunStatus(run.path.name, int(last["epoch"]), float(score), float(last["seconds"]), train)


@contextlib.contextmanager
def _client(workers: int, threads: int, scheduler: str | None) -> Iterator[Client]:
    if workers < 0:
        raise ValueError(f"workers = {workers}: give 1 or more, or 0 for one per core.")
    if scheduler:
        with Client(scheduler) as client:
            client.wait_for_workers(1)
            yield client
        return
    # The dashboard is off, because everyone can connect without a password. Dask still starts a small HTTP server.
    # The server gets a free port of the loopback interface, because a second sweep could not use the default port 8787.
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": dict.fromkeys(THREAD_VARIABLES, threads)}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}, silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def execute(template: str | None, job: Job, threads: int = 0) -> Outcome:
    """Execute one run in this process. A finished run is skipped, and an interrupted run is resumed.

    Args:
        threads: CPU threads of this process and of the kernel of the notebook; 0: unchanged. The number is set in the
            worker, because OMP_NUM_THREADS of the user overrides the value that Dask sets for its workers.
    """
    if threads:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        torch.set_num_threads(threads)
    run = RunFolder(Path(job.run_dir))
    started = time.monotonic()
    try:
        if run.done:
            return _done_before(job, run, template)
        if template:
            _execute_notebook(template, job, run)
        else:
            config = RunConfig.from_params(job.data, **job.params)
            with contextlib.redirect_stdout(io.StringIO()):
                train_run(run.path, config, resume=True, pictures=False)
    except Exception as error:
        in_use = RunInUseError.__name__ in (type(error).__name__, getattr(error, "ename", ""))
        return Outcome(job.run_dir, False, _reason(error), (time.monotonic() - started) / 60, in_use)
    if not run.done:
        return Outcome(job.run_dir, False, "the notebook ended and wrote no result.json", 0.0)
    return Outcome(job.run_dir, True, "done", (time.monotonic() - started) / 60)


def _done_before(job: Job, run: RunFolder, template: str | None) -> Outcome:
    """Return the outcome of a run that is already finished. Raises RunError if the run has another configuration."""
    run.check()
    difference = run.config.difference(RunConfig.from_params(job.data, **job.params), ignore=("threads",))
    if difference:
        raise RunError(
            f"{run.path} already contains a run with {difference}; give another --out, or remove that run."
        )
    whole = template is None or (run.path / "notebook.ipynb").exists()
    return Outcome(job.run_dir, True, "done before" if whole else "done before, without notebook.ipynb", 0.0)


def _execute_notebook(template: str, job: Job, run: RunFolder) -> None:
    """Execute the notebook, and save it as notebook.ipynb, or as failed.ipynb if the run has no result."""
    run.lock()  # raises an error if another process is training the run; the kernel locks it again
    run.unlock()
    run.path.mkdir(parents=True, exist_ok=True)
    # The name is temporary, so that the next process removes the file if this process is killed.
    unfinished, failed = temporary_path(run.path / "notebook.ipynb"), run.path / "failed.ipynb"
    try:
        papermill.execute_notebook(
            _escaped(template), _escaped(unfinished), parameters=notebook_parameters(template, job),
            kernel_name="python3", cwd=str(Path(template).parent), progress_bar=False,
            extra_arguments=QUIET_KERNEL,
        )  # fmt: skip
        if run.done:
            unfinished.replace(run.path / "notebook.ipynb")
            failed.unlink(missing_ok=True)
    finally:
        if unfinished.exists():
            unfinished.replace(failed)


def _escaped(path: Path | str) -> str:
    """Return the path with doubled braces, because papermill replaces names in braces by parameters of the notebook."""
    return str(path).replace("{", "{{").replace("}", "}}")


def notebook_parameters(template: str, job: Job) -> dict[str, Any]:
    """Return the parameters of a job for the notebook. Parameters that its parameters cell lacks are in `extra`.

    A training parameter that the job does not set gets its configured default. The notebook has values for short runs.
    """
    own = set(papermill.inspect_notebook(_escaped(template)))
    train = RunConfig.from_params(job.data, **job.params).train
    # Tuples become lists, because papermill would write a tuple as text.
    params = json.loads(json.dumps(job.params))
    direct = {name: getattr(train, name) for name in own if hasattr(train, name)}
    direct |= {name: value for name, value in params.items() if name in own}
    extra = {name: value for name, value in params.items() if name not in own}
    return {**direct, "data": job.data, "run_dir": job.run_dir, "extra": extra}


def injected_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that papermill injected and that are not in the parameters cell of the notebook.

    Call this function in the first cell after the parameters: `extra |= injected_parameters(globals())`. Without this
    call, `papermill -p lr 1e-3` only causes a warning and has no effect. Raises ConfigError for an unknown name.
    """
    cells = list(namespace.get("In", ()))
    marked = [index for index, cell in enumerate(cells) if cell.startswith("# Parameters\n")]
    if not marked:
        return {}
    own = set().union(*map(_assigned, cells[: marked[0]]))
    known = {parameter.name for parameter in parameters()} | set(RENAMED)
    found = {}
    for name in sorted(set().union(*(_assigned(cells[index]) for index in marked)) - own):
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known | own), n=1)
            hint = f" Did you mean {near[0]}?" if near else " `cvae-lab params` lists all names."
            raise ConfigError(f"papermill set {name!r} in the notebook, but this is not a parameter.{hint}")
        found[name] = namespace[name]
    return found


def _assigned(cell: str) -> set[str]:
    """Return the variables that are assigned in a cell."""
    try:
        nodes = ast.parse(cell).body
    except SyntaxError:  # a cell with IPython commands
        return set()
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def notebook_run(run_dir: str | int) -> RunFolder:
    """Return the run folder of a notebook, with an absolute path. If `run_dir` is empty, the folder is temporary.

    A relative path is resolved against the working directory. Raises RunError if papermill has converted a name of
    digits to a number.
    """
    if not isinstance(run_dir, str):
        raise RunError(
            f"run_dir = {run_dir!r} is not text; use the papermill option -r run_dir NAME instead of -p."
        )
    return RunFolder(Path(run_dir or tempfile.mkdtemp()).resolve())


def _reason(error: Exception) -> str:
    """Return the error in one line. If a cell of a notebook failed, return the error of this cell."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {value}".splitlines()[0]
