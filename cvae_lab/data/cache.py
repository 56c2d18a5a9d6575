"""Cache of decoded pictures and rendered data on disk."""

import functools
import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvae_lab.data.files import remove_stale_once, replacing

FORMAT = 3  # version of the cache files; a new number makes every older file invalid

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the cache folder: the environment variable CVAE_LAB_CACHE, or ~/.cache/cvae_lab."""
    if folder := os.environ.get("CVAE_LAB_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "cvae_lab"
    except RuntimeError:  # the user has no home folder, as in some containers
        return Path(tempfile.gettempdir()) / "cvae_lab"


def cached(folder: Path, name: str, key: str, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the value in the cache file `name` if key and checksum are correct. Otherwise call `build`.

    Values are tensors, numbers and text in dicts, lists and tuples. Tensors from the file are memory-mapped, so that
    several processes use the same memory. A damaged file is logged and replaced. If the file cannot be written, one
    warning per folder is logged and the value is still returned.
    """
    file = folder / f"{name}.pt"
    remove_stale_once(folder.resolve())
    value = _read(file, key)
    if value is not None:
        return value
    value = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            torch.save({"key": key, "value": value, "checksum": checksum(value)}, temporary)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if the disk is full
        _warn_not_written(folder, str(error).split("\n")[0])
    return value


def _read(file: Path, key: str) -> dict[str, Any] | None:
    """Return the value in the file, or None if the file is missing, has another key or is damaged."""
    try:
        found = torch.load(file, weights_only=True, mmap=True)
        if found["key"] != key:
            return None
        if found["checksum"] == checksum(found["value"]):
            return found["value"]
        reason = "its checksum is wrong"
    except FileNotFoundError:
        return None
    # torch.load raises errors of almost any type for a damaged file. All are handled in the same way.
    except Exception as error:
        reason = type(error).__name__
    if file.is_file():
        logger.warning("%s: this cache file is damaged (%s); its content is computed again.", file, reason)
    return None


@functools.cache
def _warn_not_written(folder: Path, reason: str) -> None:
    logger.warning(
        "%s: the cache file was not written (%s); the next run must read or render the data again. "
        "Free some space, or set CVAE_LAB_CACHE to another folder.",
        folder,
        reason,
    )


def checksum(value: Any, start: int = 0) -> int:  # noqa: ANN401
    """Return the CRC-32 of a value: types, shapes and contents of tensors, numbers and text in nested containers."""
    if isinstance(value, Tensor):
        start = zlib.crc32(f"{value.dtype} {tuple(value.shape)}".encode(), start)
        return zlib.crc32(value.contiguous().numpy().data.cast("B") if value.numel() else b"", start)
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple):
        start = zlib.crc32(f"{type(value).__name__} {len(value)}".encode(), start)
        for item in value:
            start = checksum(item, start)
        return start
    return zlib.crc32(repr(value).encode(), start)


def content_key(root: Path, files: Sequence[Path], *options: object) -> str:
    """Return a hash of the options and of each file's name, size and timestamps (mtime, ctime)."""
    digest = hashlib.sha256(f"format {FORMAT} {options}".encode())
    for file in files:
        # st_ctime changes even if a program restores the modification time after an edit.
        stat = file.stat()
        times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest.update(f"{os.path.relpath(file, root)} {times}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
