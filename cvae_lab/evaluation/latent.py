"""Diagnostics of posterior collapse and of drift.

`diagnose` computes all diagnostics, in time proportional to the number of frames. Before calling
another function of this module or `free_run`, call `model.eval()`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation.metrics import mse, psnr, static_baseline
from cvae_lab.models.cvae import CVAE
from cvae_lab.objective import kl_per_latent, sigma_of_beta
from cvae_lab.rollout import (
    Latents,
    evaluating,
    free_run,
    posterior_latents,
    prior_latents,
    prior_mean_latents,
)

Videos = Float[Tensor, "b t 3 h w"]
Grids = Float[Tensor, "b s z hz wz"]
Grid = Float[Tensor, "z hz wz"]
MIN_GAIN = 0.1  # dB; if the gain from z is smaller, the state of z is `unused`
MAX_GAP = 3.0  # dB; if posterior z has a larger gain over prior z, the state of z is `unreachable`


class Score(NamedTuple):
    """Mean PSNR over frames in dB for one source of z, teacher-forced and free-running."""

    forced: float
    free: float


@dataclass(frozen=True)
class Diagnosis:
    """Measurements of latent and rollout on held-out clips."""

    kl: float  # nats per frame
    active: int  # number of active units
    units: int  # number of values of z per frame
    variance: float  # of the aggregated posterior, relative to the prior; mean over units; 1 if equal
    scores: dict[str, Score]  # for each source of z (see `latent_kinds`)
    sigma: float  # most likely standard deviation of the decoder, with posterior z
    implied_sigma: float | None  # standard deviation that the KL weight implies; None without a KL weight
    static: float  # dB of the static baseline, which repeats the first frame
    behind_from: list[int | None]  # for each clip, the result of `behind_baseline_from`
    growth: float  # factor by which a small disturbance grows per step

    @property
    def state(self) -> str:
        """State of the latent: collapsed, unused, unreachable or active.

        `collapsed`: no unit is active. `unreachable`: `gap` is above MAX_GAP. `unused`: both `gap` and `swap` are below
        MIN_GAIN. `active`: in all other cases.
        """
        if self.active == 0:
            return "collapsed"
        if self.gap > MAX_GAP:
            return "unreachable"
        return "unused" if max(self.gap, self.swap) < MIN_GAIN else "active"

    @property
    def gap(self) -> float:
        """Gain in dB of posterior z over prior z in free-running prediction."""
        return self.scores["posterior"].free - self.scores["prior"].free

    @property
    def swap(self) -> float:
        """Decrease of the PSNR in dB in free-running prediction if z is the posterior mean of another clip."""
        return self.scores["mean"].free - self.scores["swapped"].free

    @property
    def summary(self) -> str:
        """Summary of the measurements in six sentences."""
        behind = [frame for frame in self.behind_from if frame is not None]
        implied = (
            ""
            if self.implied_sigma is None
            else f"; the beta of training implies a sigma of {self.implied_sigma:.2g}"
        )
        earliest = f", from frame {min(behind)} at the earliest" if behind else ""
        change = "grows" if self.growth > 1 else "shrinks"
        return (
            f"The latent is {self.state}: KL {self.kl:.3g} nats per frame, {self.active} of {self.units} units active. "
            f"Posterior z gains {round(self.gap, 1) + 0.0:+.1f} dB over prior z, and the z of another clip loses "
            f"{self.swap:.1f} dB. The decoder's calibrated sigma is {self.sigma:.2g}{implied}. Predictions reach "
            f"{self.scores['prior'].free:.1f} dB, and the static baseline reaches {self.static:.1f} dB. At the end of "
            f"the clip, the static baseline is better on {len(behind)} of {len(self.behind_from)} clips{earliest}. A "
            f"small disturbance {change}: each step multiplies its size by {self.growth:.3g}."
        )


def diagnose(model: CVAE, clips: Sequence[Clip], seed: int = 0, beta: float | None = None) -> Diagnosis:
    """Measure the latent and the rollout on two or more clips with true frames.

    All clips are shortened to the length of the shortest clip.

    Args:
        seed: seed of all random numbers.
        beta: KL weight at the end of training, at the scale of the assignment. The value is needed for `implied_sigma`.

    Raises ValueError if there are fewer than two clips, or if a clip has no true frames.
    """
    x, p = _stacked(clips, next(model.parameters()).device)
    truth, static = x[:, 1:], torch.stack([static_baseline(clip) for clip in x])
    with evaluating(model), torch.no_grad():
        (mu, logvar), prior = posteriors(model, x, p), priors(model, x, p)
        kinds = latent_kinds(model, x, p, seed)
        prediction = free_run(model, x[:, 0], p, kinds["prior"])
        return Diagnosis(
            kl=float(kl_per_latent(mu, logvar, prior).sum(dim=(-3, -2, -1)).mean()),
            active=int(active_units(mu).sum()),
            units=mu[0, 0].numel(),
            variance=float(aggregated_posterior(mu, logvar, prior)[1].mean()),
            scores=scores_by_latent(model, x, p, seed),
            sigma=calibrated_sigma(one_step(model, x, p, kinds["posterior"]), truth),
            implied_sigma=None if beta is None else sigma_of_beta(beta, x[0, 0].numel()),
            static=float(static.mean()),
            behind_from=[
                behind_baseline_from(*pair) for pair in zip(psnr(prediction, truth), static, strict=True)
            ],
            growth=perturbation_growth(model, x[:, 0], p, torch.Generator().manual_seed(seed)),
        )


def posteriors(model: CVAE, x: Videos, p: Videos) -> tuple[Grids, Grids]:
    """Return mu and logvar of q(z | x_t, p_t) for frames 1 to T-1."""
    return _in_parts(model, model.posterior, x[:, 1:], p[:, 1:])


def priors(model: CVAE, x: Videos, p: Videos) -> tuple[Grids, Grids] | None:
    """Return mu and logvar of a learned prior for frames 1 to T-1, given the true frames; None for N(0, I)."""
    if model.Prior_Predictor is None:
        return None
    return _in_parts(model, model.prior, x[:, :-1], p[:, 1:])


def _in_parts(model: CVAE, gaussian: Callable, x: Videos, p: Videos, size: int = 64) -> tuple[Grids, Grids]:
    """Return mu and logvar for every pair of frame and label, in batches of `size` pairs."""
    pairs = zip(x.flatten(0, 1).split(size), p.flatten(0, 1).split(size), strict=True)
    every = [gaussian(model.frame_transformation(a), model.label_transformation(b)) for a, b in pairs]
    mu, logvar = (torch.cat(part).unflatten(0, x.shape[:2]) for part in zip(*every, strict=True))
    return mu, logvar


def active_units(mu: Grids, threshold: float = 0.01) -> Bool[Tensor, "z hz wz"]:
    """Mark units whose posterior mean has a variance over frames above `threshold` (Burda et al. 2016, section 5)."""
    return mu.flatten(0, 1).var(dim=0) > threshold


def aggregated_posterior(
    mu: Grids, logvar: Grids, prior: tuple[Grids, Grids] | None = None
) -> tuple[Grid, Grid]:
    """Return mean and variance of every unit of z over frames and posterior noise.

    Mean and variance are 0 and 1 for a unit whose aggregated posterior matches the prior. With a learned prior, z is
    first standardised with the prior's mean and variance for the same frame.
    """
    if prior is not None:
        mu, logvar = (mu - prior[0]) * torch.exp(-prior[1] / 2), logvar - prior[1]
    mu, logvar = mu.flatten(0, 1), logvar.flatten(0, 1)
    return mu.mean(dim=0), mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)


def latent_kinds(model: CVAE, x: Videos, p: Videos, seed: int = 0) -> dict[str, Latents]:
    """Return five sources of z by name.

    `posterior` and `prior` are samples, and `mean` is the posterior's mean. `zero` is the prior's mean (0 for N(0, I)).
    `swapped` is the posterior's mean of another clip of the batch.
    """
    noise = [torch.Generator().manual_seed(seed + k) for k in range(2)]
    return {
        "posterior": posterior_latents(model, x, p, noise[0]),
        "mean": posterior_latents(model, x, p, mean=True),
        "prior": prior_latents(model, x[:, 0], noise[1]),
        "zero": prior_mean_latents(model, x[:, 0]),
        "swapped": posterior_latents(model, x.roll(1, 0), p.roll(1, 0), mean=True),
    }


def scores_by_latent(model: CVAE, x: Videos, p: Videos, seed: int = 0) -> dict[str, Score]:
    """Return the PSNR for every source of z, teacher-forced and free-running, with the same noise."""
    forced = {k: one_step(model, x, p, z) for k, z in latent_kinds(model, x, p, seed).items()}
    free = {k: free_run(model, x[:, 0], p, z) for k, z in latent_kinds(model, x, p, seed).items()}
    return {k: Score(*(float(psnr(y[k], x[:, 1:]).mean()) for y in (forced, free))) for k in free}


@torch.no_grad()
def one_step(model: CVAE, x: Videos, p: Videos, latents: Latents) -> Float[Tensor, "b s 3 h w"]:
    """Return frames 1 to T-1 in [0, 1], each predicted from the true previous frame, as in teacher forcing."""
    anchor = model.anchor(x[:, 0], p[:, 0])
    labels = (model.label_transformation(label) for label in p[:, 1:].unbind(1))
    frames = []
    for s, label in enumerate(labels):
        features = model.frame_transformation(x[:, s])
        frames.append(model.decode_features(features, label, latents(s, features, label), anchor))
    return torch.stack(frames, dim=1).clamp(0, 1)


def calibrated_sigma(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> float:
    """Return the most likely standard deviation of a Gaussian decoder: the root of the mean squared error."""
    return float(mse(prediction, truth).mean().sqrt())


@torch.no_grad()
def perturbation_growth(
    model: CVAE, first: Float[Tensor, "b 3 h w"], p: Videos, generator: torch.Generator
) -> float:
    """Return the factor by which a small disturbance of the previous frame grows (above 1) or shrinks per step.

    z is the mean of the prior. After each step the disturbance is scaled back to a root mean square of 1e-3. The result
    is the geometric mean over the second half of the steps. The first half is not used, because the direction of the
    disturbance has not converged yet.
    """
    size, anchor, latents = 1e-3, model.anchor(first, p[:, 0]), prior_mean_latents(model, first)
    away, previous, factors = torch.randn(first.shape, generator=generator).to(first.device), first, []

    def step(frame: Tensor, label: Tensor) -> Tensor:
        features = model.frame_transformation(frame)
        return model.decode_features(features, label, latents(0, features, label), anchor)

    for label in (model.label_transformation(frame) for frame in p[:, 1:].unbind(1)):
        disturbed = step(previous + size * away / _rms(away), label)
        previous = step(previous, label)
        away = disturbed - previous
        factors.append(_rms(away) / size)
    return float(torch.stack(factors[len(factors) // 2 :]).log().mean().exp())


def behind_baseline_from(
    scores: Float[Tensor, " s"], static: Float[Tensor, " s"], window: int = 15
) -> int | None:
    """Return the first frame from which the static baseline is better in every window, or None without such a frame.

    Predicted frames are numbered from 1.

    Args:
        scores, static: PSNR per frame in dB of the prediction and of the static baseline.
        window: number of frames over which both PSNRs are averaged.
    """
    lead = (scores - static).unfold(0, min(window, len(scores)), 1).mean(dim=1)
    start = int((lead >= 0).nonzero().max()) + 1 if (lead >= 0).any() else 0
    return start + 1 if start < len(lead) else None


def collapse_beta(residuals: Float[Tensor, "n d"]) -> float:
    """Return the KL weight, at the assignment's scale, above which the best linear latent collapses.

    Let lambda_max be the largest eigenvalue of the covariance of the residuals that the latent could explain. The
    latent of a linear VAE is active if sigma^2 = beta D / 2 is below lambda_max (Lucas et al. 2019, section 4). The
    threshold is therefore 2 lambda_max / D.

    Args:
        residuals: one row of D values for each of n frames. The mean row is subtracted. The time is proportional to n
            D.
    """
    from sklearn.decomposition import PCA

    rows, dims = residuals.shape
    largest = PCA(1, svd_solver="randomized", random_state=0).fit(residuals.numpy()).explained_variance_[0]
    return 2 * float(largest) * (rows - 1) / rows / dims


def _stacked(clips: Sequence[Clip], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return frames and labels of all clips in [0, 1], shortened to the shortest clip."""
    if len(clips) < 2 or any(clip.answer is None for clip in clips):
        raise ValueError("diagnose needs two clips or more, all with true frames; pass held-out segments.")
    length = min(map(len, clips))
    pictures = zip(*((clip.answer[:length], clip.labels[:length]) for clip in clips), strict=True)
    return tuple(to_float(torch.stack(part).to(device)) for part in pictures)  # type: ignore[return-value]


def _rms(disturbance: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 1 1"]:
    return disturbance.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-15)
