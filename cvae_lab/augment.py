"""Augmentation of clips: mirror image, brightness."""

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.data.clips import ClipBatch

# Ink (1 - label) of the two legs, at full strength; the other limbs have next to no blue ink.
GREEN_LEG = (1.0, 0.0, 0.6)
ORANGE_LEG = (0.0, 0.5, 0.8)


def mirror_labels(p: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Labels of the mirrored scene: flipped, with the colours of left and right leg exchanged.

    Without the exchange a mirrored label shows a person whose legs are crossed over.
    """
    ink = 1 - p.flip(-1)
    red, green, blue = ink.unbind(-3)
    is_leg = blue > 0.4 * torch.maximum(red, green)
    is_green = is_leg & (red > green)
    strength = torch.where(is_green, blue / GREEN_LEG[2], blue / ORANGE_LEG[2]).unsqueeze(-3)
    other = torch.where(is_green.unsqueeze(-3), _colour(ink, ORANGE_LEG), _colour(ink, GREEN_LEG))
    return 1 - torch.where(is_leg.unsqueeze(-3), (strength * other).clamp(0, 1), ink)


def _colour(like: Tensor, colour: tuple[float, float, float]) -> Tensor:
    return like.new_tensor(colour)[:, None, None]


def flip(batch: ClipBatch, generator: torch.Generator) -> ClipBatch:
    """Mirror each clip, with its anchor, with probability one half."""
    chosen = (torch.rand(len(batch.x), generator=generator) < 0.5).to(batch.x.device)
    one, many = chosen[:, None, None, None], chosen[:, None, None, None, None]
    return ClipBatch(
        x=torch.where(many, batch.x.flip(-1), batch.x),
        p=torch.where(many, mirror_labels(batch.p), batch.p),
        anchor=torch.where(one, batch.anchor.flip(-1), batch.anchor),
        anchor_label=torch.where(one, mirror_labels(batch.anchor_label), batch.anchor_label),
    )


def jitter(batch: ClipBatch, strength: float, generator: torch.Generator) -> ClipBatch:
    """Scale each clip's brightness, its anchor's too, by a factor within 1 ± strength."""
    factor = 1 + strength * (2 * torch.rand(len(batch.x), generator=generator) - 1)
    factor = factor.to(batch.x.device)[:, None, None, None]
    x, anchor = (batch.x * factor[:, None]).clamp(0, 1), (batch.anchor * factor).clamp(0, 1)
    return batch._replace(x=x, anchor=anchor)
