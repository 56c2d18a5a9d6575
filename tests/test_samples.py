"""Samples and probes, on made-up films and codes whose answers are known."""

import numpy as np
import pytest
import torch

from cvae_lab import CVAE, ModelConfig
from cvae_lab.evaluation.samples import probe, samples, variety
from cvae_lab.rollout import predict


def slow(n, seed, keep=0.95):
    """A slow random walk with a pull to 0."""
    rng, values = np.random.default_rng(seed), [0.0]
    for step in rng.standard_normal(n + 50):
        values.append(keep * values[-1] + step)
    return np.array(values[-n:])


def codes_of(factor, seed, strength):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(factor), 20))
    return noise + strength * factor[:, None] * np.linspace(-1, 1, 20)


FACTORS = [slow(400, seed) for seed in range(4)]


def test_a_factor_in_the_codes_is_found():
    codes = [codes_of(factor, seed, 0.5) for seed, factor in enumerate(FACTORS)]
    found = probe(codes, FACTORS, train=2)
    assert found.correlation > 0.9
    assert found.p_value < 0.01


def test_a_factor_that_is_not_in_the_codes_is_not_found():
    """Slow codes with nothing to do with a slow factor: p-values are spread over (0, 1), not piled up near 0."""
    values = []
    for trial in range(20):
        codes = [np.stack([slow(400, 1000 * trial + 10 * k + j) for j in range(5)], 1) for k in range(4)]
        values.append(probe(codes, FACTORS, train=2).p_value)
    assert 0.2 < np.mean(values) < 0.8
    assert sum(value < 0.05 for value in values) <= 4


def test_a_probe_wants_clips_to_test_on_and_frames_to_shift_by():
    codes = [codes_of(factor, 0, 1.0) for factor in FACTORS]
    for train, part in ((4, slice(None)), (0, slice(None)), (2, slice(100))):
        with pytest.raises(ValueError, match="leave a clip to test on"):
            probe([code[part] for code in codes], [factor[part] for factor in FACTORS], train)


def test_variety_of_samples_around_the_truth():
    """One pixel in two is a fair coin in the truth; samples toss it too and know the rest exactly."""
    generator = torch.Generator().manual_seed(0)
    random = torch.zeros(3, 4, 6, dtype=torch.bool)
    random[:, :, ::2] = True
    toss = lambda *shape: torch.rand(*shape, 3, 4, 6, generator=generator).round() * random  # noqa: E731
    truth = 0.2 + 0.6 * toss(2, 5)
    drawn = 0.2 + 0.6 * toss(64, 2, 5)
    found = variety(drawn, truth)
    assert found.spread == pytest.approx(0.3 * 0.5**0.5, rel=0.02)
    assert found.error == pytest.approx(0.3 * 0.5**0.5, rel=0.03)
    assert found.mean == pytest.approx(-20 * np.log10(found.error), abs=0.1)
    assert found.match > 0.9  # variance is 0.09 give or take a few per cent where random, 0 elsewhere
    steps = found.best_of.diff()
    assert (steps >= 0).all()
    assert steps.sum() > 0.1
    one = -10 * np.log10(0.36 * 0.5 * 0.5)  # a wrong coin in two of every second pixel
    assert float(found.best_of[0]) == pytest.approx(one, abs=0.5)


def test_samples_are_predictions_with_fresh_noise():
    torch.manual_seed(0)
    model = CVAE(ModelConfig.preset("compact", width=8, latents=2))
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn_like(value)
    p = torch.rand(2, 4, 3, 8, 16)
    first = torch.rand(2, 3, 8, 16)
    drawn = samples(model, first, p, 3, torch.Generator().manual_seed(1))
    assert drawn.shape == (3, 2, 3, 3, 8, 16)
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])
    alike = predict(
        model, first.repeat(3, 1, 1, 1), p.repeat(3, 1, 1, 1, 1), torch.Generator().manual_seed(1)
    )
    assert torch.equal(drawn.flatten(0, 1), alike)
