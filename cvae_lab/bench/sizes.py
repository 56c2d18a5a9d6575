"""Cost, memory and PSNR of `compact` for every frame size (`cvae-lab bench --sizes`)."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cvae_lab.bench.measure import (
    Work,
    flops_per_frame,
    in_own_process,
    peak_mib,
    rollout_work,
    training_work,
)
from cvae_lab.config import RunConfig
from cvae_lab.config.model import HEIGHTS
from cvae_lab.data import load
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation import metrics, predict_clips
from cvae_lab.models.cvae import CVAE
from cvae_lab.training import TrainState, fit

EPOCHS = 8  # passes over the training frames of `tiny` before the PSNR is measured
FRAMES = 34  # frames of the clip whose prediction is timed

HEAD = (
    f"{'size':>9} {'parameters':>10} {'GFLOP/frame':>11} {'training':>8} {'rollout':>8} {'peak MiB':>8} {'PSNR':>6} "
    f"{'static':>6}   (frames per CPU second, one thread; PSNR in dB after {EPOCHS} epochs of tiny)"
)


@dataclass(frozen=True)
class SizeRow:
    """Measurements of `compact` for one frame size, on the CPU with one thread. `str` returns a line for HEAD."""

    height: int  # in pixels; the width is twice the height
    parameters: int
    gflop: float  # operations of the forward pass per training frame, in 10^9; a multiply-add counts as two
    training: float  # training frames per CPU second, with the default batch
    rollout: float  # predicted frames per CPU second, for one clip
    peak_mib: float  # peak memory of a process that only trains
    psnr: float  # in dB, mean over the predicted frames of the test clips of `tiny`
    static: float  # PSNR of the static baseline on the same frames

    def __str__(self) -> str:
        return (
            f"{self.height:3} x {2 * self.height:3} {self.parameters:10,} {self.gflop:11.3f} {self.training:8.1f} "
            f"{self.rollout:8.1f} {self.peak_mib:8.0f} {self.psnr:6.2f} {self.static:6.2f}"
        )


def sizes(heights: Sequence[int] = HEIGHTS, epochs: int = EPOCHS, repeats: int = 3) -> Iterator[SizeRow]:
    """Yield one row for each height. The PSNR is measured after the same number of epochs for every size.

    CPU time is measured, so other processes on the machine have little influence.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for height in heights:
            yield _row(height, epochs, repeats)
    finally:
        torch.set_num_threads(threads)


def _row(height: int, epochs: int, repeats: int) -> SizeRow:
    run, cpu = _config(height, epochs), torch.device("cpu")
    model = CVAE(run.model)
    return SizeRow(
        height,
        sum(weights.numel() for weights in model.parameters()),
        flops_per_frame(model) / 1e9,
        _speed(_training(run), repeats),
        _speed(rollout_work(run, cpu, True, 1, FRAMES), repeats),
        in_own_process(training_peak, height),
        *_psnr(run),
    )


def _config(height: int, epochs: int) -> RunConfig:
    return RunConfig.from_params("tiny", height=height, epochs=epochs, eval_every=epochs, device="cpu")


def _training(run: RunConfig) -> Work:
    return training_work(run, torch.device("cpu"), True, run.train.batch_size, run.train.n_frames, 0.0)


def _speed(work: Work, repeats: int) -> float:
    """Return frames per CPU second, the median of `repeats` calls, after one call that is not measured."""
    work.action()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work.action()
        times.append(time.process_time() - started)
    return work.frames / statistics.median(times)


def training_peak(height: int) -> float:
    """Return the peak memory in MiB of this process after two training steps."""
    torch.set_num_threads(1)
    work = _training(_config(height, 1))
    for _ in range(2):
        work.action()
    return peak_mib(torch.device("cpu"))


def _psnr(run: RunConfig) -> tuple[float, float]:
    """Train on `tiny`, and return the mean PSNR over its test clips of the model and of the static baseline."""
    data = load(run.data, height=run.model.height, progress=False)
    state = TrainState.create(run.model, run.train)
    for _ in fit(state, data, run.train):
        pass
    truths = [to_float(clip.answer) for clip in data.tests]
    frames = predict_clips(state.evaluation_model().eval(), data.tests, run.train)
    scores = [metrics.psnr(found, truth[1:]) for found, truth in zip(frames, truths, strict=True)]
    static = [metrics.static_baseline(truth) for truth in truths]
    return float(torch.cat(scores).mean()), float(torch.cat(static).mean())
