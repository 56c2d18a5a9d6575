"""The course's formats besides PNG folders: clips of 2023, the later years' CSV, its two ways to average."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import DataError, to_uint8

HEIGHT, WIDTH = 32, 64
VALUES = 3 * HEIGHT * WIDTH


def write_submission(path: Path, clips: Sequence[Float[Tensor, "t 3 32 64"]]) -> None:
    """The later years' CSV: header id,0,...,6143, a row per frame, clip after clip, the given frame first.

    Values are rint(255 x), clamped to 0..255, in channel, row, column order.
    """
    rows = torch.cat([to_uint8(clip) for clip in clips]).flatten(1).numpy()
    table = np.column_stack([np.arange(len(rows)), rows])
    header = ",".join(["id", *map(str, range(VALUES))])
    with replacing(path) as temporary:
        np.savetxt(temporary, table, fmt="%d", delimiter=",", header=header, comments="")


def read_submission(path: Path, frames_per_clip: int) -> list[UInt8[Tensor, "t 3 32 64"]]:
    """The inverse of `write_submission`. DataError where rows or columns are not as they should be."""
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.int64, ndmin=2)
    if table.shape[1] != VALUES + 1 or len(table) % frames_per_clip:
        raise DataError(
            f"{path} has {len(table)} rows of {table.shape[1]} columns; a submission has {frames_per_clip} rows a "
            f"clip and {VALUES + 1} columns (id and {VALUES} values)."
        )
    frames = torch.from_numpy(table[:, 1:].astype(np.uint8)).reshape(-1, 3, HEIGHT, WIDTH)
    return list(frames.split(frames_per_clip))


def write_2023(path: Path, clip: Float[Tensor, "t 3 32 64"]) -> None:
    """One clip as in 2023: a line of 6144 numbers in [0, 1] per frame, the given frame first.

    Four decimals tell all 256 steps of a pixel apart. `read_2023` reads it back.
    """
    rows = to_uint8(clip).flatten(1).numpy() / 255
    with replacing(path) as temporary:
        np.savetxt(temporary, rows, fmt="%.4f")


def read_2023(path: Path, frames: int = 630) -> UInt8[Tensor, "t 3 32 64"]:
    """A clip of 2023 (the answers GT0.csv, ...): frames x 6144 numbers in [0, 1], parted by white space."""
    values = np.fromstring(path.read_text(), sep=" ", dtype=np.float32)  # fast, and it reads numbers only
    if values.size != frames * VALUES:
        raise DataError(f"{path} holds {values.size} numbers; {frames} frames have {frames * VALUES}.")
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"{path} has values from {values.min():.3g} to {values.max():.3g}; answers lie in [0, 1]."
        )
    return to_uint8(torch.from_numpy(values).reshape(frames, 3, HEIGHT, WIDTH))
