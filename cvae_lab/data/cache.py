"""Decoded pictures and rendered data, kept on disk so that they are made only once."""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import decode

FORMAT = 2  # of the cache; a new number makes every older file invalid


def cache_dir() -> Path:
    """Return the cache folder: the environment variable CVAE_LAB_CACHE, or ~/.cache/cvae_lab."""
    return Path(os.environ.get("CVAE_LAB_CACHE") or Path.home() / ".cache" / "cvae_lab")


def cached(folder: Path, name: str, key: str, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `build` makes (tensors, numbers and text in dicts, lists, tuples), from the cache if `key` matches.

    There is one file per name; it is built again when the key changes, or when the file is missing or damaged.
    Tensors from the file are memory-mapped, so that processes share them.
    """
    file = folder / f"{name}.pt"
    try:
        found = torch.load(file, weights_only=True, mmap=True)
        if found["key"] == key:
            return found["value"]
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, pickle.UnpicklingError):
        pass
    value = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            torch.save({"key": key, "value": value}, temporary)
    except OSError as error:
        warnings.warn(
            f"{folder}: no cache was written ({error}); set CVAE_LAB_CACHE to another folder", stacklevel=2
        )
    return value


def read_pictures(
    root: Path,
    part: str,
    groups: Sequence[Sequence[Path]],
    size: tuple[int, int],
    progress: bool,
    cache: str | Path | None,
) -> Sequence[UInt8[Tensor, "_ 3 h w"]]:
    """Return one tensor of pictures of `size` (height, width) per group of files, from the cache where it is valid."""
    where = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    value = cached(
        Path(cache) if cache else cache_dir(),
        f"{part}-{size[0]}x{size[1]}-{where}",
        _content_key(root, [file for group in groups for file in group]),
        lambda: {"pictures": decode(groups, size, progress, part)},
    )
    return value["pictures"].split([len(group) for group in groups])


def _content_key(root: Path, files: Sequence[Path]) -> str:
    """A hash of names, sizes and times of change: any edit of a file changes it."""
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for file in files:
        # st_ctime also changes when an edit restores the file's own modification time.
        stat = file.stat()
        times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest.update(f"{file.relative_to(root).as_posix()} {times}\n".encode())
    return digest.hexdigest()
