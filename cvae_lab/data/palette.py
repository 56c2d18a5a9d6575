"""Colours of the pose labels, and mirroring of labels.

The synthetic data set uses the standard colours. The course's labels have similar colours, so mirroring assigns each
label pixel to the nearest standard colour. Other data sets list their colours in `labels.json`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from cvae_lab.data.pixels import DataError, to_float

RGB = tuple[int, int, int]

HEAD: RGB = (196, 84, 214)
TRUNK: RGB = (112, 84, 236)
LEFT_ARM: RGB = (84, 216, 255)
LEFT_LEG: RGB = (255, 134, 72)
LEFT_FOOT: RGB = (255, 190, 50)
RIGHT_ARM: RGB = (92, 160, 255)
RIGHT_LEG: RGB = (72, 226, 120)
RIGHT_FOOT: RGB = (90, 236, 60)

PALETTE_FILE = "labels.json"
DRAWN = 0.2  # smallest label coverage of a drawn pixel; the white background has coverage 0
TOLERANCE = 0.18  # largest RGB distance (values in [0, 1]) between a pixel and the colour to which it belongs
MAX_UNKNOWN = 0.1  # largest fraction of drawn pixels that may have colours outside the palette
# Measured fractions of unknown pixels: 1.3 % in the synthetic data set, 0.5 % in the course's real labels, 95 % or
# more if limbs are drawn in pure red, green and blue.


class Palette(NamedTuple):
    """Label colours, and for each the index of its partner on the other side of the body.

    The colour of a body part that exists once, such as the trunk, is its own partner.
    """

    colours: tuple[RGB, ...]
    mirrored: tuple[int, ...]

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[RGB, RGB]]) -> "Palette":
        """Build a palette from pairs (left colour, right colour). Two equal colours are one colour for both sides."""
        colours, mirrored = [], []
        for left, right in pairs:
            n = len(colours)
            colours += [left] if left == right else [left, right]
            mirrored += [n] if left == right else [n + 1, n]
        return cls(tuple(colours), tuple(mirrored))

    def pairs(self) -> list[tuple[RGB, RGB]]:
        """Return the pairs (left colour, right colour) that `from_pairs` accepts."""
        return [(self.colours[i], self.colours[j]) for i, j in enumerate(self.mirrored) if i <= j]


# fmt: off
STANDARD = Palette(
    (TRUNK, HEAD, RIGHT_ARM, RIGHT_LEG, RIGHT_FOOT, LEFT_ARM, LEFT_LEG, LEFT_FOOT),
    (0, 1, 5, 6, 7, 2, 3, 4),
)
# fmt: on


def read_palette(file: Path) -> Palette:
    """Read `labels.json`: a list of pairs [left colour, right colour], each `[r, g, b]` or `"#rrggbb"`.

    The colour of a body part that exists once, such as the trunk, is written as a pair of two equal colours. Raises
    DataError if the file has other content.
    """
    try:
        with file.open(encoding="utf-8-sig") as stream:
            pairs = json.loads(stream.read(100_000))
        pairs = [tuple(_colour(value) for value in pair) for pair in pairs]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError("no pairs")
        colours = [colour for pair in pairs for colour in set(pair)]
        if len(set(colours)) < len(colours):
            raise ValueError("a colour in two pairs")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f'{file}: not a list of colour pairs ({error}); write [["#00ff00", "#ff0000"], …] with the left colour '
            "first and each colour in one pair only; the colour of a body part that exists once is a pair of two "
            "equal colours"
        ) from error
    return Palette.from_pairs(pairs)


def _colour(value: object) -> RGB:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return tuple(bytes.fromhex(value[1:]))
    levels = value if isinstance(value, list) and len(value) == 3 else [None]
    if not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ValueError(f"{value!r} is not a colour")
    return tuple(levels)


def mirror_labels(p: Float[Tensor, "*b 3 h w"], palette: Palette = STANDARD) -> Float[Tensor, "*b 3 h w"]:
    """Return the labels of the mirrored scene: flipped horizontally, with left and right limb colours exchanged.

    Without the exchange, a mirrored label would show a person whose left and right limbs are swapped.
    """
    coverage = 1 - p.flip(-1).movedim(-3, -1)
    drawn = coverage.amax(-1) > 0  # most label pixels are white
    coverage[drawn] = exchange_limbs(coverage[drawn], palette)
    return 1 - coverage.movedim(-1, -3)


def exchange_limbs(coverage: Float[Tensor, "*n 3"], palette: Palette = STANDARD) -> Float[Tensor, "*n 3"]:
    """Exchange the colours of left limbs with the colours of right limbs.

    `coverage` is 1 - label with RGB in the last dimension, so white is 0. Each pixel is assigned to the palette colour
    with the most similar hue. A least-squares fit gives the strength of that colour. The result is the partner colour
    at the same strength.
    """
    colours = 1 - torch.tensor(palette.colours, dtype=coverage.dtype, device=coverage.device) / 255
    partner = torch.tensor(palette.mirrored, device=coverage.device)
    limb = (coverage @ F.normalize(colours, dim=1).T).argmax(-1)
    strength = (coverage * colours[limb]).sum(-1, keepdim=True) / colours[limb].square().sum(-1, keepdim=True)
    mirrored = (strength * colours[partner[limb]]).clamp(0, 1)
    return torch.where((partner[limb] == limb).unsqueeze(-1), coverage, mirrored)


def unknown_fraction(labels: UInt8[Tensor, "n 3 h w"], palette: Palette = STANDARD) -> float:
    """Return the fraction of drawn label pixels whose colour is not in the palette, or 0 if no pixel is drawn.

    A pixel may be any mixture of white and a palette colour, because thin limbs have soft edges. Its colour is unknown
    if the distance to the nearest mixture is more than `TOLERANCE`.
    """
    colours = 1 - torch.tensor(palette.colours) / 255
    drawn = unknown = 0
    for piece in labels.split(256):
        # Most label pixels are white, so the drawn ones are selected before the conversion to float.
        coverage = 1 - to_float(piece.movedim(1, -1)[piece.amin(1) < 255 * (1 - DRAWN)])
        strength = (coverage @ colours.T / colours.square().sum(1).clamp_min(1e-6)).clamp(0, 1)
        distance = (coverage[:, None] - strength[..., None] * colours).norm(dim=-1).amin(1)
        drawn, unknown = drawn + len(coverage), unknown + int((distance > TOLERANCE).sum())
    return unknown / drawn if drawn else 0.0
