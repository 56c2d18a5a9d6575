"""Compare the reconstruction error, the KL and both scales of the loss with torch.distributions and plain loops."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from cvae_lab.models.cvae import reparameterise
from cvae_lab.objective import (
    elbo_from_loss,
    gaussian_nll,
    handout_beta,
    kl_cost,
    kl_per_latent,
    kl_standard_normal,
    psnr_weights,
    sigma_of_beta,
    squared_error,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_kl_equals_that_of_torch_distributions(generator):
    mu, logvar = 3 * normal(generator, 2, 5, 3, 2, 4), 3 * normal(generator, 2, 5, 3, 2, 4)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_per_latent(mu, logvar), expected)
    torch.testing.assert_close(kl_standard_normal(mu, logvar), expected.sum((-3, -2, -1)))


def test_kl_is_zero_for_the_prior_and_never_negative(generator):
    zero = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    assert kl_standard_normal(zero, zero).item() == 0
    assert (kl_per_latent(normal(generator, 4, 8, 8, 8), normal(generator, 4, 8, 8, 8)) >= 0).all()


def gaussians(generator, *shape):
    return [normal(generator, *shape).requires_grad_() for _ in range(4)]


def test_kl_to_a_learned_prior_equals_that_of_torch_distributions(generator):
    mu, logvar, *prior = gaussians(generator, 2, 5, 3, 2, 4)
    wanted = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(prior[0], (prior[1] / 2).exp()))
    torch.testing.assert_close(kl_per_latent(mu, logvar, tuple(prior)), wanted)
    plain = kl_cost(mu, logvar, tuple(prior))
    assert plain.item() == pytest.approx(wanted.sum().item() / 10)


def test_a_channel_below_its_free_bits_has_constant_cost_and_no_gradient(generator):
    mu = torch.zeros(4, 2, 3, 1, 2, dtype=torch.float64)
    mu[:, :, 1] = torch.tensor([1.0, 2.0])  # KL in nats: 0.5 + 2
    mu[:, :, 2] = 0.1  # KL: 0.01
    mu.requires_grad_()
    cost = kl_cost(mu, torch.zeros_like(mu), free_bits=0.4)
    assert cost.item() == pytest.approx(2.5 + 2 * 0.4)
    (gradient,) = torch.autograd.grad(cost, mu)
    assert [bool(gradient[:, :, channel].any()) for channel in range(3)] == [False, True, False]
    assert kl_cost(mu, torch.zeros_like(mu)).item() == pytest.approx(2.51)


@pytest.mark.parametrize("balance", [0.2, 0.8])
def test_balance_divides_the_gradient_and_keeps_the_value(generator, balance):
    values = gaussians(generator, 3, 2, 2, 1, 2)
    mu, logvar, *prior = values
    plain = torch.autograd.grad(kl_cost(mu, logvar, tuple(prior)), values)
    cost = kl_cost(mu, logvar, tuple(prior), balance=balance)
    assert cost.item() == pytest.approx(kl_cost(mu, logvar, tuple(prior)).item())
    fractions = [1 - balance, 1 - balance, balance, balance]
    for got, whole, fraction in zip(torch.autograd.grad(cost, values), plain, fractions, strict=True):
        torch.testing.assert_close(got, fraction * whole)


def test_squared_error_sums_over_one_frame(generator):
    a, b = normal(generator, 2, 2, 3, 4, 5), normal(generator, 2, 2, 3, 4, 5)
    for clip in range(2):
        for step in range(2):
            pairs = zip(a[clip, step].flatten().tolist(), b[clip, step].flatten().tolist(), strict=True)
            total = math.fsum((u - v) ** 2 for u, v in pairs)
            assert squared_error(a, b)[clip, step].item() == pytest.approx(total, rel=1e-12)


def test_psnr_weights_without_offset_give_the_gradient_of_the_logarithm(generator):
    x, prediction = normal(generator, 4, 3, 2, 5), normal(generator, 4, 3, 2, 5).requires_grad_()
    error = squared_error(prediction, x) / 30
    weighted = (psnr_weights(error, error.mean(), fraction=0.0, floor=0.0) * error).mean()
    (ours,) = torch.autograd.grad(weighted, prediction, retain_graph=True)
    (wanted,) = torch.autograd.grad(error.log().mean(), prediction)
    torch.testing.assert_close(ours, error.mean() * wanted)
    assert psnr_weights(error, error.mean(), floor=1e9).max() < 1e-6  # frames far below the floor
    assert psnr_weights(torch.tensor([0.0, 1.0]), torch.tensor(0.5)).max() <= 10  # one perfect frame


def test_the_gradient_of_reparameterise_matches_finite_differences(generator):
    mu, logvar, eps = (normal(generator, 1, 2, 2, 2) for _ in range(3))
    mu.requires_grad_()
    logvar.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: reparameterise(m, s, eps).pow(3), (mu, logvar))


def test_reparameterised_samples_follow_the_posterior(generator):
    mu, logvar = 0.7, math.log(0.09)
    eps = normal(generator, 20_000, 1, 1, 1)
    z = reparameterise(torch.full_like(eps, mu), torch.full_like(eps, logvar), eps).flatten()
    wanted = Normal(mu, 0.3)
    assert z.mean().item() == pytest.approx(wanted.mean.item(), abs=5 * 0.3 / math.sqrt(len(z)))
    assert z.var().item() == pytest.approx(wanted.variance.item(), rel=5 * math.sqrt(2 / len(z)))
    assert stats.kstest(z.numpy(), "norm", args=(mu, 0.3)).pvalue > 1e-3


def test_nll_equals_that_of_torch_distributions(generator):
    x, prediction = normal(generator, 4, 3, 2, 5), normal(generator, 4, 3, 2, 5)
    expected = -Normal(prediction, 0.4).log_prob(x).sum((-3, -2, -1))
    torch.testing.assert_close(gaussian_nll(squared_error(prediction, x), 30, 0.4**2), expected)


@pytest.mark.parametrize(("sigma", "beta"), [(0.1, 1.0), (2.0, 0.3), (0.0, 1.0)])
def test_the_losses_of_both_scales_have_proportional_gradients(generator, sigma, beta):
    x = normal(generator, 4, 3, 2, 5)
    leaves = [
        normal(generator, *shape).requires_grad_() for shape in ((4, 3, 2, 5), (4, 2, 1, 3), (4, 2, 1, 3))
    ]
    prediction, mu, logvar = leaves
    error, kl, dims = squared_error(prediction, x).mean(), kl_standard_normal(mu, logvar).mean(), 30
    variance = sigma**2 if sigma else error.item() / dims
    elbo = gaussian_nll(squared_error(prediction, x), dims, variance).mean() + beta * kl
    ours = error / dims + handout_beta(beta, "elbo", dims, sigma, error / dims) * kl
    factor = dims / (2 * variance)
    wanted = torch.autograd.grad(elbo, leaves, retain_graph=True)
    got = torch.autograd.grad(ours, leaves)
    torch.testing.assert_close(wanted, tuple(factor * part for part in got))


def test_the_most_likely_variance_is_the_mean_squared_error():
    dims, error = 30, torch.tensor([6.0], dtype=torch.float64)
    grid = torch.arange(0.05, 0.6, 0.001, dtype=torch.float64)
    nll = torch.cat([gaussian_nll(error, dims, value) for value in grid])
    assert grid[nll.argmin()].item() == pytest.approx(6.0 / dims, abs=0.001)
    weight = handout_beta(1.0, "elbo", dims, 0.0, 6.0 / dims)
    assert float(weight) == pytest.approx(2 * (6.0 / dims) / dims)


def test_sigma_of_beta_is_the_inverse_of_the_conversion():
    assert sigma_of_beta(1.0, 6144) == pytest.approx(55.4, abs=0.1)
    for beta in (1e-6, 1e-3, 1.0):
        assert handout_beta(1.0, "elbo", 6144, sigma_of_beta(beta, 6144)) == pytest.approx(beta)
        assert handout_beta(beta, "handout", 6144) == beta


class LinearModel:
    """Decoder N(W z + b, sigma^2 I) with z ~ N(0, I), for which log p(x) is known. Frames have 3 x 1 x 2 values."""

    dims, latents, sigma = 6, 2, 0.4

    def __init__(self, generator):
        self.weight = normal(generator, self.dims, self.latents)
        self.bias = normal(generator, self.dims)

    def decode(self, z):
        return (z @ self.weight.T + self.bias).unflatten(-1, (3, 1, 2))

    def log_p(self, x):
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(self.dims, dtype=torch.float64)
        return MultivariateNormal(self.bias, covariance).log_prob(x.flatten(-3))

    def importance_sampled_log_p(self, x, mu, logvar, draws, generator):
        """Return, per frame, the log of the mean of p(x | z) p(z) / q(z | x) over z ~ q (Burda et al. 2016)."""
        q = Normal(mu, (logvar / 2).exp())
        z = mu + (logvar / 2).exp() * normal(generator, draws, *mu.shape)
        fit = Normal(self.decode(z), self.sigma).log_prob(x).sum((-3, -2, -1))
        weights = fit + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        return weights.logsumexp(0) - math.log(draws)

    def loss(self, x, mu, logvar, draws, generator, weighting):
        """Return the training loss at scale elbo, per frame and averaged over draws of z."""
        z = mu + (logvar / 2).exp() * normal(generator, draws, *mu.shape)
        error = squared_error(self.decode(z), x.expand(draws, *x.shape)) / self.dims
        weights = psnr_weights(error, error.mean()) if weighting == "psnr" else 1.0
        kl = kl_standard_normal(*(part[..., None, None] for part in (mu, logvar)))
        return (weights * error).mean(0) + handout_beta(1.0, "elbo", self.dims, self.sigma) * kl


def posterior_of(model, x):
    """Return mu of the exact posterior, and the log-variances of the closest Gaussian with independent latents."""
    precision = torch.eye(2, dtype=torch.float64) + model.weight.T @ model.weight / model.sigma**2
    mu = (x.flatten(1) - model.bias) @ model.weight / model.sigma**2 @ precision.inverse()
    return mu, -precision.diagonal().log().expand(len(x), 2)


def test_the_loss_at_scale_elbo_is_a_lower_bound_on_log_p(generator):
    """Compare with the exact and the importance-sampled log p(x), for the best posterior and two shifted posteriors."""
    model, frames = LinearModel(generator), 5
    x = model.decode(normal(generator, frames, 2)) + model.sigma * normal(generator, frames, 3, 1, 2)
    best_mu, logvar = posterior_of(model, x)
    proposal = logvar + 1  # wider than the posterior, so that no importance weight dominates
    sampled = model.importance_sampled_log_p(x, best_mu, proposal, 50_000, generator)
    torch.testing.assert_close(sampled, model.log_p(x), atol=0.05, rtol=0)
    gaps = []
    for shift in (0.0, 0.5, 1.0):
        loss = model.loss(x, best_mu + shift, logvar, 10_000, generator, "equal")
        gaps.append(sampled - elbo_from_loss(loss, model.dims, model.sigma**2))
        assert (gaps[-1] > -0.05).all()  # tolerance for the error of both sampled quantities
    assert gaps[0].mean() < 1.0 < gaps[1].mean() < gaps[2].mean()


def test_the_loss_with_psnr_weights_is_not_a_lower_bound(generator):
    """This is why the configuration raises an error for scale `elbo` with weighting `psnr`."""
    model = LinearModel(generator)
    basis = torch.linalg.qr(model.weight, mode="complete").Q
    x = (model.bias + 3 * basis[:, -1]).reshape(1, 3, 1, 2)  # the decoder cannot produce the last direction
    bounds = {}
    for weighting in ("equal", "psnr"):
        loss = model.loss(x, *posterior_of(model, x), 10_000, generator, weighting)
        bounds[weighting] = float(elbo_from_loss(loss, model.dims, model.sigma**2))
    assert bounds["equal"] < float(model.log_p(x)) + 0.05
    assert bounds["psnr"] > float(model.log_p(x)) + 1
