"""Sources of z for each step of a free-running prediction: the prior, the posterior, the prior's mean, or zero.

Every clip has its own noise stream, so the prediction of a clip does not depend on the other clips in the batch.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.models.cvae import CVAE, reparameterise

Latents = Callable[[int, Tensor, Tensor], Tensor]
"""Function that returns z of one step. Arguments: s = 0, 1, ..., features of the previous frame and current label."""

NoiseSource = torch.Generator | Sequence[torch.Generator] | None
"""Source of noise: one generator per clip, or one generator that seeds those of the clips in order, or None.

None means a new generator with seed 0, so every call without a generator draws the same noise.
"""

STEPS_PER_DRAW = 16  # number of steps per draw of a clip's noise; another number would give other noise


def clip_streams(source: NoiseSource, clips: int) -> list[torch.Generator]:
    """Return one generator per clip. From a single `source`, one number per clip is drawn, which is the clip's seed."""
    if isinstance(source, Sequence):
        if len(source) != clips:
            raise ValueError(
                f"{len(source)} generators for {clips} clips; pass one generator per clip, or a single generator."
            )
        return list(source)
    source = source or torch.Generator().manual_seed(0)
    seeds = [int(torch.randint(2**62, (), generator=source, device=source.device)) for _ in range(clips)]
    return [torch.Generator(source.device).manual_seed(seed) for seed in seeds]


def clip_noise(
    model: CVAE, first: Float[Tensor, "b 3 h w"], source: NoiseSource = None
) -> Iterator[Float[Tensor, "b z hz wz"]]:
    """Return an endless iterator over standard normal noise for z, one item per step.

    Noise is drawn on the generators' device, so CPU generators give the same noise on any device.
    """
    shape = (STEPS_PER_DRAW, *model.latent_shape(*first.shape[-2:]))
    streams = clip_streams(source, len(first))

    def steps() -> Iterator[Tensor]:
        while True:
            draws = [torch.randn(shape, generator=stream, device=stream.device) for stream in streams]
            yield from torch.stack(draws, dim=1).to(first.device)

    return steps()


def after_steps(
    model: CVAE, first: Float[Tensor, "b 3 h w"], streams: Sequence[torch.Generator], steps: int
) -> list[torch.Generator]:
    """Return copies of the streams in the state that they have after `steps` steps of `clip_noise`."""
    copies = [stream.clone_state() for stream in streams]
    noise = clip_noise(model, first, copies)
    for _ in range(steps):
        next(noise)
    return copies


def prior_latents(model: CVAE, first: Float[Tensor, "b 3 h w"], generator: NoiseSource = None) -> Latents:
    """Draw z from the prior: from the learned prior if the model has one, otherwise from N(0, I).

    Args:
        generator: one generator per clip, or one generator for the seeds of all clips. With None the seed is 0, so
            every call gives the same video.
    """
    noise = clip_noise(model, first, generator)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        prior = model.prior(previous, label)
        return next(noise) if prior is None else reparameterise(*prior, next(noise))

    return latents


def prior_mean_latents(model: CVAE, first: Float[Tensor, "b 3 h w"]) -> Latents:
    """Use the mean of the prior at every step: 0, or the mean of the learned prior if the model has one."""
    zeros = zero_latents(model, first)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        prior = model.prior(previous, label)
        return zeros(step, previous, label) if prior is None else prior[0]

    return latents


def zero_latents(model: CVAE, first: Float[Tensor, "b 3 h w"]) -> Latents:
    """Use z = 0 at every step, which is the mean of N(0, I)."""
    zeros = first.new_zeros(first.shape[0], *model.latent_shape(*first.shape[-2:]))
    return lambda step, previous, label: zeros


def posterior_latents(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    generator: NoiseSource = None,
    mean: bool = False,
) -> Latents:
    """Draw z from the posterior q(z | x_t, p_t), or use its mean.

    The posterior depends on the true frame, so the resulting frames are not predictions.
    """
    noise = clip_noise(model, x[:, 0], generator)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        t = step + 1
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), model.label_transformation(p[:, t]))
        return mu if mean else reparameterise(mu, logvar, next(noise))

    return latents
