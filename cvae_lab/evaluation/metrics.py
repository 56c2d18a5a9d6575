"""Scores of predicted frames and what they must be held against.

Frames are (..., 3, h, w) in [0, 1]; predictions are clamped there first. The given frame 0 never counts:
prediction i is of frame i + 1.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

GRADES = ((25.0, 100), (24.0, 90), (23.0, 80), (22.0, 70), (21.0, 60), (20.0, 50))
"""The handout's table: PSNR from, per cent."""


def mse(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n"]:
    """Mean squared error of each frame, over channels and pixels, predictions clamped to [0, 1]."""
    return (prediction.clamp(0, 1) - truth).square().mean(dim=(-3, -2, -1))


def psnr(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n"]:
    """PSNR of each frame in dB with peak 1; 100 dB where the frames are equal."""
    return -10 * torch.log10(mse(prediction, truth).clamp_min(1e-10))


def pooled_psnr(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> float:
    """PSNR of the mean error over all frames, dB. At most the mean of the frames' PSNRs (Jensen)."""
    return float(-10 * torch.log10(mse(prediction, truth).mean().clamp_min(1e-10)))


def ssim(prediction: Float[Tensor, "n 3 h w"], truth: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """SSIM of each frame (Wang et al. 2004), 11x11 Gaussian window of sd 1.5, data range 1."""
    value = structural_similarity_index_measure(
        prediction.clamp(0, 1), truth, data_range=1.0, reduction="none"
    )
    return torch.as_tensor(value).reshape(-1)


def static_baseline(truth: Float[Tensor, "t 3 h w"]) -> Float[Tensor, " s"]:
    """PSNR per frame of repeating the given first frame."""
    return psnr(truth[:1].expand_as(truth[1:]), truth[1:])


def copy_previous_baseline(truth: Float[Tensor, "t 3 h w"]) -> Float[Tensor, " s"]:
    """PSNR per frame of copying the previous true frame: what one teacher-forced step gets for nothing."""
    return psnr(truth[:-1], truth[1:])


def mean_frame_baseline(
    truth: Float[Tensor, "t 3 h w"], mean_frame: Float[Tensor, "3 h w"]
) -> Float[Tensor, " s"]:
    """PSNR per frame of showing the training set's mean frame throughout."""
    return psnr(mean_frame.expand_as(truth[1:]), truth[1:])


def grade(mean_psnr: float) -> int:
    """The handout's grade for a mean PSNR in dB: 100 % from 25 dB, then 90, 80, 70, 60, 50, and 0 below 20."""
    return next((percent for bound, percent in GRADES if mean_psnr >= bound), 0)


def average_2023(psnr: Float[Tensor, " s"]) -> float:
    """The 2023 average of a clip: the sum over its 629 predicted frames divided by 628, as the course did."""
    return float(psnr.sum() / (len(psnr) - 1))


def average_later(psnr: Float[Tensor, " s"]) -> float:
    """The later years' average of a clip: frames 1 to 600 only."""
    return float(psnr[:600].mean())


def drift(psnr_per_frame: Float[Tensor, " s"], start: int = 100) -> float:
    """Least-squares slope of PSNR over frames from `start` on, in dB per 100 frames; nan with fewer than two."""
    tail = psnr_per_frame[start:].double()
    if len(tail) < 2:
        return float("nan")
    slope, _ = np.polyfit(np.arange(len(tail)), tail.numpy(), 1)
    return float(100 * slope)
