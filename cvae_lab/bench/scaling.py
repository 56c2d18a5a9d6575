"""Measure how time depends on the size of the work and the number of processes (`cvae-lab bench --scaling`)."""

import json
import logging
import math
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cvae_lab.bench.measure import (
    environment,
    in_own_process,
    last_line,
    median_seconds,
    rollout_work,
    training_work,
)
from cvae_lab.config import RunConfig
from cvae_lab.data.clips import ClipBatch, ClipSampler, Video
from cvae_lab.models.device import pick_device
from cvae_lab.rollout import Feedback
from cvae_lab.training import TrainState, distributed, train_step

MAX_WAIT = 180.0
"""Time limit in seconds until all processes of a measurement are ready, and again until all have finished."""

_RANK = "import sys; from cvae_lab.bench.scaling import rank_main; rank_main(*sys.argv[1:])"


class Sizes(NamedTuple):
    """The sizes to measure along each axis."""

    frames: tuple[int, ...] = (3, 5, 9, 17)  # number of frames per clip
    batch: tuple[int, ...] = (1, 2, 4, 8, 16)
    clips: tuple[int, ...] = (1, 2, 4, 8, 16)  # number of clips predicted together
    data: tuple[int, ...] = (60, 120, 240, 480)  # number of training frames per epoch
    height: tuple[int, ...] = (32, 64, 128)  # height of a frame in pixels; the width is twice the height
    repeats: int = 3
    seconds: float = 8.0  # duration of each measurement with one or two processes
    width: int = 32  # channels of `compact` at half resolution


HEAD = (
    f"{'time grows with':18} {'k':>5}  ({'95 % interval':>13})   smallest and largest size\n"
    "two processes: efficiency and frames/s"
)

TINY = Sizes((3, 5, 9), (1, 2, 4), (1, 2, 4), (12, 24, 48), (32, 64, 128), 1, 0.5, 8)
"""Small sizes for testing all measurements. The measured times are not meaningful."""


@dataclass(frozen=True)
class Growth:
    """Seconds for each size along one axis, and the exponent k of seconds = c * size^k with its 95 % interval."""

    axis: str
    seconds: dict[int, float]  # median for each size
    exponent: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = [
            f"{size}: {1e3 * self.seconds[size]:.0f} ms" for size in (min(self.seconds), max(self.seconds))
        ]
        interval = f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.axis:18} {self.exponent:5.2f}  ({interval:>13})   {ends[0]}, {ends[1]}"


@dataclass(frozen=True)
class Efficiency:
    """Throughput of one process and of two processes. The efficiency is two / (2 * one)."""

    how: str
    one: float  # training frames per second
    two: float
    error: str = ""  # the reason why the efficiency was not measured

    @property
    def efficiency(self) -> float:
        """Efficiency: 1 if two processes do twice the work of one process in the same time."""
        return self.two / self.one / 2

    def __str__(self) -> str:
        if self.error:
            return f"{self.how:18} not measured: {self.error}"
        return f"{self.how:18} {self.efficiency:5.2f}   {self.one:.1f} frames/s by 1, {self.two:.1f} by 2 processes"


def scaling(sizes: Sizes | None = None) -> Iterator[Growth | Efficiency]:
    """Yield the growth of time along every axis, then the efficiency of two processes.

    One training step or one prediction of `compact` is timed. The axis `image size` is the number of pixels of a frame.
    The network has one more level for each doubling of the height. On the axis `data size`, one epoch is timed.
    """
    sizes, device = sizes or Sizes(), pick_device()
    for axis, works in _actions(sizes, device).items():
        times = {size: median_seconds(make(), device, sizes.repeats) for size, make in works.items()}
        yield fit_exponent(axis, times)
    yield from efficiencies(sizes)


def _actions(sizes: Sizes, device: torch.device) -> dict[str, dict[int, Callable[[], Callable[[], None]]]]:
    """Return a function for every axis and size. The function prepares the work and returns the action to time."""
    run = RunConfig.from_params("small", width=sizes.width)

    def training(clips: int, frames: int, height: int = 32) -> Callable[[], Callable[[], None]]:
        sized = RunConfig.from_params("small", width=sizes.width, height=height)
        return lambda: training_work(sized, device, True, clips, frames, 0.0).action

    def rollout(clips: int) -> Callable[[], Callable[[], None]]:
        return lambda: rollout_work(run, device, True, clips, 9).action

    def epoch(frames: int) -> Callable[[], Callable[[], None]]:
        return lambda: _epoch(run, frames, device)

    return {
        "frames per clip": {n: training(2, n) for n in sizes.frames},
        "batch": {n: training(n, 3) for n in sizes.batch},
        "clips": {n: rollout(n) for n in sizes.clips},
        "data size": {n: epoch(n) for n in sizes.data},
        "image size": {2 * h * h: training(2, 3, h) for h in sizes.height},
    }


def _epoch(run: RunConfig, frames: int, device: torch.device) -> Callable[[], None]:
    """Return a function that trains for one epoch on a video of random pixels."""
    pixels = torch.randint(0, 256, (2, frames, 3, 32, 64), dtype=torch.uint8)
    state = TrainState.create(run.model, run.train)
    video, generator = Video(*pixels), state.generators["clips"]
    sampler = ClipSampler(video, run.train.n_frames, run.train.batch_size, generator, device)

    def epoch() -> None:
        for batch in sampler.epoch():
            _step(state, batch, run)

    return epoch


def _step(state: TrainState, batch: ClipBatch, run: RunConfig) -> None:
    """Train on one batch, in which only the first step of each clip is teacher-forced."""
    mask = torch.zeros(batch.x.shape[0], batch.x.shape[1] - 1, dtype=torch.bool)
    mask[:, 0] = True
    train_step(state, batch, run.train, run.train.beta_max, Feedback(mask))


def growth(preset: str = "compact", repeats: int = 3) -> dict[str, dict[int, float]]:
    """Measure the median time of training steps (by frames per clip and batch size) and of rollouts (by clips)."""
    device, run = pick_device(), RunConfig.from_params("small", preset=preset)
    curves = {
        "frames": {t: training_work(run, device, True, 2, t, 0.0) for t in (3, 5, 9, 17)},
        "batch": {b: training_work(run, device, True, b, 3, 0.0) for b in (1, 2, 4, 8, 16)},
        "streams": {n: rollout_work(run, device, True, n, 5) for n in (1, 2, 4, 8, 16)},
    }
    return {
        axis: {size: median_seconds(work.action, device, repeats) for size, work in works.items()}
        for axis, works in curves.items()
    }


def exponent(curve: Mapping[int, float]) -> float:
    """Fit seconds = c * size^k by least squares on logarithms. Return k, which is 1 for proportional growth."""
    slope, _ = np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)
    return float(slope)


def fit_exponent(axis: str, curve: Mapping[int, float], level: float = 0.95) -> Growth:
    """Fit seconds = c * size^k by least squares on logarithms, with the t interval of k.

    Args:
        curve: dict from size to seconds. The interval is NaN for two sizes, because it is then undefined.
        level: probability that the interval covers k if the residuals are normally distributed.
    """
    from scipy import stats

    fit = stats.linregress(np.log(list(curve)), np.log(list(curve.values())))
    half = math.nan
    if len(curve) > 2:
        half = float(stats.t.ppf((1 + level) / 2, len(curve) - 2) * fit.stderr)
    k = float(fit.slope)
    return Growth(axis, dict(curve), k, k - half, k + half)


def efficiencies(sizes: Sizes) -> Iterator[Efficiency]:
    """Yield the efficiency of two independent processes, of two Dask workers, and of two ranks of torchrun.

    Each process or worker trains its own model with one thread, as in a sweep. The ranks train one model together
    (DDP), so the frames of their shared batch are counted once.
    """
    ways = {"two processes": _processes, "two Dask workers": _dask_workers, "two ranks (DDP)": _ranks}
    for how, measure in ways.items():
        try:
            yield Efficiency(how, *(measure(count, sizes) for count in (1, 2)))
        except (ImportError, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            yield Efficiency(how, math.nan, math.nan, last_line(str(error)))


def train_for(width: int, duration: float, folder: str = "", count: int = 1) -> float:
    """Train `compact` on random clips with one thread, and return the number of training frames per second.

    If a folder is given, `count` processes are timed together. Each process trains from its start until all processes
    have finished their measurements. The load is therefore constant during every measurement.

    Args:
        duration: duration of the measurement in seconds.
        folder: folder in which the processes create files when they are ready and when they have finished.
    """
    torch.set_num_threads(1)
    run, device = RunConfig.from_params("small", width=width), pick_device()
    state, clips = TrainState.create(run.model, run.train), run.train.batch_size
    frames = torch.rand(2, clips, run.train.n_frames, 3, 32, 64, device=device)
    batch = ClipBatch(*(distributed.shard(part) for part in frames))
    for _ in range(2):
        _step(state, batch, run)
    _train_until_all(folder, "ready", count, lambda: _step(state, batch, run))
    steps, began = 0, time.perf_counter()
    while distributed.from_rank_0(time.perf_counter() - began) < duration:
        _step(state, batch, run)
        steps += 1
    speed = steps * clips * (run.train.n_frames - 1) / (time.perf_counter() - began)
    _train_until_all(folder, "finished", count, lambda: _step(state, batch, run))
    return speed


def _train_until_all(folder: str, event: str, count: int, step: Callable[[], None]) -> None:
    """Report an event in the folder, and train until `count` processes have reported this event."""
    if not folder:
        return
    (Path(folder) / f"{event}-{uuid.uuid4().hex}").touch()
    ends = time.monotonic() + MAX_WAIT
    while len(list(Path(folder).glob(f"{event}-*"))) < count:
        if time.monotonic() > ends:
            raise RuntimeError(f"Not all of {count} processes were {event} within {MAX_WAIT:.0f} s.")
        step()


def _processes(count: int, sizes: Sizes) -> float:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count) as pool:
        arguments = sizes.width, sizes.seconds, folder, count
        running = [pool.submit(in_own_process, train_for, *arguments) for _ in range(count)]
        return sum(process.result() for process in running)


def _dask_workers(count: int, sizes: Sizes) -> float:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ImportError("Dask is not installed") from None
    with (
        warnings.catch_warnings(action="ignore"),  # another cluster may use the port that Dask tries first
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            count, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(count)
        arguments = sizes.width, sizes.seconds, folder, count
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        running = [client.submit(train_for, *arguments, workers=[worker], pure=False) for worker in workers]
        return sum(client.gather(running))


def _ranks(count: int, sizes: Sizes) -> float:
    """Return the frames per second of one training run with `count` ranks under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    words = str(sizes.width), str(sizes.seconds)
    command = [sys.executable, *torchrun, "--no-python", sys.executable, "-c", _RANK, *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=MAX_WAIT)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(last_line(done.stderr))
    return float(done.stdout.splitlines()[-1])


def rank_main(width: str, duration: str) -> None:
    """Run `train_for` as one rank of torchrun; rank 0 prints the result."""
    with distributed.process_group():
        speed = train_for(int(width), float(duration))
        if not distributed.rank():
            print(speed, flush=True)  # noqa: T201


def as_json(rows: list[Growth | Efficiency], about: Mapping[str, str]) -> str:
    """Return the rows as JSON, after the entries of `about` (command, versions, commit)."""
    growths = [asdict(row) for row in rows if isinstance(row, Growth)]
    processes = [{**asdict(row), "efficiency": row.efficiency} for row in rows if isinstance(row, Efficiency)]
    return json.dumps({**about, "growth": growths, "processes": processes}, indent=2)
