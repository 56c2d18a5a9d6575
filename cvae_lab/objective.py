"""Training objective: reconstruction error, KL term and two scales of the KL weight.

D is the number of values in a frame, 3 x height x width. The two scales are:

    assignment:  loss = (squared error) / D + beta * KL
    ELBO:        loss = -log N(x; prediction, sigma^2 I) + beta * KL
                      = (squared error) / (2 sigma^2) + D/2 log(2 pi sigma^2) + beta * KL

Multiplied by 2 sigma^2 / D, the ELBO loss equals the assignment's loss with KL weight beta * 2 sigma^2 / D, plus a
constant. The two losses therefore differ only in the KL weight, which `handout_beta` converts. Training always uses the
assignment's form. In this form, the scale of the reconstruction term does not depend on sigma. The same learning rate
and gradient clipping are therefore suitable for every sigma.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Gaussian = tuple[Float[Tensor, "*b z h w"], Float[Tensor, "*b z h w"]]
"""Mean and log-variance of independent latents."""


def squared_error(
    prediction: Float[Tensor, "*b c h w"], target: Float[Tensor, "*b c h w"]
) -> Float[Tensor, "*b"]:
    """Return the squared error of each frame, summed over channels and pixels."""
    return (prediction - target).square().sum(dim=(-3, -2, -1))


def gaussian_nll(
    squared_error: Float[Tensor, "*b"], dims: int, variance: float | Float[Tensor, ""]
) -> Float[Tensor, "*b"]:
    """Return -log N(x; prediction, variance * I) of each frame in nats, from its summed squared error.

    Args:
        dims: values per frame, D.
    """
    variance = torch.as_tensor(variance, dtype=squared_error.dtype)
    return 0.5 * (squared_error / variance + dims * torch.log(2 * math.pi * variance))


def kl_standard_normal(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"]
) -> Float[Tensor, "*b"]:
    """Return KL(N(mu, exp(logvar)) || N(0, I)) of each frame in nats, summed over latents.

    Source: Kingma & Welling 2014, appendix B.
    """
    return kl_per_latent(mu, logvar).sum(dim=(-3, -2, -1))


def kl_per_latent(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"], prior: Gaussian | None = None
) -> Float[Tensor, "*b z h w"]:
    """Return KL(N(mu, exp(logvar)) || prior) in nats, one value per latent.

    Args:
        prior: mean and log-variance of a learned prior, or None for N(0, I).
    """
    if prior is None:
        return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
    prior_mu, prior_logvar = prior
    squared_distance = (mu - prior_mu).square()
    return 0.5 * ((squared_distance + logvar.exp()) / prior_logvar.exp() - 1 - logvar + prior_logvar)


def kl_cost(
    mu: Float[Tensor, "*b z h w"],
    logvar: Float[Tensor, "*b z h w"],
    prior: Gaussian | None = None,
    free_bits: float = 0.0,
    balance: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the KL term of the loss: nats per frame, summed over latents, averaged over all frames.

    Args:
        prior: mean and log-variance of a learned prior, or None for N(0, I).
        free_bits: lower bound in nats on the KL of each channel of z, summed over its grid cells. Below the bound,
            the KL has no gradient (Kingma et al. 2016, appendix C.8).
        balance: fraction of the KL gradient that trains a learned prior; the rest trains the posterior. The value of
            the KL does not change (Hafner et al. 2021, algorithm 2). With 0, the full gradient of the plain KL passes
            to prior and posterior.
    """
    if balance and prior is not None:
        fixed_prior = (prior[0].detach(), prior[1].detach())
        trains_prior = kl_per_latent(mu.detach(), logvar.detach(), prior)
        trains_posterior = kl_per_latent(mu, logvar, fixed_prior)
        kl = balance * trains_prior + (1 - balance) * trains_posterior
    else:
        kl = kl_per_latent(mu, logvar, prior)
    per_channel = kl.sum(dim=(-2, -1)).flatten(0, -2).mean(dim=0)
    return per_channel.clamp_min(free_bits).sum()


def handout_beta(
    beta: float, scale: str, dims: int, sigma: float = 0.0, mse: Tensor | float | None = None
) -> Tensor | float:
    """Convert a KL weight to the scale of the assignment's loss.

    Args:
        scale: `handout` returns beta unchanged; `elbo` returns 2 sigma^2 beta / D.
        dims: values per frame, D.
        sigma: standard deviation of the decoder. 0 selects the closed-form optimum for this batch, sigma^2 = mse
            (Rybkin et al. 2021, section 3.2).
        mse: mean squared error of the batch; required if sigma is 0. No gradient passes through this value.
    """
    if scale == "handout":
        return beta
    variance = sigma**2 if sigma > 0 else torch.as_tensor(mse).detach()
    return 2 * variance * beta / dims


def elbo_from_loss(loss: Tensor | float, dims: int, variance: Tensor | float) -> Tensor:
    """Return the ELBO in nats per frame for a training loss at scale `elbo` with beta = 1 and equal frame weights.

    The ELBO is a lower bound on log p(x) of a model with decoder N(prediction, variance * I) and z from the prior. With
    `psnr_weights` the result is not a lower bound. These weights depend on the error, but no gradient passes through
    the weights. The weighted error is therefore not the negative logarithm of a likelihood.

    Args:
        dims: values per frame, D.
        variance: decoder variance that was used to compute the KL weight of the loss.
    """
    variance = torch.as_tensor(variance)
    return -dims / (2 * variance) * loss - dims / 2 * torch.log(2 * math.pi * variance)


def sigma_of_beta(beta: float, dims: int) -> float:
    """Return the decoder's standard deviation sqrt(beta D / 2), which corresponds to a KL weight of the assignment."""
    return math.sqrt(beta * dims / 2)


def psnr_weights(
    error: Float[Tensor, "*b"], mean: Float[Tensor, ""], fraction: float = 0.1, floor: float = 1e-4
) -> Float[Tensor, "*b"]:
    """Return the frame weights mean / (error + offset), with which the loss optimises the mean PSNR of the frames.

    The loss multiplies the mean squared error of each frame by its weight. Without the offset, the weighted error would
    have the gradient of mean * log(error), and every frame would count equally in dB. The offset is `fraction` * mean +
    `floor`. The offset limits the weight of a frame with a small error. Frames with an error far below `floor` (1e-4 is
    40 dB) are not optimised further. No gradient passes through the weights.

    Args:
        error: mean squared error of each frame.
        mean: mean of `error` over the frames of all processes.
    """
    return (mean / (error + fraction * mean + floor)).detach()
