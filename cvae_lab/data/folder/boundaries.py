"""Read `cuts.txt`, which lists the boundaries between the recordings of the training or validation video."""

import itertools
import re
from pathlib import Path

from cvae_lab.data.pixels import DataError

BOUNDARIES_FILE = "cuts.txt"  # in film editing, a recording boundary is called a cut


def read_boundaries(file: Path, frames: int) -> tuple[int, ...]:
    """Read the index, counted from 0, of the first frame of every recording except the first.

    Args:
        frames: number of frames of the video; every index must be smaller than this number.
    """
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        words = stream.read(1_000_000).split()
    boundaries = tuple(int(word) for word in words if re.fullmatch("[0-9]{1,9}", word))
    rising = all(a < b for a, b in itertools.pairwise((0, *boundaries, frames)))
    if len(boundaries) < len(words) or not rising:
        raise DataError(
            f"{file}: the file must contain the index of the first frame of every recording except the first, in "
            f"increasing "
            f"order, each from 1 to {frames - 1}; correct the file, or remove it to detect boundaries from the frames"
        )
    return boundaries
