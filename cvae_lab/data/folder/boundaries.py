"""The file `cuts.txt`, which names the boundaries between the recordings of a part."""

import itertools
import re
from pathlib import Path

from cvae_lab.data.pixels import DataError

BOUNDARIES_FILE = "cuts.txt"  # people who edit film call a recording boundary a cut


def read_boundaries(file: Path, frames: int) -> tuple[int, ...]:
    """Read the index, from 0, of the first frame of every recording but the first.

    Args:
        frames: of the part; every index must be smaller.
    """
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        words = stream.read(1_000_000).split()
    boundaries = tuple(int(word) for word in words if re.fullmatch("[0-9]{1,9}", word))
    rising = all(a < b for a, b in itertools.pairwise((0, *boundaries, frames)))
    if len(boundaries) < len(words) or not rising:
        raise DataError(
            f"{file}: must hold the index of the first frame of every recording but the first, counted from 0, in "
            f"rising order, each from 1 to {frames - 1}; correct it, or remove it to have boundaries found"
        )
    return boundaries
