"""Test the comparison of samples and the regression from latents with data whose result is known."""

import numpy as np
import pytest
import torch

from cvae_lab import CVAE, ModelConfig
from cvae_lab.evaluation.samples import probe, samples, variety
from cvae_lab.rollout import clip_streams, predict


def slow(n, seed, keep=0.95):
    """Return a slow random process around 0 (first-order autoregressive)."""
    rng, values = np.random.default_rng(seed), [0.0]
    for step in rng.standard_normal(n + 50):
        values.append(keep * values[-1] + step)
    return np.array(values[-n:])


def codes_of(factor, seed, strength):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(factor), 20))
    return noise + strength * factor[:, None] * np.linspace(-1, 1, 20)


FACTORS = [slow(400, seed) for seed in range(4)]


def test_a_factor_in_the_codes_is_detected():
    codes = [codes_of(factor, seed, 0.5) for seed, factor in enumerate(FACTORS)]
    found = probe(codes, FACTORS, train=2)
    assert found.correlation > 0.9
    assert found.p_value < 0.01


def test_a_factor_that_is_not_in_the_codes_is_not_detected():
    """If slow codes and a slow factor are independent, p-values are distributed over the whole interval (0, 1)."""
    values = []
    for trial in range(20):
        codes = [np.stack([slow(400, 1000 * trial + 10 * k + j) for j in range(5)], 1) for k in range(4)]
        values.append(probe(codes, FACTORS, train=2).p_value)
    assert 0.2 < np.mean(values) < 0.8
    assert sum(value < 0.05 for value in values) <= 4


def test_a_probe_requires_test_clips_and_clips_of_enough_frames():
    codes = [codes_of(factor, 0, 1.0) for factor in FACTORS]
    for train, part in ((4, slice(None)), (0, slice(None)), (2, slice(100))):
        with pytest.raises(ValueError, match="keep at least one clip for the test"):
            probe([code[part] for code in codes], [factor[part] for factor in FACTORS], train)


def test_variety_of_samples_around_the_truth():
    """Every second pixel has one of two random values in truth and samples; the other pixels are equal."""
    generator = torch.Generator().manual_seed(0)
    random = torch.zeros(3, 4, 6, dtype=torch.bool)
    random[:, :, ::2] = True
    draw = lambda *shape: torch.rand(*shape, 3, 4, 6, generator=generator).round() * random  # noqa: E731
    truth = 0.2 + 0.6 * draw(2, 5)
    drawn = 0.2 + 0.6 * draw(64, 2, 5)
    found = variety(drawn, truth)
    assert found.spread == pytest.approx(0.3 * 0.5**0.5, rel=0.02)
    assert found.error == pytest.approx(0.3 * 0.5**0.5, rel=0.03)
    assert found.mean == pytest.approx(-20 * np.log10(found.error), abs=0.1)
    assert found.match > 0.9  # variance is about 0.09 where random, 0 elsewhere
    steps = found.best_of.diff()
    assert (steps >= 0).all()
    assert steps.sum() > 0.1
    one = -10 * np.log10(0.36 * 0.5 * 0.5)  # half of the random pixels are wrong
    assert float(found.best_of[0]) == pytest.approx(one, abs=0.5)


def test_samples_are_predictions_with_different_noise():
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
    streams = clip_streams(clip_streams(torch.Generator().manual_seed(1), 2)[1], 3)
    alone = [predict(model, first[1:], p[1:], [stream])[0] for stream in streams]
    torch.testing.assert_close(drawn[:, 1], torch.stack(alone))


def test_a_probe_of_the_large_latent_of_handout_needs_little_memory():
    """A covariance matrix of its 24,576 values per frame would need 4.8 GB."""
    rng = np.random.default_rng(0)
    codes = [rng.standard_normal((130, 24_576), np.float32) for _ in range(2)]
    for code, factor in zip(codes, FACTORS, strict=False):
        code += 0.2 * factor[:130, None]
    found = probe(codes, [factor[:130] for factor in FACTORS[:2]], train=1)
    assert found.correlation > 0.9
