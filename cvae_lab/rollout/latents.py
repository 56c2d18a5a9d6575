"""Where z comes from at each step of a free run: the prior, the posterior, or zero."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.models.cvae import CVAE, reparameterise

Latents = Callable[[int, Tensor, Tensor], Tensor]
"""z of a step: called with s = 0, 1, ..., the features of the previous frame and of the current label."""


def prior_latents(
    model: CVAE, first: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
) -> Latents:
    """Draw z from the prior: N(0, I), or the learned prior where the model has one.

    Noise is drawn on the generator's own device, so a CPU generator gives the same video on any device. Without a
    generator, noise comes from a new one with seed 0, so every call returns the same video.
    """
    noise = _noise(model, first, generator)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        prior = model.prior(previous, label)
        return noise() if prior is None else reparameterise(*prior, noise())

    return latents


def zero_latents(model: CVAE, first: Float[Tensor, "b 3 h w"]) -> Latents:
    """Use z = 0 at every step, the mean of N(0, I)."""
    zeros = first.new_zeros(first.shape[0], *model.latent_shape(*first.shape[-2:]))
    return lambda step, previous, label: zeros


def posterior_latents(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    mean: bool = False,
) -> Latents:
    """Draw z from the posterior q(z | x_t, p_t), or use its mean. It sees the true frame, so it is no prediction."""
    noise = _noise(model, x[:, 0], generator)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        t = step + 1
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), model.label_transformation(p[:, t]))
        return mu if mean else reparameterise(mu, logvar, noise())

    return latents


def _noise(
    model: CVAE, first: Float[Tensor, "b 3 h w"], generator: torch.Generator | None
) -> Callable[[], Tensor]:
    shape = (first.shape[0], *model.latent_shape(*first.shape[-2:]))
    source = generator or torch.Generator().manual_seed(0)
    return lambda: torch.randn(shape, generator=source, device=source.device).to(first.device)
