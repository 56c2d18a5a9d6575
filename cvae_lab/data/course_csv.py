"""Text formats of the course: one file per clip in 2023, and one CSV file for all clips in later years.

Predictions and answers (true frames) have the same format. These files come from other people. A file much larger
than its format needs is therefore refused before it is read, and every value is checked.
"""

import hashlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.data.cache import cached, content_key
from cvae_lab.data.clips import AnswerFormat, Clip
from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import DataError, to_uint8

HEIGHT, WIDTH = 32, 64
VALUES = 3 * HEIGHT * WIDTH
MAX_CHARACTERS = 32  # largest length of a value with its separator; no program writes more
MAX_ROWS = 100_000  # limit if the number of rows is not known in advance; 614 MB of pixels
SAME_FRAME = 8.0  # in grey levels; frames with a smaller mean absolute difference count as equal

logger = logging.getLogger(__name__)


def write_submission(path: Path, clips: Sequence[Float[Tensor, "t 3 32 64"]]) -> None:
    """Write the CSV file of later years: a header id,0,...,6143 and one row per frame, one clip after the other.

    First frames are included. Values are rint(255 x), clamped to 0..255, in channel, row, column order.
    """
    rows = torch.cat([to_uint8(clip) for clip in clips]).flatten(1).numpy()
    table = np.column_stack([np.arange(len(rows)), rows])
    header = ",".join(["id", *map(str, range(VALUES))])
    with replacing(path) as temporary:
        np.savetxt(temporary, table, fmt="%d", delimiter=",", header=header, comments="")


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
        raise DataError(f"{path} has {count} rows; a submission has {wanted}, one per frame; write it again")
    frames = torch.frombuffer(rows, dtype=torch.uint8).reshape(-1, 3, HEIGHT, WIDTH)
    return list(frames.split(lengths))


def _rows(path: Path, limit: int) -> Iterator[UInt8[np.ndarray, " n"]]:
    """Yield the checked pixels of every row. At most the largest possible length of a row is read at a time."""
    longest = MAX_CHARACTERS * (VALUES + 2)
    with _regular(path).open("rb") as file:
        header = _line(path, file.readline(longest), 1, longest).removeprefix(b"\xef\xbb\xbf").split(b",")
        names = [name.strip().strip(b'"').decode(errors="replace") for name in header]
        usage = names[-1].lower() == "usage"
        if names[0].lower() != "id" or len(names) != VALUES + 1 + usage:
            raise DataError(
                f"{path}: line 1 must name {VALUES + 1} columns (id and {VALUES} values), optionally followed by "
                f"Usage; it names {len(names)}, and the first is {names[0][:20]!r}; write the header"
            )
        for number, line in enumerate(iter(lambda: file.readline(longest), b""), 2):
            line = _line(path, line, number, longest).strip()
            if not line:
                continue
            if number - 2 >= limit:
                raise DataError(f"{path} has more than {limit} rows; a submission has one row per frame")
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
                f"{path}: line {number}, column {name}: {text!r} is not a whole number from 0 to 255; correct it"
            )
    return DataError(f"{path}: line {number} cannot be read; write it again")


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


def _regular(path: Path) -> Path:
    if not path.is_file():  # reading from a pipe or a device could block forever
        raise DataError(f"{path}: no such file, or not a regular one; give the path of a text file")
    return path


def write_2023(path: Path, clip: Float[Tensor, "t 3 32 64"]) -> None:
    """Write one clip in the format of 2023: one line of 6144 numbers in [0, 1] per frame, including the first frame.

    Four decimals are enough to distinguish all 256 levels of a pixel.
    """
    rows = to_uint8(clip).flatten(1).numpy() / 255
    with replacing(path) as temporary:
        np.savetxt(temporary, rows, fmt="%.4f")


def read_2023(path: Path, frames: int = 630) -> UInt8[Tensor, "t 3 32 64"]:
    """Read one clip in the format of 2023, such as GT0.csv: frames x 6144 numbers in [0, 1], separated by white space.

    Raises DataError with the frame and the value if a word is not a number or a number is not in [0, 1]. Also raises
    DataError if the file has too few or too many numbers.
    """
    size = _regular(path).stat().st_size
    if size > MAX_CHARACTERS * frames * VALUES:
        raise DataError(f"{path}: {size} bytes are too many for {frames} frames; use the file of this clip")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    values = _parse(text, " ")
    if values is None:
        words = text.split()
        bad = next((i for i, word in enumerate(words) if math.isnan(_number(word))), len(words) - 1)
        raise DataError(f"{path}: {_place(bad)}: {words[bad][:20]!r} is not a number; correct it")
    if values.size != frames * VALUES:
        raise DataError(
            f"{path} holds {values.size} numbers; {frames} frames have {frames * VALUES}; use the file of this clip"
        )
    outside = ~((values >= 0) & (values <= 1))  # true for NaN
    if outside.any():
        bad = int(outside.argmax())
        raise DataError(f"{path}: {_place(bad)}: {values[bad]:g} is not in [0, 1]; correct it")
    return to_uint8(torch.from_numpy(values.astype(np.float32)).reshape(frames, 3, HEIGHT, WIDTH))


def _place(index: int) -> str:
    return f"frame {index // VALUES}, value {index % VALUES}"


def answer_files(path: Path) -> tuple[AnswerFormat, dict[str, Path]]:
    """Return the format of the answers at `path` (a file or a folder) and a dict of the answer files.

    In the format of 2023 there is one file per clip, and its key is the clip's number. In the format of later years
    there is one file for all clips, and its key is "".
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    named = {match[1]: file for file in files if (match := re.fullmatch(r"(?i)gt0*([0-9]+)\.csv", file.name))}
    if named:
        return "2023", named
    if path.is_dir():
        files = [file for file in files if file.name.lower() == "gt.csv"]
    return ("later", {"": files[0]}) if files else ("none", {})


def is_picture_folder(path: Path) -> bool:
    """Whether `path` is a folder without the course's text files, so that the answers must be pictures."""
    return path.is_dir() and answer_files(path)[0] == "none"


def read_answers(path: str | Path, clips: Sequence[Clip], cache: Path | None = None) -> tuple[Clip, ...]:
    """Return the test clips with their true frames, read from the course's answer files.

    Raises DataError if a file cannot be read, or if its number of frames is not that of the clips.

    Args:
        path: a folder with GT0.csv, GT1.csv, … (2023) or gt.csv (later years), or one such file. In the format of
            2023, a clip without a file is returned unchanged.
        clips: the test clips in order. They may have any length.
        cache: folder where the values are cached, because parsing the text takes seconds.
    """
    path = Path(path)
    year, files = answer_files(path)
    if not path.exists() or year == "none":
        raise DataError(
            f"{path}: no true frames found; give GT0.csv, … (2023), gt.csv (later years), or their folder"
        )
    if any(clip.first.shape != (3, HEIGHT, WIDTH) for clip in clips):
        raise DataError(
            f"{path}: the course's true frames have {WIDTH} x {HEIGHT} pixels; read the test clips in this size"
        )
    lengths = {clip.name: len(clip) for clip in clips}
    sources = {name: files[name] for name in lengths if name in files} if year == "2023" else files
    if not sources:
        raise DataError(
            f"{path}: no file has answers of clip {', '.join(lengths)}; number the files like the test clips"
        )
    for file in sources.values():
        _regular(file)

    def read() -> dict[str, UInt8[Tensor, "t 3 h w"]]:
        if year == "later":
            return dict(zip(lengths, read_submission(files[""], list(lengths.values())), strict=True))
        return {name: read_2023(file, lengths[name]) for name, file in sources.items()}

    if cache:
        key = content_key(path.parent, list(sources.values()), year, lengths)
        where = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
        answers = cached(cache, f"answers-{where}", key, read)
    else:
        answers = read()
    return tuple(
        _answered(clip, answers[clip.name], path) if clip.name in answers else clip for clip in clips
    )


def _answered(clip: Clip, answer: UInt8[Tensor, "t 3 h w"], path: Path) -> Clip:
    """Return the clip with its answer. Frame 0 is copied from the clip, because the values in the files are rounded."""
    difference = float((answer[0].float() - clip.first.float()).abs().mean())
    if difference > SAME_FRAME:
        logger.warning(
            "%s: the first frame of clip %s differs from the one in test_img by %.0f grey levels on average; "
            "check that these are the answers of these clips.",
            path,
            clip.name,
            difference,
        )
    return replace(clip, answer=torch.cat([clip.first[None], answer[1:]]))


def find_answers(root: Path) -> Path | None:
    """Search for the course's answers in the data folder, in its folder test, and in Demo_Test inside or beside it."""
    places = (root, root / "test", root / "Demo_Test", root.resolve().parent / "Demo_Test")
    return next((place for place in places if place.is_dir() and answer_files(place)[0] != "none"), None)


def with_answers(
    root: Path, clips: tuple[Clip, ...], path: Path | None, cache: Path
) -> tuple[tuple[Clip, ...], AnswerFormat]:
    """Add answers to the test clips, and return the clips with the format of the answers.

    Answers at `path` are used first, then picture files that the clips already have, then files that `find_answers`
    finds. If found files do not belong to the clips, a warning is logged and the clips have no answers. Files at
    `path` that do not belong to the clips raise DataError.
    """
    has_pictures = any(clip.answer is not None for clip in clips)
    if path and not (has_pictures and is_picture_folder(path)):
        return read_answers(path, clips, cache), answer_files(path)[0]
    if has_pictures:
        return clips, "folder"
    found = find_answers(root) if clips else None
    if found is None:
        return clips, "none"
    try:
        return read_answers(found, clips, cache), answer_files(found)[0]
    except DataError as error:
        logger.warning("Answers were found but are not used: %s.", error)
        return clips, "none"
