"""What comes in: the embedded data set, the handout's folders, and clips drawn from them."""

import hashlib
from pathlib import Path
from typing import Any

from cvae_lab.data.cache import cache_dir, cached
from cvae_lab.data.clips import Clip, ClipBatch, ClipSampler, Dataset, Video
from cvae_lab.data.folder import DataError, read_folder, write_folder

__all__ = [
    "Clip",
    "ClipBatch",
    "ClipSampler",
    "DataError",
    "Dataset",
    "Video",
    "load",
    "read_folder",
    "write_folder",
]

EMBEDDED = ("tiny", "small", "full")


def load(data: str | Path, seed: int = 0, progress: bool = True) -> Dataset:
    """The embedded set where `data` is tiny, small or full; else the handout's folders under that path.

    The embedded set is rendered once per size, seed and state of its source, then comes from the cache.
    """
    if str(data) not in EMBEDDED:
        return read_folder(data, progress=progress)
    return _from_plain(
        cached(cache_dir(), f"stage-{data}-{seed}", _source_key(), lambda: _render(data, seed, progress))
    )


def _render(size: str, seed: int, progress: bool) -> dict[str, Any]:
    from cvae_lab.data.stage import render

    dataset = render(size, seed, progress)
    videos = {"train": dataset.train, "val": dataset.val}
    plain = {key: (v.frames, v.labels, v.cuts, v.name) for key, v in videos.items()}
    return plain | {"name": dataset.name, "tests": [(c.name, c.labels, c.answer) for c in dataset.tests]}


def _from_plain(plain: dict[str, Any]) -> Dataset:
    tests = tuple(Clip(name, answer[0], labels, answer) for name, labels, answer in plain["tests"])
    return Dataset(plain["name"], Video(*plain["train"]), Video(*plain["val"]), tests)


def _source_key() -> str:
    """Changes with the code that renders, so an old picture never outlives it."""
    here = Path(__file__).parent
    others = {"__init__.py", "cache.py", "check.py", "clips.py", "folder.py"}
    sources = sorted(file for file in here.glob("*.py") if file.name not in others)
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
