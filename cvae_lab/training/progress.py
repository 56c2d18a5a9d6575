"""Display of progress: a bar with the remaining time in a terminal or notebook, otherwise one line per epoch."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from tqdm.notebook import tqdm as notebook_tqdm

from cvae_lab.config import TrainConfig
from cvae_lab.training.state import Record

WIDTH = 80  # columns of a terminal


@dataclass
class Reporter:
    """Show steps on a progress bar and epochs as lines. The bar and the TensorBoard writer are both optional."""

    bar: Any = None
    writer: Any = None

    def step(self, record: Record, progress: float) -> None:
        """Update the bar after a step; `progress` is the fraction of training done."""
        if self.bar is not None:
            self.bar.n = round(progress * self.bar.total, 1)
            forced = "on" if record["tf_ratio"] > 0 else "off"
            self.bar.set_postfix_str(
                f"loss {record['loss']:.4f} beta {record['beta']:.2g} forcing {forced} {record['tf_ratio']:.2f} "
                f"lr {record['lr']:.1e} {record['frames_per_s']:.0f} frames/s"
            )

    def say(self, line: str) -> None:
        """Print a line of text, above the bar if there is one."""
        self.bar.write(line) if isinstance(self.bar, tqdm) else print(line, flush=True)  # noqa: T201

    def epoch(self, record: Record) -> None:
        """Print the line of an epoch, and write its values to TensorBoard."""
        self.say(describe(record))
        if self.writer is not None:
            for name, value in record.items():
                if value == value:  # an epoch without evaluation has no score
                    self.writer.add_scalar(name, value, int(record["epoch"]))


@contextmanager
def reporter(
    run_dir: Path | None = None, style: str = "auto", tensorboard: bool = False
) -> Iterator[Reporter]:
    """Yield a reporter, and close bar and TensorBoard file afterwards.

    Args:
        run_dir: folder of the TensorBoard file.
        style: `auto` shows a bar if standard error is a terminal, `bar` shows the bar of a notebook, and `lines` shows
            epochs only.
        tensorboard: also write a TensorBoard file. Raises RuntimeError if TensorBoard is not installed.
    """
    bar = writer = None
    if style == "bar" or (style == "auto" and sys.stderr.isatty()):
        kind = notebook_tqdm if style == "bar" else tqdm
        bar = kind(
            total=100, unit="%", bar_format="{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
        )
    if tensorboard:
        writer = _summary_writer(run_dir)
    try:
        yield Reporter(bar, writer)
    finally:
        if bar is not None:
            bar.close()
        if writer is not None:
            writer.close()


def _summary_writer(run_dir: Path | None) -> Any:  # noqa: ANN401
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError(
            "TensorBoard is not installed; run pip install 'cvae-lab[tensorboard]', or omit the option."
        ) from error
    return SummaryWriter(run_dir)


def describe(record: Record) -> str:
    """Describe an epoch in one line."""
    score = "" if math.isnan(record["heldout_psnr"]) else f"  held-out {record['heldout_psnr']:.2f} dB"
    return (
        f"epoch {record['epoch']:>3}  loss {record['loss']:.5f}  mse {record['mse']:.5f}  "
        f"KL {record['kl_nats']:.3g} nats  beta {record['beta']:.3g}  forcing {record['tf_ratio']:.2f}  "
        f"{record['frames_per_s']:.0f} frames/s{score}"
    )


class RunStatus(NamedTuple):
    """The progress of one run of a sweep."""

    name: str
    epoch: int  # epochs that have ended
    heldout: float  # latest held-out PSNR in dB; nan before the first evaluation
    seconds: float  # training time in seconds
    config: TrainConfig

    @property
    def total_seconds(self) -> float:
        """Expected seconds of training in total; nan before the first epoch of a run without a time limit."""
        if self.config.minutes:
            return 60 * self.config.minutes
        total = self.seconds / self.epoch * self.config.epochs if self.epoch else math.nan
        return min(60 * self.config.stop_after, total) if self.config.stop_after else total

    def __str__(self) -> str:
        if not self.epoch:
            return f"{self.name} starts"
        score = "" if math.isnan(self.heldout) else f" {self.heldout:.2f} dB"
        return f"{self.name} epoch {self.epoch}{score}"


def sweep_status(running: Sequence[RunStatus], waiting: int, elsewhere: int = 0) -> str:
    """Return one line of at most WIDTH columns: minutes left, then epoch and held-out score of each running run.

    Args:
        waiting: number of runs that have not started.
        elsewhere: number of runs that another process is training.
    """
    if not running:
        return f"another process is training {elsewhere} of the runs; waiting until these runs end"
    totals = [run.total_seconds for run in running if not math.isnan(run.total_seconds)]
    left = "? min left"
    if totals:
        mean = sum(totals) / len(totals)
        open_ends = [
            max(0.0, (mean if math.isnan(t) else t) - run.seconds)
            for run in running
            for t in [run.total_seconds]
        ]
        left = f"{max(1, round((sum(open_ends) + waiting * mean) / len(running) / 60))} min left"
    line = f"{left}: {running[0]}"
    for count, run in enumerate(running[1:], 1):
        if len(line) + len(str(run)) > WIDTH - 12:
            return f"{line}, +{len(running) - count} more"
        line += f", {run}"
    return line
