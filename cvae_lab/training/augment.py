"""Augmentation of training clips: mirroring, pasted rectangles, horizontal shift, brightness."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from cvae_lab.config import TrainConfig
from cvae_lab.data.clips import ClipBatch, Dataset
from cvae_lab.data.palette import mirror_labels

_log = logging.getLogger(__name__)

Mirror = Callable[[Tensor], Tensor]
"""Returns the labels of the mirrored scene."""


def augment(
    batch: ClipBatch, config: TrainConfig, generator: torch.Generator, mirror: Mirror | None = mirror_labels
) -> ClipBatch:
    """Apply every augmentation that `config` switches on: `flip`, `paste`, `shift`, `jitter`, in this order.

    Args:
        mirror: function that mirrors labels. With None, no clip is flipped; pass None if the label colours are unknown.
    """
    if config.flip and mirror is not None:
        batch = flip(batch, generator, mirror)
    if config.paste:
        batch = paste(batch, config.paste, generator)
    if config.shift:
        batch = shift(batch, config.shift, generator)
    if config.jitter:
        batch = jitter(batch, config.jitter, generator)
    return batch


def mirroring(data: Dataset) -> Mirror | None:
    """Return the function that mirrors the labels of a data set, or None with a warning if that is impossible."""
    if not hasattr(data, "palette"):
        return mirror_labels
    if data.palette is None:
        _log.warning(
            f"flip is switched off: the labels of {data.name} have other colours than the known colours of left and "
            f"right limbs, so these labels cannot be mirrored."
        )
        return None
    return partial(mirror_labels, palette=data.palette)


def flip(batch: ClipBatch, generator: torch.Generator, mirror: Mirror = mirror_labels) -> ClipBatch:
    """Mirror each clip with probability 0.5. In labels, the colours of left and right limbs are also exchanged."""
    chosen = (torch.rand(len(batch.x), generator=generator) < 0.5).nonzero().flatten().to(batch.x.device)
    x, p = batch.x.clone(), batch.p.clone()
    x[chosen], p[chosen] = x[chosen].flip(-1), mirror(p[chosen])
    return ClipBatch(x, p)


def paste(batch: ClipBatch, fraction: float, generator: torch.Generator) -> ClipBatch:
    """Paste a rectangle of another clip into a `fraction` of the clips, at the same place in frames and labels.

    CutMix (Yun et al. 2019) pastes rectangles of images and mixes their class labels. Here, labels are pictures, so
    the same rectangle of the label is pasted and no mixing is needed.
    """
    count, (height, width), device = len(batch.x), batch.x.shape[-2:], batch.x.device
    chosen = torch.rand(count, generator=generator) < fraction
    donor = torch.randperm(count, generator=generator).to(device)
    rows, columns = _intervals(count, height, generator), _intervals(count, width, generator)
    inside = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]
    inside = inside.to(device)[:, None, None]
    return ClipBatch(*(torch.where(inside, part[donor], part) for part in batch))


def _intervals(count: int, size: int, generator: torch.Generator) -> Bool[Tensor, "b n"]:
    """Return masks of `count` random intervals: lengths of 0.3 to 0.8 of `size`, uniformly distributed centres."""
    length, middle = torch.rand(2, count, 1, generator=generator)
    return (torch.arange(size) + 0.5 - size * middle).abs() < size * (0.3 + 0.5 * length) / 2


def shift(batch: ClipBatch, pixels: int, generator: torch.Generator) -> ClipBatch:
    """Shift half of the clips horizontally by up to `pixels`. Frames and labels are shifted by the same amount.

    Empty columns are filled with the nearest edge pixels. Shifts are whole pixels, because interpolation would blur.
    """
    count, width, device = len(batch.x), batch.x.shape[-1], batch.x.device
    moves = torch.randint(-pixels, pixels + 1, (count,), generator=generator)
    moves *= torch.rand(count, generator=generator) < 0.5
    columns = (torch.arange(width) + moves[:, None]).clamp(0, width - 1).to(device)[:, None, None, None]
    return ClipBatch(*(part.gather(-1, columns.expand(part.shape)) for part in batch))


def jitter(batch: ClipBatch, strength: float, generator: torch.Generator) -> ClipBatch:
    """Scale each clip's brightness by a factor drawn uniformly from 1 - strength to 1 + strength."""
    factor = 1 + strength * (2 * torch.rand(len(batch.x), generator=generator) - 1)
    return batch._replace(x=(batch.x * factor.to(batch.x.device)[:, None, None, None, None]).clamp(0, 1))
