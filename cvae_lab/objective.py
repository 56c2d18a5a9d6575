"""Reconstruction and KL, per sample and frame, and the scale between them.

Handout:  loss = mean squared error over D values + beta * KL, KL summed over the latents.
ELBO:    -log p(x | z) + beta * KL with a Gaussian decoder of variance sigma^2, summed over D values.
The ELBO's loss times 2 sigma^2 / D is the handout's with beta_handout = 2 sigma^2 beta / D (plus a constant),
so one scale converts into the other; we always step on the handout's form, for which a learning rate and a
gradient clip mean the same thing whatever sigma is.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(
    prediction: Float[Tensor, "*b c h w"], target: Float[Tensor, "*b c h w"]
) -> Float[Tensor, "*b"]:
    """Squared error per frame, summed over channels and pixels."""
    return (prediction - target).square().sum(dim=(-3, -2, -1))


def psnr_weights(
    error: Float[Tensor, "*b"], mean: Float[Tensor, ""], share: float = 0.1, floor: float = 1e-4
) -> Float[Tensor, "*b"]:
    """Weights under which mean squared errors per frame pull about as much as their logarithms, times their `mean`.

    Frames count in inverse proportion to their error, which climbs the mean of frame PSNRs; it is the likelihood of a
    decoder with each frame's own optimal sigma (Rybkin et al. 2021, section 3.2). To every error this `share` of the
    mean is added, lest one easy frame take all, and `floor` (40 dB), below which a frame is good enough. No gradient
    runs through the weights.
    """
    return (mean / (error + share * mean + floor)).detach()


Gaussian = tuple[Float[Tensor, "*b z h w"], Float[Tensor, "*b z h w"]]
"""Mean and log-variance of independent latents."""


def kl_standard_normal(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"]
) -> Float[Tensor, "*b"]:
    """KL(N(mu, exp(logvar)) || N(0, I)) per frame in nats, summed over latents (Kingma & Welling 2014, B)."""
    return kl_per_latent(mu, logvar).sum(dim=(-3, -2, -1))


def kl_per_latent(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"], prior: Gaussian | None = None
) -> Float[Tensor, "*b z h w"]:
    """The same before summation, one value per latent; to another Gaussian than N(0, I) where `prior` is given."""
    if prior is None:
        return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
    away = (mu - prior[0]).square()
    return 0.5 * ((away + logvar.exp()) / prior[1].exp() - 1 - logvar + prior[1])


def kl_cost(
    mu: Float[Tensor, "*b z h w"],
    logvar: Float[Tensor, "*b z h w"],
    prior: Gaussian | None = None,
    free_bits: float = 0.0,
    balance: float = 0.0,
) -> Float[Tensor, ""]:
    """What training pays for KL: nats per frame, mean over all but the latents, with two known ways to pay less.

    `free_bits`: a channel of z, summed over its grid, costs this many nats at least, so that less saves nothing
    (Kingma et al. 2016, appendix C.8). `balance`: with a learned prior, this share of the gradient moves the prior and
    the rest the posterior (Hafner et al. 2021, algorithm 2); 0 is the plain KL, which moves both fully.
    """
    if balance and prior is not None:
        frozen = [part.detach() for part in prior]
        to_prior = kl_per_latent(mu.detach(), logvar.detach(), prior)
        to_posterior = kl_per_latent(mu, logvar, (frozen[0], frozen[1]))
        kl = balance * to_prior + (1 - balance) * to_posterior
    else:
        kl = kl_per_latent(mu, logvar, prior)
    by_channel = kl.sum(dim=(-2, -1)).flatten(0, -2).mean(dim=0)
    return by_channel.clamp_min(free_bits).sum()


def handout_beta(
    beta: float, scale: str, dims: int, sigma: float = 0.0, mse: Tensor | float | None = None
) -> Tensor | float:
    """The KL weight in units of the handout's loss.

    Scale `handout` gives beta itself; `elbo` gives 2 sigma^2 beta / D, where a sigma of 0 stands for the
    closed-form optimum sigma^2 = mse of the batch (Rybkin et al. 2021, section 3.2). D is `dims`, values per frame.
    """
    if scale == "handout":
        return beta
    variance = sigma**2 if sigma > 0 else torch.as_tensor(mse).detach()
    return 2 * variance * beta / dims


def sigma_of_beta(beta: float, dims: int) -> float:
    """The decoder's standard deviation that a handout-scale beta stands for: sqrt(beta D / 2)."""
    return math.sqrt(beta * dims / 2)


def gaussian_nll(
    squared_error: Float[Tensor, "*b"], dims: int, variance: float | Float[Tensor, ""]
) -> Float[Tensor, "*b"]:
    """-log N(x; prediction, variance I) per frame in nats, from the summed squared error."""
    variance = torch.as_tensor(variance, dtype=squared_error.dtype)
    return 0.5 * (squared_error / variance + dims * torch.log(2 * math.pi * variance))
