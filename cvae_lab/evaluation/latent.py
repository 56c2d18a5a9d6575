"""Posterior collapse and drift: what a latent does, and whether it can do anything at all.

`diagnose` does it all; the functions it is made of leave the model's mode to the caller, as `free_run` does.
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
from cvae_lab.rollout import Latents, evaluating, free_run, posterior_latents, prior_latents, zero_latents

Videos = Float[Tensor, "b t 3 h w"]
Grids = Float[Tensor, "b s z hz wz"]
Grid = Float[Tensor, "z hz wz"]
NOTICEABLE, UNREACHABLE = 0.1, 3.0  # dB: less is no use of z; a posterior worth more starves predictions


class Score(NamedTuple):
    """Mean of frame PSNRs, dB, with one kind of z: fed the true previous frame, and free-running."""

    forced: float
    free: float


@dataclass(frozen=True)
class Diagnosis:
    """What latent and rollout do on held-out clips."""

    kl: float  # nats per frame
    active: int  # of `units`, values of z per frame
    units: int
    variance: float  # of the aggregated posterior, mean over units; the prior's is 1
    scores: dict[str, Score]  # by z: posterior, mean, prior, zero, swapped
    sigma: float  # the decoder's best standard deviation, posterior z
    implied_sigma: float | None  # the standard deviation that the beta of training stands for, where given
    static: float  # dB of repeating the first frame
    behind_from: list[int | None]  # by clip: frame from which a still picture stays ahead
    growth: float  # factor of a small disturbance per step

    @property
    def summary(self) -> str:
        """Dead, idle, unreachable or alive, and how predictions hold out; with the reasons."""
        scores, lost = self.scores, [frame for frame in self.behind_from if frame is not None]
        gain = scores["posterior"].free - scores["prior"].free
        swap = scores["mean"].free - scores["swapped"].free
        implied_sigma = (
            f", where training's beta implied_sigma for {self.implied_sigma:.2g}"
            if self.implied_sigma is not None
            else ""
        )
        return (
            f"The latent is {self._word(gain, swap)}: KL {self.kl:.3g} nats per frame, {self.active} of {self.units} "
            f"units active; posterior z is worth {round(gain, 1) + 0.0:+.1f} dB over prior z, and another clip's z "
            f"costs {swap:.1f} dB. The decoder's calibrated sigma is {self.sigma:.2g}{implied_sigma}. "
            f"Predictions reach {scores['prior'].free:.1f} dB, a still picture {self.static:.1f}, which stays ahead "
            f"{f'on {len(lost)} of' if lost else 'on none of'} {len(self.behind_from)} clips"
            f"{f', from frame {min(lost)} at the earliest' if lost else ''}. A small disturbance "
            f"{'grows' if self.growth > 1 else 'dies out'}, by a factor of {self.growth:.3g} per step."
        )

    def _word(self, gain: float, swap: float) -> str:
        if self.active == 0:
            return "dead"
        if gain > UNREACHABLE:
            return "unreachable"
        return "idle" if max(gain, swap) < NOTICEABLE else "alive"


def diagnose(model: CVAE, clips: Sequence[Clip], seed: int = 0, beta: float | None = None) -> Diagnosis:
    """Everything here at once, on two clips or more with answers, cut to the shortest.

    `beta` is the handout-scale weight at the end of training. Raises ValueError where clips are too few.
    """
    x, p = _stacked(clips, next(model.parameters()).device)
    truth, still = x[:, 1:], torch.stack([static_baseline(clip) for clip in x])
    with evaluating(model), torch.no_grad():
        mu, logvar = posteriors(model, x, p)
        kinds = latent_kinds(model, x, p, seed)
        prediction = free_run(model, x[:, 0], p, kinds["prior"])
        return Diagnosis(
            kl=float(kl_per_latent(mu, logvar, priors(model, x, p)).sum(dim=(-3, -2, -1)).mean()),
            active=int(active_units(mu).sum()),
            units=mu[0, 0].numel(),
            variance=float(aggregated_posterior(mu, logvar)[1].mean()),
            scores=scores_by_latent(model, x, p, seed),
            sigma=calibrated_sigma(one_step(model, x, p, kinds["posterior"]), truth),
            implied_sigma=None if beta is None else sigma_of_beta(beta, x[0, 0].numel()),
            static=float(still.mean()),
            behind_from=[
                behind_baseline_from(*pair) for pair in zip(psnr(prediction, truth), still, strict=True)
            ],
            growth=perturbation_growth(model, x[:, 0], p, torch.Generator().manual_seed(seed)),
        )


def posteriors(model: CVAE, x: Videos, p: Videos) -> tuple[Grids, Grids]:
    """mu and logvar of q(z | x_t, p_t) for frames 1 to T-1."""
    return _in_parts(model, model.posterior, x[:, 1:], p[:, 1:])


def priors(model: CVAE, x: Videos, p: Videos) -> tuple[Grids, Grids] | None:
    """mu and logvar of a learned prior for frames 1 to T-1, each from the true frame before; None: it is N(0, I)."""
    if model.Prior_Predictor is None:
        return None
    return _in_parts(model, model.prior, x[:, :-1], p[:, 1:])


def _in_parts(model: CVAE, gaussian: Callable, x: Videos, p: Videos, size: int = 64) -> tuple[Grids, Grids]:
    """mu and logvar of every frame and label, so many at a time: no frame waits for another."""
    pairs = zip(x.flatten(0, 1).split(size), p.flatten(0, 1).split(size), strict=True)
    every = [gaussian(model.frame_transformation(a), model.label_transformation(b)) for a, b in pairs]
    mu, logvar = (torch.cat(part).unflatten(0, x.shape[:2]) for part in zip(*every, strict=True))
    return mu, logvar


def active_units(mu: Grids, threshold: float = 0.01) -> Bool[Tensor, "z hz wz"]:
    """Units whose posterior mean varies over all frames by more than this variance (Burda et al. 2016, section 5)."""
    return mu.flatten(0, 1).var(dim=0) > threshold


def aggregated_posterior(mu: Grids, logvar: Grids) -> tuple[Grid, Grid]:
    """Mean and variance of every unit over frames and posterior noise: 0 and 1 where it matches the prior."""
    mu, logvar = mu.flatten(0, 1), logvar.flatten(0, 1)
    return mu.mean(dim=0), mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)


def latent_kinds(model: CVAE, x: Videos, p: Videos, seed: int = 0) -> dict[str, Latents]:
    """Ways to get z: a posterior sample, the posterior's mean, a prior sample, 0, the mean of the clip before."""
    noise = [torch.Generator().manual_seed(seed + k) for k in range(2)]
    return {
        "posterior": posterior_latents(model, x, p, noise[0]),
        "mean": posterior_latents(model, x, p, mean=True),
        "prior": prior_latents(model, x[:, 0], noise[1]),
        "zero": zero_latents(model, x[:, 0]),
        "swapped": posterior_latents(model, x.roll(1, 0), p.roll(1, 0), mean=True),
    }


def scores_by_latent(model: CVAE, x: Videos, p: Videos, seed: int = 0) -> dict[str, Score]:
    """PSNR with every kind of z, teacher-forced and free-running with the same noise."""
    forced = {k: one_step(model, x, p, z) for k, z in latent_kinds(model, x, p, seed).items()}
    free = {k: free_run(model, x[:, 0], p, z) for k, z in latent_kinds(model, x, p, seed).items()}
    return {k: Score(*(float(psnr(y[k], x[:, 1:]).mean()) for y in (forced, free))) for k in free}


@torch.no_grad()
def one_step(model: CVAE, x: Videos, p: Videos, latents: Latents) -> Float[Tensor, "b s 3 h w"]:
    """Frames 1 to T-1 in [0, 1], each from the true frame before it: what teacher forcing trains."""
    anchor = model.anchor(x[:, 0], p[:, 0])
    labels = (model.label_transformation(label) for label in p[:, 1:].unbind(1))
    frames = []
    for s, label in enumerate(labels):
        features = model.frame_transformation(x[:, s])
        frames.append(model.decode_features(features, label, latents(s, features, label), anchor))
    return torch.stack(frames, dim=1).clamp(0, 1)


def calibrated_sigma(prediction: Float[Tensor, "*n 3 h w"], truth: Float[Tensor, "*n 3 h w"]) -> float:
    """The standard deviation that makes these frames likeliest: the root of the mean squared error."""
    return float(mse(prediction, truth).mean().sqrt())


@torch.no_grad()
def perturbation_growth(
    model: CVAE, first: Float[Tensor, "b 3 h w"], p: Videos, generator: torch.Generator
) -> float:
    """Factor by which a small disturbance of the fed-back frame grows per step, at z = 0; below 1 it dies out.

    After each step it is scaled back to a root mean square of 1e-3; the geometric mean over the second half of
    the steps is given, when its direction has settled.
    """
    size, anchor = 1e-3, model.anchor(first, p[:, 0])
    zero = first.new_zeros(first.shape[0], *model.latent_shape(*first.shape[-2:]))
    away, previous, factors = torch.randn(first.shape, generator=generator).to(first.device), first, []
    for label in (model.label_transformation(frame) for frame in p[:, 1:].unbind(1)):
        disturbed = previous + size * away / _rms(away)
        previous = model.decode(previous, label, zero, anchor)
        away = model.decode(disturbed, label, zero, anchor) - previous
        factors.append(_rms(away) / size)
    return float(torch.stack(factors[len(factors) // 2 :]).log().mean().exp())


def behind_baseline_from(
    scores: Float[Tensor, " s"], static: Float[Tensor, " s"], window: int = 15
) -> int | None:
    """First frame (from 1) from which every `window` frames score better as a still picture; None: never."""
    lead = (scores - static).unfold(0, min(window, len(scores)), 1).mean(dim=1)
    start = int((lead >= 0).nonzero().max()) + 1 if (lead >= 0).any() else 0
    return start + 1 if start < len(lead) else None


def collapse_beta(residuals: Float[Tensor, "n d"]) -> float:
    """Return the KL weight, at the assignment's scale, above which the best linear latent collapses.

    The latent of a linear VAE stays active while sigma^2 = beta D / 2 is below the largest eigenvalue of the
    covariance of the residuals that it could explain (Lucas et al. 2019, section 4), so the threshold is
    2 lambda_max / D.

    Args:
        residuals: one row of D values per frame; their mean is removed. Cost is linear in n and D.
    """
    from sklearn.decomposition import PCA

    rows, dims = residuals.shape
    largest = PCA(1, svd_solver="randomized", random_state=0).fit(residuals.numpy()).explained_variance_[0]
    return 2 * float(largest) * (rows - 1) / rows / dims


def _stacked(clips: Sequence[Clip], device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames and labels of all clips in [0, 1], as long as the shortest."""
    if len(clips) < 2 or any(clip.answer is None for clip in clips):
        raise ValueError("diagnose needs two clips or more, all with answers: give held-out stretches.")
    length = min(map(len, clips))
    pictures = zip(*((clip.answer[:length], clip.labels[:length]) for clip in clips), strict=True)
    return tuple(to_float(torch.stack(part).to(device)) for part in pictures)  # type: ignore[return-value]


def _rms(disturbance: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 1 1"]:
    return disturbance.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-15)
