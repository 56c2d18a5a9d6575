"""A predicted clip of a data set as files: GIFs and the HTML player, with true frames and scores where known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation.metrics import psnr, static_baseline
from cvae_lab.views import player


def write_grid_gif(
    path: Path, clips: Sequence[Clip], predictions: Sequence[Float[Tensor, "_ 3 _ _"]], scale: int = 2
) -> None:
    """Write one GIF with a row per clip: label | truth where known | prediction; every second frame, in real time."""
    length = min(len(frames) for frames in predictions)
    rows = []
    for clip, frames in zip(clips, predictions, strict=True):
        truth = None if clip.answer is None else clip.answer[1 : length + 1 : 2]
        rows.append(player.panels(clip.labels[1 : length + 1 : 2], truth, frames[:length:2], scale))
    width = max(row.shape[2] for row in rows)
    padded = [np.pad(row, ((0, 0), (1, 1), (0, width - row.shape[2]), (0, 0))) for row in rows]
    player.write_gif(path, np.concatenate(padded, axis=1), fps=10)


def write_clip_gif(path: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """Write a GIF of one clip: label | truth where known | prediction."""
    truth = None if clip.answer is None else clip.answer[1:]
    player.write_gif(path, player.panels(clip.labels[1:], truth, frames))


def write_clip_player(path: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """Write the stand-alone HTML player of one clip: label | truth where known | prediction, and PSNR where known."""
    known: dict[str, Any] = {}
    if clip.answer is not None:
        truth = to_float(clip.answer)
        known = {"psnr": psnr(frames, truth[1:]).numpy(), "truth": clip.answer[1:]}
        known["baseline"] = static_baseline(truth).numpy()
    player.write_html(path, clip.labels[1:], frames, title=f"Clip {clip.name}", **known)
