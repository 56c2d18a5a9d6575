"""Scores of the same predictions under five protocols; scores of different protocols are not comparable."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.evaluation.metrics import (
    average_2023,
    frames_at_maximum,
    pooled_psnr,
    psnr,
    psnr_of,
    ssim,
    windowed_ssim,
)


class Protocol(NamedTuple):
    """Row of the table: mean scores over clips under one protocol."""

    name: str
    psnr: float  # dB
    ssim: float  # nan if the protocol defines no SSIM
    frames_at_maximum: int  # number of frames in all clips that reach the maximum of 100 dB


def protocols(drawn: Float[Tensor, "n c s 3 h w"], truth: Float[Tensor, "c s 3 h w"]) -> list[Protocol]:
    """Score n predictions of c clips under five protocols; only the last protocol uses all n predictions.

    The other protocols score the first prediction of each clip.

    1. This project: mean over frames of the PSNR over all channels; SSIM of Wang et al. 2004.
    2. Pooled: PSNR of the mean squared error over all frames of a clip.
    3. The course in 2023: sum of the PSNRs of 629 frames divided by 628.
    4. SVG (Denton & Fergus 2018): PSNR of each channel, averaged in dB; SSIM with a uniform 7 x 7 window and constants
       for a range of 2, although values are in [0, 1].
    5. SRVP (Franceschi et al. 2020): the best of n predictions of each clip. The best prediction is selected by the
       true frames, separately for PSNR and SSIM.
    """
    scores = psnr(drawn, truth.expand_as(drawn))
    similarity = torch.stack([torch.stack([ssim(*pair).mean() for pair in zip(sample, truth, strict=True)])
                              for sample in drawn])  # fmt: skip
    first, nan = drawn[0], float("nan")
    capped = frames_at_maximum(scores[0])
    by_channel = psnr_of((first.clamp(0, 1) - truth).square().mean(dim=(-2, -1)))
    uniform = torch.full((7,), 1 / 7)
    svg_ssim = [
        windowed_ssim(*pair, uniform, data_range=2.0, sample_covariance=True).mean()
        for pair in zip(first, truth, strict=True)
    ]
    pooled = [pooled_psnr(*pair) for pair in zip(first, truth, strict=True)]
    clips = len(truth)
    return [
        Protocol("this project", float(scores[0].mean()), float(similarity[0].mean()), capped),
        Protocol("pooled", sum(pooled) / clips, nan, capped),
        Protocol("course 2023", sum(map(average_2023, scores[0])) / clips, nan, capped),
        Protocol("SVG", float(by_channel.mean()), float(torch.stack(svg_ssim).mean()), capped),
        Protocol(
            f"SRVP, best of {len(drawn)}",
            float(scores.mean(-1).amax(0).mean()),
            float(similarity.amax(0).mean()),
            frames_at_maximum(scores),
        ),
    ]


def markdown(rows: list[Protocol]) -> str:
    """Return the table of `protocols` as Markdown."""
    lines = ["| protocol | PSNR (dB) | SSIM | frames at 100 dB |", "| --- | --- | --- | --- |"]
    for row in rows:
        similarity = "-" if row.ssim != row.ssim else f"{row.ssim:.3f}"
        lines.append(f"| {row.name} | {row.psnr:.2f} | {similarity} | {row.frames_at_maximum} |")
    return "\n".join(lines)
