"""Sample quality: differences between several predictions of a clip, and hidden factors that the latent encodes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cvae_lab.evaluation.metrics import psnr
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import NoiseSource, clip_streams, predict

Codes = Float[np.ndarray, "n k"]


class Variety(NamedTuple):
    """Comparison of N predictions of the same clips with the true frames and with each other."""

    best_of: Float[Tensor, " n"]  # dB of the best of the first 1, ..., N samples of a clip, mean over clips
    mean: float  # dB of the average of all samples
    spread: float  # standard deviation over samples (root mean square over pixels, values in [0, 1])
    error: float  # root mean squared error of the average
    match: float  # correlation over pixels between variance of the samples and squared error of their average


class Probe(NamedTuple):
    """Accuracy of a linear map from latent codes to a hidden factor, on clips that were not used for the fit."""

    correlation: float  # between predicted and true values, mean over clips
    p_value: float  # fraction of time-shifted factors that are predicted equally well or better


def samples(
    model: CVAE,
    first: Float[Tensor, "c 3 h w"],
    p: Float[Tensor, "c t 3 h w"],
    count: int,
    generator: NoiseSource,
) -> Float[Tensor, "n c s 3 h w"]:
    """Predict each clip `count` times, all in one batch. The samples of a clip do not depend on other clips."""
    by_clip = [clip_streams(stream, count) for stream in clip_streams(generator, len(first))]
    streams = [by_clip[clip][sample] for sample in range(count) for clip in range(len(first))]
    frames = predict(model, first.repeat(count, 1, 1, 1), p.repeat(count, 1, 1, 1, 1), streams)
    return frames.unflatten(0, (count, len(first)))


def variety(drawn: Float[Tensor, "n c s 3 h w"], truth: Float[Tensor, "c s 3 h w"]) -> Variety:
    """Compare samples with the true frames and with each other; `Variety` describes the measurements."""
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
    """Fit a linear map from codes to a hidden factor on the first `train` clips, and test it on the others.

    Consecutive frames are correlated, so the usual p-value would be too small. Here the p-value is computed with cyclic
    shifts in time of the factor of each test clip. A shifted factor has the same correlation between consecutive
    frames, but no relation to the codes.

    Args:
        codes, factors: one array per clip, with one row or value per frame.
        components: number of principal components to which the codes are reduced before the fit.
        least_shift: smallest shift in frames.

    Raises ValueError if no clip is left for the test, or if a clip is too short for the shifts.
    """
    if not 0 < train < len(codes) or min(map(len, factors)) <= 2 * least_shift:
        raise ValueError(
            f"probe uses {train} of {len(codes)} clips for the fit, and the shortest clip has "
            f"{min(map(len, factors))} frames; keep at least one clip for the test, and use clips of more than "
            f"{2 * least_shift} frames."
        )
    linear_map = _linear_map(np.concatenate(codes[:train]), np.concatenate(factors[:train]), components)
    predicted = [linear_map(clip) for clip in codes[train:]]
    truth = factors[train:]
    shifts = range(least_shift, min(map(len, truth)) - least_shift)
    found = _mean_correlation(predicted, truth)
    chance = [_mean_correlation(predicted, [np.roll(factor, by) for factor in truth]) for by in shifts]
    return Probe(found, (1 + sum(value >= found for value in chance)) / (1 + len(chance)))


def _linear_map(
    codes: Codes, factor: Float[np.ndarray, " n"], components: int
) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    components = min(components, *codes.shape)
    regression = make_pipeline(PCA(components, random_state=0), LinearRegression())
    return regression.fit(codes.astype(np.float64), factor).predict


def _mean_correlation(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    return float(np.mean([_correlation(*pair) for pair in zip(predicted, truth, strict=True)]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation, or 0 if one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0
