"""What a data set holds, and what trivial predictions score on it."""

import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.data.clips import Clip, Dataset, Video, frame_changes
from cvae_lab.data.palette import STANDARD, Palette, unknown_fraction
from cvae_lab.data.pixels import to_float

Frames = UInt8[Tensor, "n 3 h w"]


def report(dataset: Dataset) -> pd.DataFrame:
    """Return one row per part and test clip that is there.

    Columns: `frames`, `recordings`, `boundaries`; `unknown_colours`, the fraction of drawn label pixels whose colour is
    not in the palette (the standard one where `dataset.palette` is None); and three baselines.

    Baselines are means of per-frame PSNR in dB (peak 1, capped at 100) over all frames but the first of each
    recording: `static` repeats that first frame, `copy_previous` repeats the previous true frame, `mean_frame` shows
    the mean training frame. NaN where there is no answer to score against.
    """
    mean = _mean_frame(dataset.train)
    palette = dataset.palette or STANDARD
    rows = [_video_row(video, mean, palette) for video in (dataset.train, dataset.val) if len(video)]
    return pd.DataFrame(rows + [_clip_row(clip, mean, palette) for clip in dataset.tests])


def _video_row(video: Video, mean: Float[Tensor, "3 h w"] | None, palette: Palette) -> dict:
    row = {"part": video.name, "frames": len(video), "recordings": len(video.recordings)}
    row |= {
        "boundaries": " ".join(map(str, video.boundaries)),
        "unknown_colours": unknown_fraction(video.labels, palette),
    }
    return row | _baselines(video, mean)


def _clip_row(clip: Clip, mean: Float[Tensor, "3 h w"] | None, palette: Palette) -> dict:
    row = {"part": f"test {clip.name}", "frames": len(clip), "recordings": 1, "boundaries": ""}
    row["unknown_colours"] = unknown_fraction(clip.labels, palette)
    answer = clip.first[None] if clip.answer is None else clip.answer
    return row | _baselines(Video(answer, clip.labels[: len(answer)]), mean)


def _baselines(video: Video, mean: Float[Tensor, "3 h w"] | None) -> dict[str, float]:
    scores = {"static": [], "copy_previous": [], "mean_frame": []}
    for start, stop in video.recordings:
        frames = video.frames[start:stop]
        scores["static"].append(_error(frames[1:], to_float(frames[0])))
        scores["copy_previous"].append(frame_changes(frames))
        scores["mean_frame"].append(_error(frames[1:], mean) if mean is not None else torch.zeros(0))
    return {name: _mean_psnr(torch.cat(errors)) for name, errors in scores.items()}


def _error(frames: Frames, image: Float[Tensor, "3 h w"]) -> Float[Tensor, " n"]:
    """Mean squared error of each frame against one image, values in [0, 1]."""
    # A few frames at a time, because as floats they take four times the memory.
    pieces = [(to_float(piece) - image).square().mean((1, 2, 3)) for piece in frames.split(32)]
    return torch.cat(pieces)


def _mean_psnr(error: Float[Tensor, " n"]) -> float:
    return (-10 * error.clamp_min(1e-10).log10()).mean().item()


def _mean_frame(video: Video) -> Float[Tensor, "3 h w"] | None:
    if not len(video):
        return None
    total = sum(piece.sum(0, dtype=torch.int64) for piece in video.frames.split(32))
    return (total / (255 * len(video))).float()
