"""Text formats of the course: one file per clip in 2023, and one CSV file for all clips in later years.

Predictions and answers (true frames) have the same format. The files may come from unknown people. A file that is much
larger than a valid file is therefore refused before it is read, and every value is checked.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import DataError, to_uint8

HEIGHT, WIDTH = 32, 64
VALUES = 3 * HEIGHT * WIDTH
MAX_CHARACTERS = 32  # largest length of a value with its separator; no program writes more
ROWS_PER_WRITE = 256  # rows converted to text at once; limits the memory for long clips
MAX_ROWS = 100_000  # limit if the number of rows is not known in advance; 614 MB of pixels


def write_submission(
    path: Path, clips: Sequence[Float[Tensor, "_ 3 32 64"] | UInt8[Tensor, "_ 3 32 64"]]
) -> None:
    """Write the CSV file of later years: a header id,0,...,6143 and one row per frame, one clip after the other.

    First frames are included. Values are rint(255 x), clamped to 0..255, in channel, row, column order.
    """
    number = itertools.count()
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        file.write(",".join(["id", *map(str, range(VALUES))]) + "\n")
        for part in (part for clip in clips for part in clip.split(ROWS_PER_WRITE)):
            rows = to_uint8(part).flatten(1).numpy()
            numbers = list(itertools.islice(number, len(rows)))
            np.savetxt(file, np.column_stack([numbers, rows]), fmt="%d", delimiter=",")


def read_submission(path: Path, frames_per_clip: int | Sequence[int]) -> list[UInt8[Tensor, "t 3 32 64"]]:
    """Read the CSV file of later years, with or without a column Usage after the values.

    Values must be whole numbers from 0 to 255, and the ids must be 0, 1, 2, … in this order. Any other content, and a
    wrong number of rows or columns, raises DataError with the line and the column.

    Args:
        frames_per_clip: number of rows of each clip; a single integer if all clips have the same length.
    """
    lengths = None if isinstance(frames_per_clip, int) else list(frames_per_clip)
    limit = MAX_ROWS if lengths is None else sum(lengths)
    rows = bytearray()
    for row in _rows(path, limit):
        rows += row.tobytes()
    count = len(rows) // VALUES
    if lengths is None:
        lengths = [frames_per_clip] * (count // frames_per_clip)
    if not count or sum(lengths) != count:
        wanted = (
            f"{frames_per_clip} rows for each clip" if isinstance(frames_per_clip, int) else f"{limit} rows"
        )
        raise DataError(
            f"{path} has {count} rows, but a submission has {wanted}, one per frame; write the file again"
        )
    frames = torch.frombuffer(rows, dtype=torch.uint8).reshape(-1, 3, HEIGHT, WIDTH)
    return list(frames.split(lengths))


def _rows(path: Path, limit: int) -> Iterator[UInt8[np.ndarray, " n"]]:
    """Yield the checked pixels of every row. At most the longest possible row is read at once."""
    longest = MAX_CHARACTERS * (VALUES + 2)
    with regular(path).open("rb") as file:
        header = _line(path, file.readline(longest), 1, longest).removeprefix(b"\xef\xbb\xbf").split(b",")
        names = [name.strip().strip(b'"').decode(errors="replace") for name in header]
        usage = names[-1].lower() == "usage"
        if names[0].lower() != "id" or len(names) != VALUES + 1 + usage:
            raise DataError(
                f"{path}: line 1 must be a header with the names of {VALUES + 1} columns (id and {VALUES} values), "
                f"optionally followed by "
                f"Usage; it names {len(names)}, and the first is {names[0][:20]!r}; write the header"
            )
        for number, line in enumerate(iter(lambda: file.readline(longest), b""), 2):
            line = _line(path, line, number, longest).strip()
            if not line:
                continue
            if number - 2 >= limit:
                raise DataError(
                    f"{path} has more than {limit} rows, but a submission has one row per frame; write the "
                    f"file again"
                )
            yield _pixels(path, number, names, line.rpartition(b",")[0] if usage else line)


def _line(path: Path, line: bytes, number: int, longest: int) -> bytes:
    if not line:
        raise DataError(f"{path} is empty; write a header and one row per frame")
    if len(line) >= longest:
        raise DataError(
            f"{path}: line {number} is longer than a row of {VALUES} values; this is not a submission"
        )
    return line


def _pixels(path: Path, number: int, names: list[str], line: bytes) -> UInt8[np.ndarray, " n"]:
    values = _parse(line, ",")
    if values is None or len(values) != VALUES + 1 or not _are_pixels(values[1:]) or values[0] != number - 2:
        raise _row_fault(path, number, names, line.split(b","))
    return values[1:].astype(np.uint8)


def _are_pixels(values: Float[np.ndarray, " n"]) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values == np.rint(values))).all())


def _row_fault(path: Path, number: int, names: list[str], fields: list[bytes]) -> DataError:
    """Return the error for the first fault in a row, with the name of its column."""
    if len(fields) != VALUES + 1:
        return DataError(f"{path}: line {number} has {len(fields)} columns; it needs id and {VALUES} values")
    for name, field in zip(names, fields, strict=False):
        text = field.decode(errors="replace").strip()[:20]
        if name == names[0]:
            if _number(text) != number - 2:
                return DataError(
                    f"{path}: line {number}, column id: {text!r} should be {number - 2}; "
                    "number the rows from 0 in order"
                )
        elif not _are_pixels(np.array([_number(text)])):
            return DataError(
                f"{path}: line {number}, column {name}: {text!r} is not a whole number from 0 to 255; correct this "
                f"value"
            )
    return DataError(f"{path}: line {number} cannot be read; write the file again")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _parse(text: bytes | str, separator: str) -> Float[np.ndarray, " n"] | None:
    """Return the numbers in a text, or None if a word is not a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy only warns about text that it cannot read
        try:
            return np.fromstring(text, sep=separator, dtype=np.float64)
        except (ValueError, DeprecationWarning):
            return None


def regular(path: Path) -> Path:
    """Return the path. Raises DataError if there is no regular file."""
    if not path.is_file():  # reading from a pipe or a device could block forever
        raise DataError(f"{path}: there is no regular file at this path; give the path of a text file")
    return path


def write_2023(path: Path, clip: Float[Tensor, "t 3 32 64"] | UInt8[Tensor, "t 3 32 64"]) -> None:
    """Write one clip in the format of 2023: one line of 6144 numbers in [0, 1] per frame, including the first frame.

    Four decimals are enough to distinguish all 256 levels of a pixel.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        for part in clip.split(ROWS_PER_WRITE):
            np.savetxt(file, to_uint8(part).flatten(1).numpy() / 255, fmt="%.4f")


def read_2023(path: Path, frames: int = 630) -> UInt8[Tensor, "t 3 32 64"]:
    """Read one clip in the format of 2023, such as GT0.csv: frames x 6144 numbers in [0, 1], separated by white space.

    Raises DataError with the frame and the value if a word is not a number or a number is not in [0, 1]. Also raises
    DataError if the file has too few or too many numbers.
    """
    size = regular(path).stat().st_size
    if size > MAX_CHARACTERS * frames * VALUES:
        raise DataError(
            f"{path}: {size} bytes are more than {frames} frames can need; give the file of this clip"
        )
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    values = _parse(text, " ")
    if values is None:
        words = text.split()
        bad = next((i for i, word in enumerate(words) if math.isnan(_number(word))), len(words) - 1)
        raise DataError(f"{path}: {_place(bad)}: {words[bad][:20]!r} is not a number; correct this value")
    if values.size != frames * VALUES:
        raise DataError(
            f"{path} contains {values.size} numbers, but {frames} frames have {frames * VALUES}; give the file of this "
            f"clip"
        )
    outside = ~((values >= 0) & (values <= 1))  # true for NaN
    if outside.any():
        bad = int(outside.argmax())
        raise DataError(f"{path}: {_place(bad)}: {values[bad]:g} is not in [0, 1]; correct this value")
    return to_uint8(torch.from_numpy(values.astype(np.float32)).reshape(frames, 3, HEIGHT, WIDTH))


def _place(index: int) -> str:
    return f"frame {index // VALUES}, value {index % VALUES}"
