"""Speed of the reference loops and of the fast paths, on the same network, data, batch and machine.

The reference loops compute as public solutions do: float32, default memory format, frame by frame. The fast paths are
the code of `fit` and `predict` on this device. The two are measured alternately, and medians are reported.
"""

import json
import math
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
from cvae_lab.data.files import write_text
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import pick_device, precision_of, reduced_precision
from cvae_lab.objective import kl_standard_normal, squared_error
from cvae_lab.rollout import Feedback, evaluating, predict, reference_predict, reference_unroll, unroll
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.training.optimizer import make_optimizer

HEAD = (
    f"{'frames/s':8} {'':22} {'literal':>8} {'ours':>8} {'ratio':>7} {'to handout':>10} {'spread':>6} "
    f"{'of matmul':>13} {'of copy':>7} {'peak MiB':>8}"
)


@dataclass(frozen=True)
class Row:
    """One comparison. Speeds are medians over the repeats, in frames/s. `str` returns a row of the table below HEAD."""

    preset: str
    what: str
    literal: float
    ours: float
    ratio: float
    spread: float  # (max - min) / median over the repeats
    against_handout: float  # `ours` divided by the reference loop of `handout`; NaN if that was not measured
    literal_of_matmul: (
        float  # fraction of the machine's matrix-product rate in float32 that the reference loop reaches
    )
    share_of_matmul: float  # the same for `ours`, with the matrix-product rate in the precision of `ours`
    share_of_copy: float  # fraction of the memory-copy rate, assuming that no operand comes from a cache
    peak_mib: float

    def __str__(self) -> str:
        return (
            f"{self.preset:8} {self.what:22} {self.literal:8.1f} {self.ours:8.1f} {self.ratio:6.1f}x "
            f"{self.against_handout:9.1f}x {self.spread:6.0%} {self.literal_of_matmul:6.0%} "
            f"{self.share_of_matmul:6.0%} {self.share_of_copy:7.0%} {self.peak_mib:8.0f}"
        )


def machine(device: torch.device) -> dict[str, float | str]:
    """Measure the limits of this machine: matrix products (GFLOP/s) and memory copies (GB/s)."""
    size = 4096 if device.type == "cuda" else 1024
    limits: dict[str, float | str] = {}
    for name in ("float32", "bfloat16"):
        a = torch.randn(size, size, device=device, dtype=getattr(torch, name))
        limits[f"matmul_{name}_gflops"] = 2 * size**3 / 1e9 / _median(lambda a=a: a @ a, device, 7)
    block = torch.empty(1 << 26, device=device)
    limits["copy_gb_per_s"] = 2 * block.numel() * 4 / 1e9 / _median(lambda: block.clone(), device, 7)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return limits | {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def bench(
    presets: tuple[str, ...] = ("handout", "compact"), repeats: int = 3, batch: int = 2, frames: int = 8
) -> Iterator[Row]:
    """Yield the rows of each preset: training with teacher forcing 0, 0.5 and 1, and rollouts of 1, 6 and 60 clips.

    Args:
        repeats: number of measurements of each code path. The row contains their medians.
        batch, frames: clips per training batch and frames per clip; "own clips" uses the preset's defaults.
    """
    device = pick_device()
    limits = machine(device)
    handout: dict[str, float] = {}
    for preset in presets:
        for what, pair in _pairs(preset, device, batch, frames):
            row = _row(preset, what, pair, device, limits, repeats)
            if preset == "handout":
                handout[what] = row.literal
            yield replace(row, against_handout=row.ours / handout.get(what, math.nan))


def _pairs(preset: str, device: torch.device, batch: int, frames: int) -> Iterator[tuple[str, "_Pair"]]:
    for forcing in (0.0, 0.5, 1.0):
        yield f"training, forcing {forcing:g}", _training_pair(preset, device, batch, frames, forcing)
    own = RunConfig.from_params("small", preset=preset).train
    yield "training, own clips", _training_pair(preset, device, own.batch_size, own.n_frames, 0.0)
    for streams in (1, 6, 60):
        steps = 12 if preset == "handout" else 37
        yield f"rollout, {streams} streams", _rollout_pair(preset, device, streams, steps)


def write(path: Path, rows: list[Row], about: dict[str, str]) -> None:
    """Write the rows and the machine's limits as JSON, after the entries of `about` (command, versions, commit)."""
    text = json.dumps(
        {**about, "machine": machine(pick_device()), "rows": [asdict(row) for row in rows]}, indent=2
    )
    write_text(path, text)


def growth(preset: str = "compact", repeats: int = 3) -> dict[str, dict[int, float]]:
    """Return median seconds of a training step by clip length and batch size, and of a rollout by number of clips."""
    device = pick_device()
    frames = {t: _training_pair(preset, device, 2, t, 0.0)[1] for t in (3, 5, 9, 17)}
    batch = {b: _training_pair(preset, device, b, 3, 0.0)[1] for b in (1, 2, 4, 8, 16)}
    streams = {n: _rollout_pair(preset, device, n, 4)[1] for n in (1, 2, 4, 8, 16)}
    curves = {"frames": frames, "batch": batch, "streams": streams}
    return {
        axis: {size: _median(work.action, device, repeats) for size, work in works.items()}
        for axis, works in curves.items()
    }


def exponent(curve: dict[int, float]) -> float:
    """Fit seconds = c * size^k by least squares on logarithms and return k; 1 means proportional."""
    slope, _ = np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)
    return float(slope)


def time_by_kind(preset: str = "compact", fast: bool = True) -> dict[str, float]:
    """Return the fractions of a training step spent in convolutions, norms, other operations and outside."""
    device = pick_device()
    action = _training_pair(preset, device, 2, 6, 0.0)[fast].action
    action()
    started = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        action()
    wall = (time.perf_counter() - started) * 1e6
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return fractions_by_kind(times, wall)


def fractions_by_kind(times: dict[str, float], wall: float) -> dict[str, float]:
    """Return the fraction of the wall time of each kind of operation. The rest is time outside operations.

    Args:
        times: time of each operation without the operations that it calls. Only `aten::` operations are counted.
    """
    fractions = dict.fromkeys(("convolution", "norm", "other operations", "Python and waiting"), 0.0)
    for name, time_spent in times.items():
        if name.startswith("aten::"):
            kind = next((kind for kind in ("convolution", "norm") if kind[:4] in name), "other operations")
            fractions[kind] += time_spent / wall
    fractions["Python and waiting"] = max(0.0, 1 - sum(fractions.values()))
    return fractions


def flops_per_frame(model: CVAE) -> float:
    """Return floating-point operations per training frame in the forward pass. A multiply-add is two operations."""
    device = next(model.parameters()).device
    x = torch.rand(1, 2, 3, 32, 64, device=device)
    eps = torch.zeros(1, 1, *model.latent_shape(32, 64), device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference_unroll(model, x, x, eps, Feedback(torch.ones(1, 1, dtype=torch.bool)))
    return counter.get_total_flops()


class _Traffic(TorchDispatchMode):
    """Count the bytes that operations read and write. Views are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


@dataclass(frozen=True)
class _Work:
    """An action to time, and the number of frames it computes."""

    action: Callable[[], None]
    frames: int

    def flops_per_frame(self) -> float:
        """Return the operations of convolutions and matrix products, with those of the backward pass."""
        with FlopCounterMode(display=False) as counter:
            self.action()
        return counter.get_total_flops() / self.frames

    def bytes_per_frame(self) -> float:
        """Return the bytes of all operands and results."""
        with _Traffic() as traffic:
            self.action()
        return traffic.bytes / self.frames


_Pair = tuple[_Work, _Work]


def _row(preset: str, what: str, pair: _Pair, device: torch.device, limits: dict, repeats: int) -> Row:
    for work in pair:
        _seconds(work.action, device)  # warm-up
    speeds = [[work.frames / _seconds(work.action, device) for work in pair] for _ in range(repeats)]
    literal, ours = zip(*speeds, strict=True)
    middle = statistics.median(ours)
    gflop = pair[0].flops_per_frame() / 1e9
    name = str(precision_of(TrainConfig(), device)).removeprefix("torch.")
    return Row(
        preset, what, statistics.median(literal), middle,
        ratio=statistics.median(b / a for a, b in speeds),
        spread=(max(ours) - min(ours)) / middle,
        against_handout=math.nan,
        literal_of_matmul=gflop * statistics.median(literal) / float(limits["matmul_float32_gflops"]),
        share_of_matmul=gflop * middle / float(limits[f"matmul_{name}_gflops"]),
        share_of_copy=pair[1].bytes_per_frame() * middle / 1e9 / float(limits["copy_gb_per_s"]),
        peak_mib=_peak_mib(device),
    )  # fmt: skip


def _training_pair(preset: str, device: torch.device, batch: int, frames: int, forcing: float) -> _Pair:
    x, p = torch.rand(2, batch, frames, 3, 32, 64, device=device)
    teacher_forced = sample_teacher_forcing(
        forcing, batch, frames - 1, "step", torch.Generator().manual_seed(0)
    )

    def work(path: Callable, config: TrainConfig, layout: torch.memory_format) -> _Work:
        model = CVAE(ModelConfig.preset(preset)).to(device, memory_format=layout).train()
        optimizer = make_optimizer(model, config)
        eps = torch.randn(batch, frames - 1, *model.latent_shape(32, 64), device=device)

        def step() -> None:
            with reduced_precision(config, device):
                out = path(model, x, p, eps, Feedback(teacher_forced))
            error = squared_error(out.prediction, x[:, 1:]).mean()
            optimizer.zero_grad()
            (error + kl_standard_normal(out.mu, out.logvar).mean()).backward()
            optimizer.step()

        return _Work(step, batch * (frames - 1))

    config = RunConfig.from_params("small", preset=preset).train
    return (
        work(reference_unroll, replace(config, precision="float32"), torch.contiguous_format),
        work(unroll, config, torch.channels_last),
    )


def _rollout_pair(preset: str, device: torch.device, streams: int, steps: int) -> _Pair:
    model = CVAE(ModelConfig.preset(preset)).to(device)
    fast = CVAE(ModelConfig.preset(preset)).to(device, memory_format=torch.channels_last)
    first = torch.rand(streams, 3, 32, 64, device=device)
    labels = torch.rand(streams, steps + 1, 3, 32, 64, device=device)

    def ours() -> None:
        with reduced_precision(TrainConfig(), device):
            predict(fast, first, labels)

    def literal() -> None:
        with evaluating(model):
            reference_predict(model, first[:1], labels[:1])

    # The reference loop predicts one clip after the other, so one clip is enough to measure its speed.
    return _Work(literal, steps), _Work(ours, streams * steps)


def _seconds(action: Callable, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _median(action: Callable, device: torch.device, repeats: int) -> float:
    action()
    return statistics.median(_seconds(action, device) for _ in range(repeats))


def _peak_mib(device: torch.device) -> float:
    """Return the peak memory in MiB until now, of the GPU or, on a CPU, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
