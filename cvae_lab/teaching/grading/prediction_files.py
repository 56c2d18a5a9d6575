"""Read predicted or true clips as uint8 frames, in every file format that students hand in.

Files of other people may be harmful. If the header of a file gives more pixels than a prediction can have, the file is
refused before its pixels are decoded. Nothing in a file is executed or unpickled.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageSequence
from torch import Tensor

from cvae_lab.data.course_csv import read_2023, read_submission
from cvae_lab.data.pixels import MAX_PIXELS, DataError, open_picture, to_rgb

Clips = list[UInt8[Tensor, "_ 3 _ _"]]
Lengths = int | Sequence[int]
"""Frames per clip in the text formats, frame 0 included: one number for all clips, or one per clip."""

# Maximum number of pixel values (bytes) in one prediction. Six clips of the course have 23 million.
MAX_VALUES = 1_000_000_000
CLIP_FRAMES = 630  # frames of a test clip of the course, frame 0 included
VIDEO_FORMATS = {
    ".mp4": "mp4",
    ".mov": "mp4",
    ".m4v": "mp4",
    ".avi": "avi",
    ".mkv": "matroska",
    ".webm": "matroska",
}
PICTURES, TEXTS = r"\.(png|jpg|jpeg)$", r"\.(csv|txt)$"


def read_clips(path: Path, frames: Lengths = CLIP_FRAMES) -> Clips:
    """Read the clips of a prediction or an answer, in order of their numbers.

    These formats are accepted:
    - the CSV of the later years;
    - a text file of 2023 (one clip), or a folder of such files;
    - a folder of PNGs (one clip), or a folder of such folders;
    - a GIF or a video (one clip);
    - an npz of uint8 arrays of shape (t, 3, h, w) or (t, h, w, 3).

    If the file is the predictions.npz of a run, its validation clips are left out. Raises DataError for other formats.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; correct the name")
    if path.is_dir():
        return _folder(path, frames)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".txt"):
        if is_later_csv(path):
            return read_submission(path, frames)
        if not _begins_with_number(path):
            raise DataError(f"{path}: empty, or begins with something else than a number; write it again")
        return [read_2023(path, _lengths(path, frames, 1)[0])]
    if suffix == ".npz":
        return _npz(path)
    if suffix == ".gif":
        return [_joined(path, _gif_frames(path))]
    if suffix in VIDEO_FORMATS:
        return [_joined(path, _video_frames(path))]
    raise DataError(
        f"{path}: the format of this file is unknown; give a submission CSV, a text file in the 2023 format, a GIF, a "
        f"video, "
        "an npz or a "
        "folder of PNGs"
    )


def read_pair(prediction: Path, answers: Path, frames: int | None = None) -> tuple[Clips, Clips]:
    """Read a prediction and its answers.

    Text formats do not contain the number of frames per clip, so this number is read from the other file.

    Args:
        frames: frames per clip in text formats. With None, the number is that of the other file, or 630 if both
            are texts.
    """
    if frames is not None or _is_text(prediction) == _is_text(answers):
        lengths = frames or CLIP_FRAMES
        return read_clips(prediction, lengths), read_clips(answers, lengths)
    if _is_text(answers):
        predicted = read_clips(prediction)
        return predicted, read_clips(answers, [len(clip) for clip in predicted])
    true = read_clips(answers)
    return read_clips(prediction, [len(clip) for clip in true]), true


def is_later_csv(file: Path) -> bool:
    """Return whether a text file has the CSV format of the later years. The text files of 2023 contain no commas."""
    with file.open("rb") as opened:
        return b"," in opened.read(64)


def is_prose(file: Path) -> bool:
    """Return whether a text file begins with a word. The numbers `nan` and `inf` are not words."""
    with file.open("rb") as opened:
        return re.match(rb"\s*(?!nan|inf)[a-z]", opened.read(64), re.IGNORECASE) is not None


def numbered(folder: Path, pattern: str = "") -> list[Path]:
    """Return the entries whose names end in a number, in order of these numbers.

    With a `pattern`, the entries are the files with matching names. Without a pattern, the entries are the folders.
    """
    entries = [
        entry for entry in folder.iterdir()
        if entry.name[0] not in "._" and (entry.is_file() if pattern else entry.is_dir())
        and re.search(pattern, entry.name, re.IGNORECASE) and re.search("[0-9]", entry.stem)
    ]  # fmt: skip
    return sorted(entries, key=lambda entry: (int(re.findall("[0-9]+", entry.stem)[-1]), entry.name))


def picture_folders(folder: Path) -> list[Path]:
    """Return the subfolders that contain pictures, in order of their numbers."""
    return [inner for inner in numbered(folder) if numbered(inner, PICTURES)]


def text_files(folder: Path) -> list[Path]:
    """Return the files in a folder that have the text format of 2023, in order of their numbers."""
    return [file for file in numbered(folder, TEXTS) if not is_later_csv(file) and _begins_with_number(file)]


def _begins_with_number(file: Path) -> bool:
    with file.open("rb") as opened:
        return (
            re.match(rb"(\xef\xbb\xbf)?\s*([-+.]*[0-9]|nan|inf)", opened.read(64), re.IGNORECASE) is not None
        )


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".txt") or (
        path.is_dir() and not numbered(path, PICTURES) and not picture_folders(path)
    )


def _lengths(path: Path, frames: Lengths, count: int) -> list[int]:
    if isinstance(frames, int):
        return [frames] * count
    if len(frames) != count:
        raise DataError(
            f"{path}: {count} text file(s) in the format of 2023 for {len(frames)} clips; give one file per clip"
        )
    return list(frames)


def _folder(path: Path, frames: Lengths) -> Clips:
    if pictures := numbered(path, PICTURES):
        return [_joined(path, map(_picture, pictures))]
    if texts := text_files(path):
        lengths = _lengths(path, frames, len(texts))
        return [read_2023(file, length) for file, length in zip(texts, lengths, strict=True)]
    if folders := picture_folders(path):
        return _bounded(path, (_folder(folder, frames)[0] for folder in folders))
    tables = [file for file in path.glob("*.csv") if file.name[0] not in "._" and is_later_csv(file)]
    if len(tables) == 1:
        return read_submission(tables[0], frames)
    raise DataError(
        f"{path}: this folder contains no prediction; it must contain pictures, text files in the course's format of "
        "2023, or one submission CSV"
    )


def _bounded(path: Path, clips: Iterable[UInt8[Tensor, "t 3 h w"]]) -> Clips:
    """Return the clips as a list. Raises DataError as soon as all clips together have more than MAX_VALUES values."""
    found, total = [], 0
    for clip in clips:
        total += clip.numel()
        _check_total(path, total)
        found.append(clip)
    return found


def _check_total(path: Path, total: int) -> None:
    if total > MAX_VALUES:
        raise DataError(f"{path}: more than {MAX_VALUES:,} bytes of pixels; give fewer or smaller frames")


def _joined(path: Path, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]) -> UInt8[Tensor, "t 3 h w"]:
    """Combine pictures of equal size to one clip. Pictures are copied into one buffer, so no second copy is needed."""
    pixels, shape = bytearray(), None
    for number, picture in enumerate(pictures):
        shape = shape or picture.shape
        if picture.shape != shape:
            raise DataError(
                f"{path}: picture {number} has another size than the first picture; resize all pictures to one size"
            )
        _check_total(path, len(pixels) + picture.size)
        pixels += picture.tobytes()
    if shape is None:
        raise DataError(f"{path}: the file contains no frames; write the file again")
    return torch.frombuffer(pixels, dtype=torch.uint8).reshape(-1, *shape).permute(0, 3, 1, 2)


def _picture(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(to_rgb(open_picture(file), is_label=False)[0])


def _gif_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    try:
        with Image.open(path, formats=["GIF"]) as gif:
            _check_size(path, *gif.size)
            for frame in ImageSequence.Iterator(gif):
                yield np.asarray(frame.convert("RGB"))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: the picture is too large ({error}); make it smaller") from error
    except Exception as error:  # damaged files make Pillow raise errors of almost any type
        raise DataError(f"{path}: this is not a readable GIF ({error}); write it again") from error


def _video_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Decode a video.

    The format is chosen by the suffix, because FFmpeg would otherwise open the files that are listed in a text file.
    """
    try:
        with av.open(str(path), format=VIDEO_FORMATS[path.suffix.lower()]) as container:
            if not container.streams.video:
                raise DataError(f"{path}: the file has no video stream; give a video file")
            stream = container.streams.video[0]
            _check_size(path, stream.width, stream.height)
            for frame in container.decode(stream):
                _check_size(path, frame.width, frame.height)
                yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: this is not a readable video ({error}); write it again") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: the picture is too large ({width} x {height} pixels according to the header); make it smaller"
        )


def _npz(path: Path) -> Clips:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted((n for n in archive.namelist() if n.endswith(".npy")), key=_array_order)
            names = [name for name in names if not name.startswith("val")] or names
            _check_total(path, sum(_claimed_bytes(archive, name) for name in names))
            clips = [_as_clip(_read(archive, name), f"{path}: {name[:-4]}") for name in names]
    except DataError:
        raise
    except Exception as error:  # damaged archives raise errors of many types
        raise DataError(
            f"{path}: this is not a readable npz file of arrays ({error}); write it again"
        ) from error
    if not clips:
        raise DataError(f"{path}: the file contains no arrays; write one array per clip")
    return clips


def _array_order(name: str) -> tuple[int, str]:
    return int((re.findall("[0-9]+", name) or ["-1"])[-1]), name


def _claimed_bytes(archive: zipfile.ZipFile, name: str) -> int:
    """Return the size of an array in bytes, computed from its header. NumPy would allocate this number of bytes."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        readers: dict[tuple[int, int], Callable] = {
            (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
        }  # fmt: skip
        shape, _, dtype = readers[version](file)
    return int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _as_clip(array: np.ndarray, name: str) -> UInt8[Tensor, "t 3 h w"]:
    if array.dtype != np.uint8 or array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]):
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}; give uint8 of shape (t, 3, h, w)")
    clip = torch.from_numpy(np.ascontiguousarray(array))
    return clip if array.shape[1] == 3 else clip.permute(0, 3, 1, 2)
