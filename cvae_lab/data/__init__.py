"""Data sets (synthetic, or a folder in the assignment's layout), and sampling of training clips."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cvae_lab.data.cache import cache_dir, cached
from cvae_lab.data.clips import Clip, ClipBatch, ClipSampler, Dataset, Video
from cvae_lab.data.folder import PARTS, read_folder, write_folder
from cvae_lab.data.pixels import DataError, Fit

__all__ = [
    "Clip",
    "ClipBatch",
    "ClipSampler",
    "DataError",
    "Dataset",
    "Video",
    "load",
    "load_varied",
    "read_folder",
    "write_folder",
]

SYNTHETIC = ("tiny", "small", "full", "varied")


def load(
    data: str | Path,
    seed: int = 0,
    progress: bool = True,
    parts: Sequence[str] = PARTS,
    required: Sequence[str] = (),
    fit: Fit = "stretch",
    answers: str | Path | None = None,
    min_frames: int = 2,
    height: int | None = 32,
) -> Dataset:
    """Return a data set: a synthetic data set if `data` is in `SYNTHETIC`, otherwise the data set in the folder `data`.

    A synthetic data set is rendered once per size, seed and version of the rendering code, and stored in the cache. A
    folder must have the assignment's layout (`read_folder`).

    Args:
        data: name of a synthetic data set (`SYNTHETIC`), or a folder.
        seed: seed of the synthetic data set.
        parts: splits to read from a folder (train, val, test). A missing split is empty in the result.
        required: splits that must exist, such as `("train",)` for training. A missing split raises DataError.
        fit: how pictures of another aspect ratio are resized: stretch, crop or letterbox (`pixels.Fit`).
        answers: file or folder with the true frames of the test clips (`answers.read_answers`).
        min_frames: smallest allowed number of training frames.
        height: height of a frame in pixels; the width is twice the height. None means the size of the pictures in a
            folder (`read_folder`), and 32 for a synthetic data set.
    """
    if str(data) not in SYNTHETIC:
        return read_folder(
            data,
            progress=progress,
            parts=parts,
            min_frames=min_frames,
            required=required,
            fit=fit,
            answers=answers,
            size=None if height is None else (height, 2 * height),
        )
    return _synthetic(str(data), seed, progress, height or 32)


def load_varied(recordings: int, height: int, progress: bool = True) -> Dataset:
    """Return the data set `varied` with another number of training recordings. The cache is used as in `load`."""
    return _synthetic("varied", 0, progress, height, recordings)


def _synthetic(size: str, seed: int, progress: bool, height: int, recordings: int | None = None) -> Dataset:
    name = f"synthetic-{size}-{seed}" + (f"-height-{height}" if height != 32 else "")
    name += f"-recordings-{recordings}" if recordings else ""
    render = partial(_render, size, seed, progress, height, recordings)
    return _from_plain(cached(cache_dir(), name, _source_key(), render))


def _render(size: str, seed: int, progress: bool, height: int, recordings: int | None) -> dict[str, Any]:
    from cvae_lab.data.synthetic.dataset import render

    dataset = render(size, seed, progress, height, recordings)
    videos = {"train": dataset.train, "val": dataset.val}
    plain = {key: (v.frames, v.labels, v.boundaries, v.name) for key, v in videos.items()}
    return plain | {"name": dataset.name, "tests": [(c.name, c.labels, c.answer) for c in dataset.tests]}


def _from_plain(plain: dict[str, Any]) -> Dataset:
    tests = tuple(Clip(name, answer[0], labels, answer) for name, labels, answer in plain["tests"])
    return Dataset(plain["name"], Video(*plain["train"]), Video(*plain["val"]), tests)


def _source_key() -> str:
    """Return a hash of the rendering code for the cache key, so that frames are rendered again after a change."""
    here = Path(__file__).parent
    sources = [here / "palette.py", *sorted((here / "synthetic").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
