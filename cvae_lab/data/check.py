"""Table of the contents of a data set, with the PSNR of trivial baselines."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.data.clips import Clip, Dataset, Video
from cvae_lab.data.palette import STANDARD, Palette, unknown_fraction
from cvae_lab.data.pixels import to_float


def report(dataset: Dataset) -> pd.DataFrame:
    """Return a table with one row per split (training, validation) and one row per test clip.

    The columns `frames`, `recordings` and `boundaries` describe the video. `unknown_colours` is the fraction of drawn
    label pixels whose colour is not in the palette (the standard palette if `dataset.palette` is None).

    Three columns contain the PSNR of baselines in dB: the mean over frames of the PSNR with peak 1, capped at 100. The
    first frame of each recording is excluded. `static` repeats that first frame, `copy_previous` repeats the previous
    true frame, and `mean_frame` is the mean training frame. A baseline is NaN if the true frames are not known.
    """
    mean = _mean_frame(dataset.train)
    palette = dataset.palette or STANDARD
    rows = [_video_row(video, mean, palette) for video in (dataset.train, dataset.val) if len(video)]
    return pd.DataFrame(rows + [_clip_row(clip, mean, palette) for clip in dataset.tests])


def _video_row(video: Video, mean: Float[Tensor, "3 h w"] | None, palette: Palette) -> dict:
    row = {"part": video.name, "frames": len(video), "recordings": len(video.recordings)}
    row |= {
        "boundaries": _shortened(video.boundaries),
        "unknown_colours": unknown_fraction(video.labels, palette),
    }
    return row | _baselines(video, mean)


def _shortened(numbers: Sequence[int], most: int = 12) -> str:
    """Return the numbers as text. If there are more than `most` numbers, only the first numbers are listed."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return " ".join(map(str, numbers[:most])) + more


def _clip_row(clip: Clip, mean: Float[Tensor, "3 h w"] | None, palette: Palette) -> dict:
    row = {"part": f"test {clip.name}", "frames": len(clip), "recordings": 1, "boundaries": ""}
    row["unknown_colours"] = unknown_fraction(clip.labels, palette)
    answer = clip.first[None] if clip.answer is None else clip.answer
    return row | _baselines(Video(answer, clip.labels[: len(answer)]), mean)


def _baselines(video: Video, mean: Float[Tensor, "3 h w"] | None) -> dict[str, float]:
    """Return the mean PSNR of the three baselines over all frames except the first of each recording."""
    index = torch.arange(len(video))
    start = torch.cat([torch.full((stop - start,), start) for start, stop in video.recordings])
    # One array for all errors: many small arrays, allocated between large ones, would fragment the memory.
    errors = torch.full((3, len(video)), torch.nan)
    for rows in index.split(32):
        frames = to_float(video.frames[rows])
        predictions = [to_float(video.frames[start[rows]]), to_float(video.frames[(rows - 1).clamp_min(0)])]
        for row, prediction in enumerate(predictions if mean is None else [*predictions, mean]):
            errors[row, rows] = (frames - prediction).square().mean((1, 2, 3))
    predicted = errors[:, index != start]
    names = ("static", "copy_previous", "mean_frame")
    return {name: _mean_psnr(error) for name, error in zip(names, predicted, strict=True)}


def _mean_psnr(error: Float[Tensor, " n"]) -> float:
    return (-10 * error.clamp_min(1e-10).log10()).mean().item()


def _mean_frame(video: Video) -> Float[Tensor, "3 h w"] | None:
    if not len(video):
        return None
    total = sum(piece.sum(0, dtype=torch.int64) for piece in video.frames.split(32))
    return (total / (255 * len(video))).float()
