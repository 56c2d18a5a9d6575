"""Compare the latent diagnostics of simple models with formulas and with numpy's eigenvalues."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cvae_lab import CVAE, ModelConfig
from cvae_lab.data.clips import Clip
from cvae_lab.evaluation.latent import (
    Diagnosis,
    Score,
    active_units,
    aggregated_posterior,
    behind_baseline_from,
    calibrated_sigma,
    collapse_beta,
    diagnose,
    latent_kinds,
    one_step,
    perturbation_growth,
    posteriors,
    scores_by_latent,
)


class ByHand(CVAE):
    """A model without layers: one step returns gain * previous + uses * z + lift.

    The posterior mean is the frame's brightness if `reads` is True, else 0. With `prior_mu`, the prior is learned.
    """

    def __init__(
        self, reads=False, uses=0.0, gain=1.0, lift=0.0, logvar=0.0, prior_mu=None, prior_logvar=0.0
    ):
        nn.Module.__init__(self)
        self.config = ModelConfig.preset("compact", latents=2, anchor=False)
        self.weight = nn.Parameter(torch.zeros(1))
        self.Prior_Predictor = None if prior_mu is None else nn.Identity()
        self.prior_mu, self.prior_logvar = prior_mu, prior_logvar
        self.reads, self.uses, self.gain, self.lift, self.logvar = reads, uses, gain, lift, logvar

    def frame_transformation(self, frame):
        return frame

    def label_transformation(self, label, steps=1):
        return label

    def posterior(self, frame, label):
        mu = torch.zeros(len(frame), *self.latent_shape(*frame.shape[-2:]))
        mu[:, 0, 0, 0] = frame.mean(dim=(1, 2, 3)) if self.reads else 0
        return mu, torch.full_like(mu, self.logvar)

    def prior(self, previous, label):
        """Return a learned prior whose mean is `prior_mu` times the brightness of the previous frame."""
        if self.Prior_Predictor is None:
            return None
        shape = self.latent_shape(*previous.shape[-2:])
        mu = self.prior_mu * previous.mean(dim=(1, 2, 3))[:, None, None, None].expand(-1, *shape)
        return mu, torch.full_like(mu, self.prior_logvar)

    def decode_features(self, previous, label, z, anchor=None):
        return self.gain * previous + self.uses * z[:, :1, :1, :1] + self.lift


def greys(*levels):
    """Return frames that each have a single grey level."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 16)


def clip_of(*levels):
    frames = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 16)
    return Clip("grey", frames[0], frames, frames)


RISING = clip_of(*range(0, 200, 8))
FALLING = clip_of(*range(200, 0, -8))
COPIES = {"reads": True, "uses": 1.0, "gain": 0.0, "logvar": -10.0}


def test_posteriors_leave_out_the_first_frame():
    x = torch.stack([greys(0.1, 0.4, 0.6), greys(0.9, 0.2, 0.5)])
    mu, logvar = posteriors(ByHand(reads=True, logvar=-1.5), x, x)
    assert mu.shape == (2, 2, 2, 1, 2)
    assert mu[:, :, 0, 0, 0].flatten().tolist() == pytest.approx([0.4, 0.6, 0.2, 0.5])
    assert mu[:, :, 1].abs().max() == 0
    assert (logvar == -1.5).all()


def test_active_units_are_those_whose_mean_varies():
    t = torch.linspace(-1, 1, 50)
    mu = torch.stack([t, 0 * t + 3, 0.05 * t], dim=1).reshape(2, 25, 3, 1, 1)  # variances 0.35, 0, 0.0009
    assert active_units(mu).flatten().tolist() == [True, False, False]
    assert active_units(mu, 1e-4).flatten().tolist() == [True, False, True]


def test_aggregated_posterior_has_mean_and_variance_of_samples():
    rng = np.random.default_rng(0)
    mu, logvar = (torch.from_numpy(rng.normal(size=(2, 3, 2, 1, 1))).float() for _ in range(2))
    mean, variance = aggregated_posterior(mu, logvar)
    noise = rng.standard_normal((100_000, *mu.shape))
    samples = mu.numpy() + np.exp(logvar.numpy() / 2) * noise
    assert mean.numpy() == pytest.approx(samples.mean((0, 1, 2)), abs=0.02)  # about 6 standard errors
    assert variance.numpy() == pytest.approx(samples.var((0, 1, 2)), rel=0.02)


def test_one_step_uses_the_true_previous_frame():
    x = torch.stack([greys(0.1, 0.4, 0.6), greys(0.9, 0.2, 0.5)])
    z = torch.full((2, 2, 1, 2), 0.5)
    frames = one_step(ByHand(uses=0.2, gain=0.5), x, x, lambda step, *_: z * (step + 1))
    expected = [[0.05 + 0.1, 0.2 + 0.2], [0.45 + 0.1, 0.1 + 0.2]]
    assert frames[:, :, 0, 0, 0].numpy() == pytest.approx(np.array(expected))
    large = one_step(ByHand(lift=5.0), x, x, lambda *_: z)
    assert (large == 1).all()


def test_the_five_sources_of_z():
    x = torch.stack([greys(0.1, 0.4), greys(0.9, 0.2)])
    kinds = latent_kinds(ByHand(reads=True, logvar=-10.0), x, x)
    step = (0, x[:, 0], x[:, 1])
    value = {name: z(*step)[:, 0, 0, 0].tolist() for name, z in kinds.items()}
    assert value["mean"] == pytest.approx([0.4, 0.2])
    assert value["swapped"] == pytest.approx([0.2, 0.4])
    assert value["posterior"] == pytest.approx([0.4, 0.2], abs=0.04)
    assert value["zero"] == [0, 0]
    assert value["prior"] == latent_kinds(ByHand(), x, x)["prior"](*step)[:, 0, 0, 0].tolist()


def test_zero_is_the_mean_of_a_learned_prior():
    x = torch.stack([greys(0.1, 0.4), greys(0.9, 0.2)])
    kinds = latent_kinds(ByHand(prior_mu=2.0, prior_logvar=-20.0), x, x)
    for kind in ("zero", "prior"):
        assert kinds[kind](0, x[:, 0], x[:, 1])[:, 0, 0, 0].tolist() == pytest.approx([0.2, 1.8], abs=1e-3)


def test_variance_is_relative_to_a_learned_prior():
    """A posterior equal to its prior at every frame has aggregated mean 0 and variance 1."""
    rng = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(2, 2, 30, 3, 1, 1, generator=rng)
    mean, variance = aggregated_posterior(mu, logvar, (mu, logvar))
    assert mean.abs().max() == 0
    assert variance.flatten().tolist() == pytest.approx([1, 1, 1])
    _, half = aggregated_posterior(mu, logvar - math.log(4), (mu, logvar))
    assert half.flatten().tolist() == pytest.approx([0.25, 0.25, 0.25])


def test_growth_includes_the_effect_of_a_learned_prior():
    """z = prior_mu * brightness of the previous frame, so a step gives (gain + uses * prior_mu) * previous."""
    model, p = ByHand(gain=0.5, uses=1.0, prior_mu=0.8), torch.zeros(1, 40, 3, 8, 16)
    assert perturbation_growth(model, greys(0.0), p, torch.Generator()) == pytest.approx(1.3, rel=0.02)


def test_diagnosis_with_a_learned_prior():
    model = ByHand(reads=True, uses=1.0, gain=0.0, logvar=-6.0, prior_mu=1.0, prior_logvar=-6.0)
    found = diagnose(model, [RISING, FALLING])
    # With z = 0, the model repeats the previous frame.
    assert found.scores["zero"].free == pytest.approx(found.static, abs=0.1)
    step = (8 / 255) ** 2  # squared distance between posterior mean and prior mean of one unit
    assert found.variance > 1
    assert found.kl > 0.5 * step * math.exp(6)


def test_scores_of_a_latent_that_contains_the_true_frame():
    x = torch.stack([greys(0.5, 0.4, 0.6), greys(0.5, 0.2, 0.5)])
    scores = scores_by_latent(ByHand(**COPIES), x, x)
    assert scores["mean"] == pytest.approx((100, 100))
    zero = np.mean([-20 * math.log10(level) for level in (0.4, 0.6, 0.2, 0.5)])
    assert scores["zero"] == pytest.approx((zero, zero), abs=1e-3)
    swapped = np.mean([-20 * math.log10(d) for d in (0.2, 0.1, 0.2, 0.1)])
    assert scores["swapped"] == pytest.approx((swapped, swapped), abs=1e-3)


def test_teacher_forced_and_free_scores_differ_where_errors_accumulate():
    x = greys(0.5, 0.5, 0.5, 0.5)[None].repeat(2, 1, 1, 1, 1)
    scores = scores_by_latent(ByHand(lift=0.1), x, x)
    free = np.mean([-20 * math.log10(0.1 * n) for n in (1, 2, 3)])
    assert scores["zero"] == pytest.approx((20, free), abs=1e-3)


def test_calibrated_sigma_maximises_the_likelihood():
    rng = torch.Generator().manual_seed(0)
    truth, prediction = (torch.rand(4, 3, 8, 16, generator=rng, dtype=torch.float64) for _ in range(2))
    sigmas = np.linspace(0.2, 0.8, 601)
    error = ((truth - prediction) ** 2).numpy()
    nll = [(error / (2 * s**2) + np.log(s)).mean() for s in sigmas]
    assert calibrated_sigma(prediction, truth) == pytest.approx(sigmas[np.argmin(nll)], abs=1e-3)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.3])
def test_growth_of_a_linear_step_is_its_gain(gain):
    first, p = greys(0.5), torch.zeros(1, 12, 3, 8, 16)
    growth = perturbation_growth(ByHand(gain=gain, lift=0.1), first, p, torch.Generator().manual_seed(0))
    assert growth == pytest.approx(gain, rel=0.02)  # differences of 1e-3 in single precision


def test_growth_finds_the_strongest_direction():
    class TwoSpeeds(ByHand):
        def decode_features(self, previous, label, z, anchor=None):
            return previous * torch.tensor([0.4, 1.2, 0.8])[:, None, None]

    p = torch.zeros(1, 60, 3, 8, 16)
    assert perturbation_growth(TwoSpeeds(), greys(0.0), p, torch.Generator()) == pytest.approx(1.2, rel=1e-3)


def test_growth_is_zero_where_the_previous_frame_has_no_effect():
    p = torch.zeros(2, 8, 3, 8, 16)
    assert perturbation_growth(ByHand(gain=0.0), greys(0.5, 0.5), p, torch.Generator()) < 1e-9


def test_first_frame_from_which_the_baseline_is_better():
    static = torch.full((40,), 20.0)
    step = lambda frame: torch.where(torch.arange(1, 41) < frame, 25.0, 15.0)  # noqa: E731
    assert behind_baseline_from(step(11), static, window=1) == 11
    assert behind_baseline_from(step(1), static) == 1
    assert behind_baseline_from(step(41), static) is None
    assert behind_baseline_from(-step(11) + 40, static) is None, (
        "the static baseline is better only at the start"
    )
    assert behind_baseline_from(static, static, window=100) is None
    blip = step(11)
    blip[30] = 26.0
    assert behind_baseline_from(blip, static, window=1) == 32
    assert 4 <= behind_baseline_from(step(11), static, window=5) <= 11


@pytest.mark.parametrize("seed", [0, 1])
def test_collapse_beta_follows_the_largest_eigenvalue(seed):
    rng = np.random.default_rng(seed)
    residuals = rng.normal(size=(40, 12)) * np.geomspace(3, 0.1, 12) + 5
    covariance = np.cov(residuals, rowvar=False, bias=True)
    ours = collapse_beta(torch.from_numpy(residuals))
    assert ours == pytest.approx(2 * np.linalg.eigvalsh(covariance)[-1] / 12, rel=1e-6)


def test_the_best_linear_latent_collapses_above_collapse_beta():
    """In a direction of variance v, a decoder of weight w explains w^2. The best w^2 is max(v - sigma^2, 0)."""
    dims, variance = 6, 0.5
    draws = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold = collapse_beta(math.sqrt(variance) * draws @ torch.eye(dims, dtype=torch.float64)[:1])
    weights = np.linspace(0, 1, 101)
    for factor, is_active in ((0.9, True), (1.1, False)):
        sigma2 = factor * threshold * dims / 2
        total = weights**2 + sigma2  # the marginal likelihood of probabilistic PCA in this direction
        nll = 0.5 * (np.log(total) + variance / total)
        assert (weights[np.argmin(nll)] > 0.05) == is_active


def test_diagnosis_of_a_collapsed_latent():
    found = diagnose(ByHand(), [RISING, FALLING], beta=1.0)
    assert (found.kl, found.active, found.units, found.variance) == (0, 0, 4, 1)
    assert len(set(found.scores.values())) == 1
    assert found.implied_sigma == pytest.approx(math.sqrt(3 * 8 * 16 / 2))
    assert found.sigma == pytest.approx(
        8 / 255, rel=1e-4
    )  # the model repeats the frame, and levels change by 8 per frame
    assert found.growth == pytest.approx(1, abs=0.01)
    assert found.behind_from == [None, None]  # the prediction equals the static baseline
    assert found.summary.startswith("The latent is collapsed: KL 0 nats per frame, 0 of 4 units active.")


def test_diagnosis_of_a_latent_that_contains_the_true_frame():
    found = diagnose(ByHand(**COPIES), [RISING, FALLING])
    levels = [np.arange(8, 200, 8), np.arange(192, 0, -8)]
    mu = np.concatenate(levels) / 255
    rest = 0.5 * 4 * (math.exp(-10) - 1 + 10)
    assert found.kl == pytest.approx(rest + 0.5 * np.mean(mu**2), rel=1e-5)
    assert found.active == 1
    assert found.sigma == pytest.approx(math.exp(-5), rel=0.3)
    assert found.summary.startswith("The latent is unreachable:")
    assert "beta" not in found.summary


def test_diagnosis_is_repeatable_and_keeps_the_training_mode():
    model = ByHand(**COPIES).train()
    assert diagnose(model, [RISING, FALLING], seed=3) == diagnose(model, [RISING, FALLING], seed=3)
    assert model.training


def test_diagnose_requires_two_clips_with_true_frames():
    with pytest.raises(ValueError, match="two clips or more, all with true frames"):
        diagnose(ByHand(), [RISING])
    with pytest.raises(ValueError, match="two clips or more, all with true frames"):
        diagnose(ByHand(), [RISING, Clip("no answer", RISING.first, RISING.labels)])


def test_text_of_the_summary():
    flat = Score(30.0, 25.0)
    scores = dict.fromkeys(("posterior", "mean", "prior", "zero", "swapped"), flat)
    found = Diagnosis(12.3, 5, 64, 0.9, scores, 0.05, None, 20.0, [None, None], 0.8)
    assert "is unused: KL 12.3 nats per frame, 5 of 64 units active" in found.summary
    assert "better on 0 of 2 clips." in found.summary
    assert "shrinks: each step multiplies its size by 0.8" in found.summary
    active = replace(found, scores=scores | {"posterior": Score(30.0, 25.5), "mean": Score(30.0, 25.6)})
    assert "is active" in active.summary
    assert "gains +0.5 dB over prior z, and the z of another clip loses 0.6 dB" in active.summary
    behind = replace(found, behind_from=[90, None, 40], growth=1.1, implied_sigma=55.4)
    assert "better on 2 of 3 clips, from frame 40 at the earliest" in behind.summary
    assert "grows: each step multiplies its size by 1.1" in behind.summary
    assert "calibrated sigma is 0.05; the beta of training implies a sigma of 55." in behind.summary
