"""Scores of predicted frames, and scores of baselines.

Frames have the shape (..., 3, h, w) and values in [0, 1]. Predictions are clamped to this range before scoring. Frame 0
is known and is not scored, so prediction i belongs to frame i + 1.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

GRADES = ((25.0, 100), (24.0, 90), (23.0, 80), (22.0, 70), (21.0, 60), (20.0, 50))
"""Grades of the assignment: minimum PSNR in dB, and grade in per cent."""

MAX_PSNR = (
    100.0  # dB; a frame with a mean squared error of 1e-10 or less, such as an exact copy, gets this score
)


def mse(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n"]:
    """Return the mean squared error of each frame over channels and pixels; predictions are clamped to [0, 1]."""
    return (prediction.clamp(0, 1) - truth).square().mean(dim=(-3, -2, -1))


def psnr(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n"]:
    """Return the PSNR of each frame in dB with peak 1, at most MAX_PSNR."""
    return psnr_of(mse(prediction, truth))


def psnr_of(error: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Convert mean squared errors to PSNR in dB with peak 1, at most MAX_PSNR."""
    return -10 * torch.log10(error.clamp_min(10 ** (-MAX_PSNR / 10)))


def frames_at_maximum(psnr: Float[Tensor, "*n"]) -> int:
    """Count the frames that reach MAX_PSNR. A few such frames can add several dB to a mean."""
    return int((psnr >= MAX_PSNR - 1e-3).sum())


def pooled_psnr(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> float:
    """Return the PSNR in dB of the mean squared error over all frames.

    The mean of the frames' PSNRs is at least as high.
    """
    return float(psnr_of(mse(prediction, truth).mean()))


def ssim(prediction: Float[Tensor, "n 3 h w"], truth: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Return the SSIM of each frame (Wang et al. 2004): 1 for equal frames, at least -1.

    The window is Gaussian, with 11 x 11 pixels and standard deviation 1.5. Only windows that lie completely inside the
    frame are used, so a 32 x 64 frame has 22 x 54 windows. The range of values is 1. Channels are averaged. The value
    equals that of scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)`.
    """
    offsets = torch.arange(-5.0, 6.0, device=truth.device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    return windowed_ssim(prediction, truth, window / window.sum(), data_range=1.0)


def windowed_ssim(
    prediction: Float[Tensor, "n 3 h w"],
    truth: Float[Tensor, "n 3 h w"],
    window: Float[Tensor, " k"],
    data_range: float,
    sample_covariance: bool = False,
) -> Float[Tensor, " n"]:
    """Return the SSIM of each frame over all windows inside the frame, averaged over channels.

    Args:
        window: weights along one axis, with sum 1; the 2D window is the outer product of these weights.
        data_range: range of values from which the two constants of SSIM are computed.
        sample_covariance: divide variances by k^2 - 1 instead of k^2, as scikit-image does by default.
    """
    height, width = truth.shape[-2:]
    if min(height, width) < len(window):
        raise ValueError(
            f"SSIM needs frames of {len(window)} x {len(window)} pixels or more, not {height} x {width}."
        )
    x, y = prediction.clamp(0, 1), truth
    rows, columns = _sliding(window, height), _sliding(window, width)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (rows @ v @ columns.T for v in (x, y, x * x, y * y, x * y))
    scale = len(window) ** 2 / (len(window) ** 2 - 1) if sample_covariance else 1.0
    var_x, var_y, covariance = (
        scale * (mean_xx - mean_x**2), scale * (mean_yy - mean_y**2), scale * (mean_xy - mean_x * mean_y)
    )  # fmt: skip
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))


def _sliding(window: Float[Tensor, " k"], size: int) -> Float[Tensor, "positions size"]:
    """Return the matrix that applies a window at every position along an axis of `size` pixels."""
    positions = size - len(window) + 1
    # The padded window is one element longer than a row, so each row is shifted by one.
    padded = torch.nn.functional.pad(window, (0, positions))
    return padded.repeat(positions)[: positions * size].reshape(positions, size)


def static_baseline(truth: Float[Tensor, "t 3 h w"]) -> Float[Tensor, " s"]:
    """Return the PSNR per frame of the static baseline, which repeats the first frame."""
    return psnr(truth[:1].expand_as(truth[1:]), truth[1:])


def copy_previous_baseline(truth: Float[Tensor, "t 3 h w"]) -> Float[Tensor, " s"]:
    """Return the PSNR per frame of a copy of the previous true frame, which is known only with teacher forcing."""
    return psnr(truth[:-1], truth[1:])


def mean_frame_baseline(
    truth: Float[Tensor, "t 3 h w"], mean_frame: Float[Tensor, "3 h w"]
) -> Float[Tensor, " s"]:
    """Return the PSNR per frame of predicting the mean frame of the training set."""
    return psnr(mean_frame.expand_as(truth[1:]), truth[1:])


def grade(mean_psnr: float) -> int:
    """Return the grade of the assignment in per cent for a mean PSNR in dB: 100 from 25 dB, 0 below 20 dB."""
    return next((percent for bound, percent in GRADES if mean_psnr >= bound), 0)


def average_2023(psnr: Float[Tensor, " s"]) -> float:
    """Return the course's average of 2023 for a clip: the sum of its 629 PSNRs divided by 628."""
    return float(psnr.sum() / (len(psnr) - 1))


def average_later(psnr: Float[Tensor, " s"]) -> float:
    """Return the course's average of the later years for a clip: the mean over frames 1 to 600."""
    return float(psnr[:600].mean())


def drift(psnr_per_frame: Float[Tensor, " s"], start: int = 100) -> float:
    """Return the least-squares slope of PSNR from frame `start` on, in dB per 100 frames.

    The result is NaN for fewer than two frames.
    """
    tail = psnr_per_frame[start:].double()
    if len(tail) < 2:
        return float("nan")
    slope, _ = np.polyfit(np.arange(len(tail)), tail.numpy(), 1)
    return float(100 * slope)
