"""Colours of the pose labels, and how a label is mirrored.

The synthetic data set draws with these colours. The course's labels use colours close to them, so mirroring assigns
each label pixel to the nearest one.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RGB = tuple[int, int, int]

HEAD: RGB = (196, 84, 214)
TRUNK: RGB = (112, 84, 236)
LEFT_ARM: RGB = (84, 216, 255)
LEFT_LEG: RGB = (255, 134, 72)
LEFT_FOOT: RGB = (255, 190, 50)
RIGHT_ARM: RGB = (92, 160, 255)
RIGHT_LEG: RGB = (72, 226, 120)
RIGHT_FOOT: RGB = (90, 236, 60)

COLOURS: tuple[RGB, ...] = (
    TRUNK, HEAD, RIGHT_ARM, RIGHT_LEG, RIGHT_FOOT, LEFT_ARM, LEFT_LEG, LEFT_FOOT,
)  # fmt: skip
MIRRORED = (0, 1, 5, 6, 7, 2, 3, 4)
"""Index into COLOURS of each colour's partner on the other side of the body; trunk and head are their own."""
UNPAIRED = 2  # the first two colours have no left and right


def mirror_labels(p: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Return the labels of the mirrored scene: flipped horizontally, with left and right limb colours exchanged.

    Without the exchange, a mirrored label would show a person whose left and right limbs are swapped.
    """
    coverage = 1 - p.flip(-1).movedim(-3, -1)
    drawn = coverage.amax(-1) > 0  # most label pixels are white
    coverage[drawn] = exchange_limbs(coverage[drawn])
    return 1 - coverage.movedim(-1, -3)


def exchange_limbs(coverage: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Replace the colour of each left limb by that of its right partner, and the reverse.

    `coverage` is 1 - label, RGB in the last dimension, so white is 0. Each pixel is assigned to the palette colour of
    the most similar hue, at the strength that fits best in least squares, and gets the partner colour at that
    strength.
    """
    colours = 1 - torch.tensor(COLOURS, dtype=coverage.dtype, device=coverage.device) / 255
    partner = torch.tensor(MIRRORED, device=coverage.device)
    limb = (coverage @ F.normalize(colours, dim=1).T).argmax(-1)
    strength = (coverage * colours[limb]).sum(-1, keepdim=True) / colours[limb].square().sum(-1, keepdim=True)
    mirrored = (strength * colours[partner[limb]]).clamp(0, 1)
    return torch.where((limb < UNPAIRED).unsqueeze(-1), coverage, mirrored)
