"""Progress people can read: a bar with time left in a terminal or notebook, one line per epoch elsewhere."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.notebook import tqdm as notebook_tqdm

from cvae_lab.training.state import Record


@dataclass
class Reporter:
    """Shows steps on a bar where there is one, epochs as lines, both to TensorBoard where asked."""

    bar: Any = None
    writer: Any = None

    def step(self, record: Record, progress: float) -> None:
        """After each step; progress in [0, 1]."""
        if self.bar is not None:
            self.bar.n = round(progress * self.bar.total, 1)
            forced = "on" if record["tf_ratio"] > 0 else "off"
            self.bar.set_postfix_str(
                f"loss {record['loss']:.4f} beta {record['beta']:.2g} forcing {forced} {record['tf_ratio']:.2f} "
                f"lr {record['lr']:.1e} {record['frames_per_s']:.0f} frames/s"
            )

    def say(self, line: str) -> None:
        """A line of text, above the bar where there is one."""
        self.bar.write(line) if isinstance(self.bar, tqdm) else print(line, flush=True)  # noqa: T201

    def epoch(self, record: Record) -> None:
        """After each epoch."""
        self.say(describe(record))
        if self.writer is not None:
            for name, value in record.items():
                if value == value:  # an epoch without evaluation has no score
                    self.writer.add_scalar(name, value, int(record["epoch"]))


@contextmanager
def reporter(
    run_dir: Path | None = None, style: str = "auto", tensorboard: bool = False
) -> Iterator[Reporter]:
    """`auto`: a bar where standard error is a terminal; `bar`: a notebook's bar; `lines`: epochs only."""
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
            "TensorBoard is not installed; run pip install tensorboard, or leave the option out."
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
