"""Augmentation of clips: mirror image, parts of other clips, shift, brightness."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from cvae_lab.data.clips import ClipBatch
from cvae_lab.device import sent

# What a label draws, as RGB: the middle line, and the limbs of the right and of the left, partner by partner.
MIDDLE = ((112, 84, 236), (196, 84, 214))
RIGHT = ((92, 160, 255), (72, 226, 120), (90, 236, 60))  # arm, leg, foot
LEFT = ((84, 216, 255), (255, 134, 72), (255, 190, 50))


def mirror_labels(p: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Labels of the mirrored scene: flipped, with the colours of left and right limbs exchanged.

    Without the exchange a mirrored label shows a person with crossed limbs. Each pixel's ink (1 - label) is that of
    the limb nearest in hue, at the strength that fits it best, and becomes as much of the partner's ink.
    """
    ink = 1 - p.flip(-1).movedim(-3, -1)
    # Most of a label is blank paper, which a CPU may skip; a GPU would have to wait to know how much of it.
    drawn = ink.amax(-1) > 0 if ink.device.type == "cpu" else ...
    ink[drawn] = exchange_limbs(ink[drawn])
    return 1 - ink.movedim(-1, -3)


def exchange_limbs(ink: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Ink (1 - label, in [0, 1], RGB last) of each right limb as its left partner's, and the reverse; blank stays."""
    inks = sent(1 - torch.tensor([*MIDDLE, *RIGHT, *LEFT]) / 255, ink.device).to(ink.dtype)
    partner = sent(torch.tensor([0, 1, 5, 6, 7, 2, 3, 4]), ink.device)
    limb = (ink @ F.normalize(inks, dim=1).T).argmax(-1)
    strength = (ink * inks[limb]).sum(-1, keepdim=True) / inks[limb].square().sum(-1, keepdim=True)
    mirrored = (strength * inks[partner[limb]]).clamp(0, 1)
    return torch.where((limb < len(MIDDLE)).unsqueeze(-1), ink, mirrored)


def flip(batch: ClipBatch, generator: torch.Generator) -> ClipBatch:
    """Mirror each clip with probability one half."""
    chosen = (torch.rand(len(batch.x), generator=generator) < 0.5).nonzero().flatten()
    chosen = sent(chosen, batch.x.device)
    x, p = batch.x.clone(), batch.p.clone()
    x[chosen], p[chosen] = x[chosen].flip(-1), mirror_labels(p[chosen])
    return ClipBatch(x, p)


def paste(batch: ClipBatch, share: float, generator: torch.Generator) -> ClipBatch:
    """Paste a rectangle of another clip into a `share` of the clips, frames and labels alike.

    As CutMix (Yun et al. 2019) does with pictures and their classes; here each pixel keeps its own label. The model
    sees an upper half in one pose on legs in another, and learns that what a label does not draw is not there.
    """
    count, (height, width), device = len(batch.x), batch.x.shape[-2:], batch.x.device
    chosen = torch.rand(count, generator=generator) < share
    donor = sent(torch.randperm(count, generator=generator), device)
    rows, columns = _spans(count, height, generator), _spans(count, width, generator)
    inside = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]
    inside = sent(inside, device)[:, None, None]
    return ClipBatch(*(torch.where(inside, part[donor], part) for part in batch))


def _spans(count: int, size: int, generator: torch.Generator) -> Bool[Tensor, "b n"]:
    """Pixels of `count` intervals, 0.3 to 0.8 of `size` long, their middles anywhere in it."""
    length, middle = torch.rand(2, count, 1, generator=generator)
    return (torch.arange(size) + 0.5 - size * middle).abs() < size * (0.3 + 0.5 * length) / 2


def shift(batch: ClipBatch, pixels: int, generator: torch.Generator) -> ClipBatch:
    """Move half of the clips sideways by up to `pixels`, frames and labels together, the border repeated.

    Whole pixels, since parts of one would blur; sideways, as people walk.
    """
    count, width, device = len(batch.x), batch.x.shape[-1], batch.x.device
    moves = torch.randint(-pixels, pixels + 1, (count,), generator=generator)
    moves *= torch.rand(count, generator=generator) < 0.5
    columns = sent((torch.arange(width) + moves[:, None]).clamp(0, width - 1), device)[:, None, None, None]
    return ClipBatch(*(part.gather(-1, columns.expand(part.shape)) for part in batch))


def jitter(batch: ClipBatch, strength: float, generator: torch.Generator) -> ClipBatch:
    """Scale each clip's brightness by a factor within 1 ± strength."""
    factor = 1 + strength * (2 * torch.rand(len(batch.x), generator=generator) - 1)
    return batch._replace(x=(batch.x * sent(factor, batch.x.device)[:, None, None, None, None]).clamp(0, 1))
