"""Table of `cvae-lab bench`: medians of the speed of the reference loop and of the fast path."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cvae_lab.bench.measure import (
    Case,
    Work,
    in_own_process,
    last_line,
    machine,
    peak_mib,
    seconds,
    training_work,
)
from cvae_lab.config import RunConfig, TrainConfig
from cvae_lab.data.files import write_text
from cvae_lab.models.device import pick_device, precision_of

HEAD = (
    f"{'frames/s':8} {'':22} {'ref loop':>8} {'fast':>8} {'ratio':>7} {'vs handout':>10} {'spread':>6} "
    f"{'of matmul':>13} {'of copy':>7} {'peak MiB':>8}"
)


@dataclass(frozen=True)
class Row:
    """One comparison. Frames/s are medians over the repeats. `str` returns a line of the table with the header HEAD."""

    preset: str
    what: str
    literal: float  # frames/s of the reference loop
    ours: float
    ratio: float
    spread: float  # (max - min) / median over the repeats
    against_handout: float  # fast path / reference loop of `handout`; NaN if the reference loop was not timed
    literal_of_matmul: float  # fraction of the float32 matrix-product rate that the reference loop reaches
    share_of_matmul: float  # the same fraction for the fast path, at the precision of the fast path
    share_of_copy: float  # fraction of the memory-copy rate if no operand came from a cache
    peak_mib: float  # peak memory of the fast path in a separate process; NaN if not measured
    peak_in_own_process: bool = False  # False in old files: there, the peak includes earlier rows

    def __str__(self) -> str:
        return (
            f"{self.preset:8} {self.what:22} {self.literal:8.1f} {self.ours:8.1f} {self.ratio:6.1f}x "
            f"{self.against_handout:9.1f}x {self.spread:6.0%} {self.literal_of_matmul:6.0%} "
            f"{self.share_of_matmul:6.0%} {self.share_of_copy:7.0%} {self.peak_mib:8.0f}"
        )


def bench(
    presets: tuple[str, ...] = ("handout", "compact"), repeats: int = 3, batch: int = 2, frames: int = 8
) -> Iterator[Row]:
    """Yield the rows of each preset.

    Three rows are for training (teacher-forcing ratio 0, 0.5 and 1), and three for rollouts (1, 6 and 60 clips). The
    row "own clips" is for training with the batch size and clip length of the preset.

    Args:
        repeats: number of measurements of the reference loop and of the fast path; a row contains medians.
        batch, frames: clips per training batch and frames per clip, except in the row "own clips".
    """
    device = pick_device()
    limits = machine(device)
    handout: dict[str, float] = {}
    for preset in presets:
        for case in cases(preset, batch, frames):
            row = _row(preset, case, device, limits, repeats)
            if preset == "handout":
                handout[case.what] = row.literal
            yield replace(row, against_handout=row.ours / handout.get(case.what, math.nan))


def cases(preset: str, batch: int, frames: int) -> Iterator[Case]:
    """Yield the comparisons (one per row) of a preset."""
    for forcing in (0.0, 0.5, 1.0):
        yield Case(f"training, forcing {forcing:g}", "training", batch, frames, forcing)
    own = RunConfig.from_params("small", preset=preset).train
    yield Case("training, own clips", "training", own.batch_size, own.n_frames)
    for streams in (1, 6, 60):
        yield Case(f"rollout, {streams} streams", "rollout", streams, 13 if preset == "handout" else 38)


def peak_memory(preset: str, case: Case | list, device_name: str = "auto") -> float:
    """Return the peak memory in MiB of a process that only runs the fast path of `case` twice."""
    device = pick_device(device_name)
    work = Case(*case).work(RunConfig.from_params("small", preset=preset), device, fast=True)
    for _ in range(2):
        work.action()
    return peak_mib(device)


def write(path: Path, rows: list[Row], about: dict[str, str]) -> None:
    """Write the rows and the machine's limits as JSON, after the entries of `about` (command, versions, commit)."""
    content: dict[str, Any] = {
        **about,
        "machine": machine(pick_device()),
        "rows": [asdict(row) for row in rows],
    }
    write_text(path, json.dumps(content, indent=2))


def read(path: Path) -> list[Row]:
    """Return the rows of a file that `write` of this version or an earlier version wrote."""
    known = {field.name for field in fields(Row)}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [Row(**{name: value for name, value in row.items() if name in known}) for row in rows]


def time_by_kind(preset: str = "compact", fast: bool = True) -> dict[str, float]:
    """Return the fractions of a training step's time in convolutions, norms and other operations, and the rest."""
    action = training_work(
        RunConfig.from_params("small", preset=preset), pick_device(), fast, 2, 6, 0.0
    ).action
    action()
    started = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        action()
    wall = (time.perf_counter() - started) * 1e6
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return fractions_by_kind(times, wall)


def fractions_by_kind(times: dict[str, float], wall: float) -> dict[str, float]:
    """Sum the times of operations by kind, as fractions of the wall time. The rest is the time outside operations.

    Args:
        times: time of each operation, without the operations that it calls. Only torch's operations (`aten::`) count.
    """
    fractions = dict.fromkeys(("convolution", "norm", "other operations", "Python and waiting"), 0.0)
    for name, time_spent in times.items():
        if name.startswith("aten::"):
            kind = next((kind for kind in ("convolution", "norm") if kind[:4] in name), "other operations")
            fractions[kind] += time_spent / wall
    fractions["Python and waiting"] = max(0.0, 1 - sum(fractions.values()))
    return fractions


def _row(preset: str, case: Case, device: torch.device, limits: dict, repeats: int) -> Row:
    run = RunConfig.from_params("small", preset=preset)
    pair = case.work(run, device, False), case.work(run, device, True)
    for work in pair:
        seconds(work.action, device)  # warm-up
    speeds = [[work.frames / seconds(work.action, device) for work in pair] for _ in range(repeats)]
    literal, ours = zip(*speeds, strict=True)
    middle = statistics.median(ours)
    of_matmul = fractions_of_matmul(pair[0], statistics.median(literal), middle, device, limits)
    return Row(
        preset, case.what, statistics.median(literal), middle,
        ratio=statistics.median(b / a for a, b in speeds),
        spread=(max(ours) - min(ours)) / middle,
        against_handout=math.nan,
        literal_of_matmul=of_matmul[0],
        share_of_matmul=of_matmul[1],
        share_of_copy=pair[1].bytes_per_frame() * middle / 1e9 / float(limits["copy_gb_per_s"]),
        peak_mib=_peak(preset, case),
        peak_in_own_process=True,
    )  # fmt: skip


def _peak(preset: str, case: Case) -> float:
    """Return the peak memory of a row. After an error, return NaN, so that the next rows are still measured."""
    try:
        return in_own_process(peak_memory, preset, case)
    except RuntimeError:
        return math.nan


def fractions_of_matmul(
    reference: Work, reference_speed: float, speed: float, device: torch.device, limits: dict
) -> tuple[float, float]:
    """Return the fractions of the machine's matrix-product rate that the reference loop and the fast path reach.

    Both fractions use the operation count of the reference loop, and the machine's rate at the precision in use.

    Args:
        reference_speed, speed: frames per second of the reference loop and of the fast path.
        limits: result of `machine`.
    """
    gflop = reference.flops_per_frame() / 1e9
    name = str(precision_of(TrainConfig(), device)).removeprefix("torch.")
    rates = float(limits["matmul_float32_gflops"]), float(limits[f"matmul_{name}_gflops"])
    return gflop * reference_speed / rates[0], gflop * speed / rates[1]


def compare(
    make: Callable[[bool], Work],
    counted: Callable[[bool], Work],
    device: torch.device,
    repeats: int,
    ends: float,
    limits: dict,
) -> dict[str, Any]:
    """Time the fast path and the reference loop. If one of the two fails, the result contains the error message.

    Args:
        make: function of one boolean that returns the workload: the fast path if True, else the reference loop.
        counted: like `make`, with a smaller workload, used to count operations and bytes per frame.
        ends: deadline, as a value of `time.time()`. If all repeats would end later, only one is run.
        limits: result of `machine`.
    """
    row: dict[str, Any] = {}
    for fast, name in ((True, "ours"), (False, "reference")):
        if time.time() > ends - 2:
            return row | {"skipped": "no time left for it"}
        try:
            row |= _timed(make(fast), name, device, repeats, ends)
        except torch.cuda.OutOfMemoryError:
            return row | {f"{name}_error": "out of memory"}
        except RuntimeError as error:
            return row | {f"{name}_error": last_line(str(error))}
    traffic = counted(True).bytes_per_frame() * row["ours"] / 1e9
    of_matmul = fractions_of_matmul(counted(False), row["reference"], row["ours"], device, limits)
    return row | {
        "ratio": row["ours"] / row["reference"], "reference_of_matmul": of_matmul[0], "of_matmul": of_matmul[1],
        "of_copy": traffic / float(limits["copy_gb_per_s"]),
    }  # fmt: skip


def _timed(work: Work, name: str, device: torch.device, repeats: int, ends: float) -> dict[str, float]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work.action()  # libraries choose their kernels
    once = seconds(work.action, device)
    few = once > 1 or time.time() + 2 * repeats * once > ends
    count = 1 if few else repeats
    middle = statistics.median([once, *(seconds(work.action, device) for _ in range(count - 1))])
    return {name: work.frames / middle, f"{name}_s": middle, f"{name}_mib": peak_mib(device)}
