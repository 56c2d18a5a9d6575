"""Read predicted or true clips as uint8 frames, from all file formats of submissions."""

import re
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from cvae_lab.data.course_csv import read_2023, read_submission
from cvae_lab.data.pixels import DataError, open_picture

Clips = list[UInt8[Tensor, "t 3 h w"]]

MAX_FRAMES = 20_000  # maximum number of frames of a video or an array
MAX_VALUES = 2_000_000_000  # maximum number of pixel values (bytes) of one prediction
CLIP_FRAMES = 630  # frames of a test clip of the course, with the first one


def read_clips(path: Path, frames: int = CLIP_FRAMES) -> Clips:
    """Read the clips in a prediction or an answer.

    Accepted: the later years' CSV, a text file of 2023 (one clip), a folder of PNGs (one clip) or of such folders, a
    folder of text files of 2023, a GIF or a video (one clip), an npz of uint8 arrays (t, 3, h, w). Raises DataError
    for anything else.

    Args:
        frames: rows per clip in the course's text formats.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _folder(path, frames)
    readers = {
        ".csv": _csv,
        ".txt": _csv,
        ".npz": _npz,
        ".gif": _video,
        ".mp4": _video,
        ".avi": _video,
        ".mov": _video,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown file type; give a submission CSV, a text file of 2023, a GIF, a video, an npz or a "
            "folder of PNGs"
        )
    return reader(path, frames)


def _csv(path: Path, frames: int) -> Clips:
    with path.open("rb") as file:
        start = file.read(64)
    return read_submission(path, frames) if b"," in start else [read_2023(path, frames)]


def _folder(path: Path, frames: int) -> Clips:
    pictures = _numbered(path, r"\.(png|jpg|jpeg)$")
    if pictures:
        return [torch.stack([_picture(file) for file in pictures])]
    texts = _numbered(path, r"\.(csv|txt)$")
    if texts:
        return [clip for file in texts for clip in _csv(file, frames)]
    folders = sorted((f for f in path.iterdir() if f.is_dir()), key=lambda f: _number(f.name))
    clips = [
        clip
        for folder in folders
        if _numbered(folder, r"\.(png|jpg|jpeg)$")
        for clip in _folder(folder, frames)
    ]
    if not clips:
        raise DataError(f"{path}: contains no pictures and no text files of the course")
    return clips


def _numbered(folder: Path, pattern: str) -> list[Path]:
    files = [
        f for f in folder.iterdir() if f.is_file() and re.search(pattern, f.name, re.I) and f.name[0] != "."
    ]
    return sorted(files, key=lambda f: _number(f.stem))


def _number(name: str) -> tuple[int, str]:
    match = re.search(r"([0-9]+)\D*$", name)
    return (int(match[1]) if match else -1, name)


def _picture(file: Path) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.asarray(open_picture(file)).copy()).permute(2, 0, 1)


def _npz(path: Path, frames: int) -> Clips:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [_as_clip(arrays[name], f"{path}: {name}") for name in arrays.files]
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path}: not a readable npz of arrays ({error})") from error


def _as_clip(array: np.ndarray, name: str) -> UInt8[Tensor, "t 3 h w"]:
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]) or array.dtype != np.uint8:
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}; give uint8 of shape (t, 3, h, w)")
    clip = torch.from_numpy(array)
    return clip if array.shape[1] == 3 else clip.permute(0, 3, 1, 2)


def _video(path: Path, frames: int) -> Clips:
    try:
        pictures = list(_video_frames(path))
    except DataError:
        raise
    except Exception as error:  # the plug-ins of imageio raise different errors
        raise DataError(f"{path}: not a readable video ({type(error).__name__}: {error})") from error
    if not pictures:
        raise DataError(f"{path}: contains no frames")
    return [torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)]


def _video_frames(path: Path) -> Iterator[np.ndarray]:
    plugin = "pillow" if path.suffix.lower() == ".gif" else "pyav"
    total = 0
    for number, picture in enumerate(iio.imiter(path, plugin=plugin)):
        picture = np.asarray(picture)[..., :3]
        total += picture.size
        if number >= MAX_FRAMES or total > MAX_VALUES:
            raise DataError(
                f"{path}: more than {MAX_FRAMES} frames or {MAX_VALUES // 10**9} GB of pixels; shorten it"
            )
        yield picture
