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


def kl_standard_normal(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"]
) -> Float[Tensor, "*b"]:
    """KL(N(mu, exp(logvar)) || N(0, I)) per frame in nats, summed over latents (Kingma & Welling 2014, B)."""
    return kl_per_latent(mu, logvar).sum(dim=(-3, -2, -1))


def kl_per_latent(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"]
) -> Float[Tensor, "*b z h w"]:
    """The same before summation, one value per latent."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


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
