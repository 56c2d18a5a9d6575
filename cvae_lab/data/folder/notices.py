"""Log messages about a data folder: resized pictures, converted pictures, unknown label colours."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from cvae_lab.data.palette import (
    MAX_UNKNOWN,
    PALETTE_FILE,
    STANDARD,
    Palette,
    read_palette,
    unknown_fraction,
)
from cvae_lab.data.pixels import DataError, Fit, Group

SAME_PROPORTIONS = 0.02  # largest relative difference of width / height that counts as equal
SAMPLED_LABELS = 100  # number of evenly spaced labels per video that are checked for unknown colours

logger = logging.getLogger(__name__)


def size_notices(
    read: Mapping[str, dict[str, Any]], groups: Mapping[str, list[Group]], size: tuple[int, int], fit: Fit
) -> Iterator[str]:
    """Yield a sentence about resized pictures and their distortion for each source size except `size` (height, width).

    Raises DataError if frames and labels have different proportions and `fit` keeps the aspect ratio.
    """
    found: dict[tuple[int, int], list[str]] = {}
    for part, value in read.items():
        ratios = set()
        for group, (width, height) in zip(groups[part], value["sources"], strict=True):
            if not group.files:
                continue
            ratios.add(width / height)
            what = f"{part} {'labels' if group.is_label else 'frames'}"
            if what not in found.setdefault((width, height), []):
                found[width, height].append(what)
        if fit != "stretch" and max(ratios) > (1 + SAME_PROPORTIONS) * min(ratios):
            raise DataError(
                f"{part}: frames and labels have different aspect ratios, so fit={fit!r} would move labels relative to "
                f"frames; resize both to one size, or use fit='stretch'"
            )
    for (width, height), names in found.items():
        if (height, width) != size:
            yield f"{', '.join(names)}: resized from {width} x {height} to {size[1]} x {size[0]} pixels" + (
                _distortion(width / height, size[1] / size[0], fit)
            )


def _distortion(source: float, target: float, fit: Fit) -> str:
    wider = target / source
    if abs(wider - 1) <= SAME_PROPORTIONS:
        return "."
    if fit != "stretch":
        return f" by {fit}, which keeps the aspect ratio."
    change = f"{wider:.2f} times as wide" if wider > 1 else f"{1 / wider:.2f} times as high"
    return (
        f"; the aspect ratio changes, so shapes become {change}. read_folder(…, fit='crop') or fit='letterbox' keeps "
        "the aspect ratio."
    )


def conversion_notices(read: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield one sentence per split that has files other than 8-bit RGB PNG."""
    for part, value in read.items():
        if kinds := value["conversions"]:
            listed = "; ".join(f"{kind}: {count} file{'s' * (count > 1)}" for kind, count in kinds.items())
            yield f"{part}: pictures are converted to 8-bit RGB ({listed})."


def palette_of(root: Path, videos: Sequence[UInt8[Tensor, "_ 3 _ _"]]) -> Palette | None:
    """Return the palette in `labels.json`, or the standard palette if this file does not exist.

    If too many label pixels have other colours (`palette.MAX_UNKNOWN`), a warning is logged and the result is None.
    """
    file = root / PALETTE_FILE
    named = file.is_file()
    palette = read_palette(file) if named else STANDARD
    fractions = [
        unknown_fraction(labels[:: max(1, len(labels) // SAMPLED_LABELS)], palette)
        for labels in videos
        if len(labels)
    ]
    unknown = max(fractions, default=0.0)
    if unknown <= MAX_UNKNOWN:
        return palette
    fix = f"add the missing colours to {PALETTE_FILE}" if named else f"list the colour pairs in {file}"
    logger.warning(
        "%s: %.0f %% of the drawn label pixels have colours that are not in the palette, so labels cannot be "
        "mirrored; to allow mirroring, %s.",
        root,
        100 * unknown,
        fix,
    )
    return None
