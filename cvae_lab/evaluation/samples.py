"""What a live latent buys and holds: variety of samples, and what of the world it encodes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.evaluation.metrics import psnr
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import predict

Codes = Float[np.ndarray, "n k"]


class Variety(NamedTuple):
    """N predictions of the same clips, against the truth and against each other."""

    best_of: Float[
        Tensor, " n"
    ]  # dB, mean over clips: the best of the first 1, 2, ..., N samples of each clip
    mean: float  # dB of the average of all samples
    spread: float  # standard deviation over samples, root mean square over values in [0, 1]
    error: float  # root mean squared error of the average
    match: float  # correlation over pixels of the samples' variance with the average's squared error


class Probe(NamedTuple):
    """How well codes tell a hidden factor on clips that the regression has not seen."""

    correlation: float  # of told and true values, mean over clips
    p_value: float  # share of time-shifted factors that are told as well, or better


def samples(
    model: CVAE,
    first: Float[Tensor, "c 3 h w"],
    p: Float[Tensor, "c t 3 h w"],
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "n c s 3 h w"]:
    """`count` predictions of each clip, all in one batch."""
    frames = predict(model, first.repeat(count, 1, 1, 1), p.repeat(count, 1, 1, 1, 1), generator)
    return frames.unflatten(0, (count, len(first)))


def variety(drawn: Float[Tensor, "n c s 3 h w"], truth: Float[Tensor, "c s 3 h w"]) -> Variety:
    """Best of N, spread, error, and whether samples differ where predictions are wrong."""
    scores = psnr(drawn, truth.expand_as(drawn)).mean(dim=-1)  # (n, c)
    average = drawn.mean(dim=0)
    variance = drawn.var(dim=0, correction=0)
    error = (average - truth).square()
    return Variety(
        best_of=scores.cummax(dim=0).values.mean(dim=1),
        mean=float(psnr(average, truth).mean()),
        spread=float(variance.mean().sqrt()),
        error=float(error.mean().sqrt()),
        match=_correlation(variance.flatten().numpy(), error.flatten().numpy()),
    )


def probe(
    codes: Sequence[Codes],
    factors: Sequence[Float[np.ndarray, " n"]],
    train: int,
    components: int = 16,
    least_shift: int = 60,
) -> Probe:
    """Can a linear map from codes to the hidden factor, fitted on the first `train` clips, tell it on the others?

    Codes are reduced to their leading principal components first. Neighbouring frames are alike, so that the usual
    p-value would flatter: here the factor of each test clip is shifted in time, round and round, by `least_shift`
    frames or more, which keeps all but its tie to the codes.
    """
    if not 0 < train < len(codes) or min(map(len, factors)) <= 2 * least_shift:
        raise ValueError(
            f"probe: {train} of {len(codes)} clips to fit on, the shortest of {min(map(len, factors))} frames; "
            f"leave a clip to test on, and give clips of more than {2 * least_shift} frames."
        )
    tell = _linear_map(np.concatenate(codes[:train]), np.concatenate(factors[:train]), components)
    told = [tell(clip) for clip in codes[train:]]
    truth = factors[train:]
    shifts = range(least_shift, min(map(len, truth)) - least_shift)
    found = _mean_correlation(told, truth)
    chance = [_mean_correlation(told, [np.roll(factor, by) for factor in truth]) for by in shifts]
    return Probe(found, (1 + sum(value >= found for value in chance)) / (1 + len(chance)))


def _linear_map(codes: Codes, factor: Float[np.ndarray, " n"], components: int):  # noqa: ANN202
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    components = min(components, *codes.shape)
    regression = make_pipeline(PCA(components, svd_solver="covariance_eigh"), LinearRegression())
    return regression.fit(codes.astype(np.float64), factor).predict


def _mean_correlation(told: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    return float(np.mean([_correlation(*pair) for pair in zip(told, truth, strict=True)]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0
