"""Compare predicted frames with true frames: scores of every frame, and several averages of the scores."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.data.pixels import DataError, to_float
from cvae_lab.evaluation import metrics
from cvae_lab.teaching.grading.prediction_files import Clips

CHUNK = 50_000_000  # values that are converted to float at once: 200 MB
SSIM_SIDE = 11  # width and height of the SSIM window in pixels; for smaller frames, SSIM is not defined
Frames = UInt8[Tensor, "_ 3 _ _"]


def score(prediction: Clips, truth: Clips) -> pd.DataFrame:
    """Return PSNR (dB) and SSIM of every predicted frame, and the PSNR of the static baseline, which repeats frame 0.

    Columns: clip, frame, psnr, ssim, baseline_static. Frame 0 of a clip is an input and is not scored. If prediction
    or truth has one frame less than the other, frame 0 is assumed to be missing. If the truth has no frame 0, the
    baseline is NaN. If frames are smaller than 11 pixels, SSIM is NaN. Raises DataError if the numbers
    of clips or the frame sizes differ, or if the numbers of frames differ by more than one.
    """
    if len(prediction) != len(truth):
        raise DataError(
            f"the prediction has {len(prediction)} clips, but the answer has {len(truth)}; give one prediction per clip"
        )
    pairs = zip(prediction, truth, strict=True)
    return pd.concat([_score_clip(*pair, number) for number, pair in enumerate(pairs)], ignore_index=True)


def aligned(predicted: Frames, true: Frames, number: int) -> tuple[Frames, Frames]:
    """Return predicted and true frames 1 to T-1 of clip `number`."""
    if predicted.shape[1:] != true.shape[1:] or abs(len(predicted) - len(true)) > 1:
        raise DataError(
            f"clip {number}: the prediction has {_described(predicted)}, but the answer has {_described(true)}; both "
            f"must have "
            f"the same number of frames of the same size, but frame 0 may be missing in one of them"
        )
    longest = max(len(predicted), len(true))
    if longest < 2:
        raise DataError(
            f"clip {number}: the only frame is frame 0, which is not scored; give at least 2 frames"
        )
    return predicted[len(predicted) - longest + 1 :], true[len(true) - longest + 1 :]


def _described(clip: Frames) -> str:
    return f"{len(clip)} frames of {clip.shape[3]} x {clip.shape[2]} pixels"


def _score_clip(predicted: Frames, true: Frames, number: int) -> pd.DataFrame:
    frames, wanted = aligned(predicted, true, number)
    unscored = torch.full((len(wanted),), float("nan"))
    has_ssim, has_first = min(true.shape[-2:]) >= SSIM_SIDE, len(true) > len(wanted)
    values = {
        "psnr": _in_chunks(metrics.psnr, frames, wanted),
        "ssim": _in_chunks(metrics.ssim, frames, wanted) if has_ssim else unscored,
        "baseline_static": _in_chunks(metrics.psnr, true[:1].expand_as(wanted), wanted)
        if has_first
        else unscored,
    }
    arrays = {name: value.double().numpy() for name, value in values.items()}
    return pd.DataFrame({"clip": str(number), "frame": np.arange(1, len(wanted) + 1), **arrays})


def _in_chunks(
    measure: Callable[[Tensor, Tensor], Float[Tensor, " n"]], frames: Frames, true: Frames
) -> Float[Tensor, " n"]:
    """Apply a metric to a few frames at a time, because all frames as floats might need too much memory."""
    size = max(1, CHUNK // true[0].numel())
    pairs = zip(frames.split(size), true.split(size), strict=True)
    return torch.cat([measure(to_float(a), to_float(b)) for a, b in pairs])


def averages(scores: pd.DataFrame) -> dict[str, float]:
    """Return the averages of the table of `score` by name. Each average is a mean over clips; PSNR is in dB.

    The course defines two other averages than the mean over all predicted frames: some frames are left out, or the
    divisor is another number. See `metrics.average_2023` and `metrics.average_later`.
    """
    clips = [clip for _, clip in scores.groupby("clip")]
    curves = [torch.tensor(clip["psnr"].to_numpy()) for clip in clips]
    return {
        "mean PSNR": _mean([float(curve.mean()) for curve in curves]),
        "course average of 2023 (sum / (n - 1))": _mean([metrics.average_2023(curve) for curve in curves]),
        "course average of later years (600 frames)": _mean(
            [metrics.average_later(curve) for curve in curves]
        ),
        "mean SSIM": _mean([clip["ssim"].mean() for clip in clips]),
        "static baseline": _mean([clip["baseline_static"].mean() for clip in clips]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
