"""Pictures decoded once: PNGs to uint8 tensors over all cores, kept in a cache that is never stale."""

import hashlib
import itertools
import math
import mmap
import multiprocessing
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

FORMAT = 1  # of the cache; a new number makes every older file count as missing
CHUNK = 256  # pictures a worker decodes at a time


class DataError(ValueError):
    """A fault in the data: one sentence saying what, where and how to mend it."""


def cache_dir() -> Path:
    """Where decoded pictures are kept: the environment variable CVAE_LAB_CACHE, else ~/.cache/cvae_lab."""
    return Path(os.environ.get("CVAE_LAB_CACHE") or Path.home() / ".cache" / "cvae_lab")


def cached(folder: Path, name: str, key: str, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `build` makes (tensors, numbers and text in dicts, lists, tuples), made again when `key` changes.

    One file per name, so nothing piles up; a missing or damaged file is built anew without a word. Tensors
    from the file are mapped, not read: processes side by side share the memory.
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
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        torch.save({"key": key, "value": value}, part)
        part.replace(file)
    except OSError as error:
        warnings.warn(f"{folder}: no cache written ({error}); set CVAE_LAB_CACHE elsewhere", stacklevel=2)
    return value


def read_pictures(
    root: Path,
    part: str,
    groups: Sequence[Sequence[Path]],
    size: tuple[int, int],
    progress: bool,
    cache: str | Path | None,
) -> Sequence[UInt8[Tensor, "_ 3 h w"]]:
    """One tensor of pictures of `size` (height, width) per group of files, from the cache where it holds."""
    where = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    value = cached(
        Path(cache) if cache else cache_dir(),
        f"{part}-{size[0]}x{size[1]}-{where}",
        _content_key(root, [file for group in groups for file in group]),
        lambda: {"pictures": decode(groups, size, progress, part)},
    )
    return value["pictures"].split([len(group) for group in groups])


def decode(
    groups: Sequence[Sequence[Path]],
    size: tuple[int, int],
    progress: bool = False,
    title: str = "",
    workers: int | None = None,
) -> UInt8[Tensor, "_ 3 h w"]:
    """All pictures, one group after the other; within a group they must be RGB and of one size.

    Processes, not threads: Pillow holds the interpreter's lock for most of so small a picture, and two
    threads were slower than one. Without `workers`, every core helps once the pictures number thousands.
    """
    starts = [(group, i) for group in groups for i in range(0, len(group), CHUNK)]
    # Names as text: as `Path`s they take a worker an eighth of its time to unpack.
    chunks = [([str(file) for file in group[i : i + CHUNK]], _open(group[0]).size) for group, i in starts]
    ends = list(itertools.accumulate(len(files) for files, _ in chunks))
    total = ends[-1] if ends else 0
    # disable=None: a bar on a terminal only, since a log would keep every refresh.
    bar = tqdm(
        total=total, desc=f"decoding {title}", unit=" PNG", leave=False, disable=None if progress else True
    )
    with bar, _room((total, 3, *size), workers or _workers(total)) as (mapper, room, out):
        tasks = [
            (room, end - len(files), files, source) for end, (files, source) in zip(ends, chunks, strict=True)
        ]
        for count in mapper(_decode_chunk, tasks):
            bar.update(count)
    return torch.from_numpy(out)


def _content_key(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for file in files:
        # The time of the last change to the entry itself catches an edit that puts the file's own time back.
        stat = file.stat()
        times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest.update(f"{file.relative_to(root).as_posix()} {times}\n".encode())
    return digest.hexdigest()


def _workers(total: int) -> int:
    # Forking is at home on Linux only; elsewhere starting a process costs more than the decoding.
    if total < 4000 or not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Room:
    """Where pixels go: an array of this process, or memory that forked workers write to, known by its descriptor."""

    shape: tuple[int, ...]
    array: np.ndarray | None = None
    descriptor: int = -1

    def open(self) -> UInt8[np.ndarray, "n 3 h w"]:
        if self.array is not None:
            return self.array
        return np.frombuffer(mmap.mmap(self.descriptor, math.prod(self.shape)), np.uint8).reshape(self.shape)


@contextmanager
def _room(shape: tuple[int, ...], workers: int) -> Iterator[tuple[Callable, _Room, np.ndarray]]:
    """How to map over chunks, and the room for what they give."""
    if workers == 1:
        room = _Room(shape, np.empty(shape, np.uint8))
        yield map, room, room.open()
        return
    # Workers put pixels where they belong: sent through a pipe, they cost a quarter of the time again.
    descriptor = os.memfd_create("pictures")
    with warnings.catch_warnings():
        # From 3.12 on Python warns of forking beside threads; these children touch Pillow and nothing else.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        try:
            os.ftruncate(descriptor, math.prod(shape))
            room = _Room(shape, descriptor=descriptor)
            with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
                yield pool.map, room, room.open()
        finally:
            os.close(descriptor)


def _decode_chunk(task: tuple[_Room, int, Sequence[str], tuple[int, int]]) -> int:
    room, start, files, source = task
    height, width = room.shape[2:]
    pixels = np.empty((len(files), height * width * 3), np.uint8)
    for row, file in zip(pixels, files, strict=True):
        row[:] = np.frombuffer(_decode_one(file, source, (width, height)), np.uint8)
    by_channel = pixels.reshape(-1, height, width, 3).transpose(0, 3, 1, 2)
    room.open()[start : start + len(files)] = by_channel  # turned round at once: picture by picture is dearer
    return len(files)


def _decode_one(file: str, source: tuple[int, int], target: tuple[int, int]) -> bytes:
    picture = _open(file)
    if picture.size != source:
        raise DataError(
            f"{file}: {picture.size[0]} x {picture.size[1]} pixels, but the first file of its folder has "
            f"{source[0]} x {source[1]}; bring all to one size"
        )
    return (picture if source == target else picture.resize(target, Image.Resampling.BILINEAR)).tobytes()


def _open(file: str | Path) -> Image.Image:
    try:
        # The decoder itself: Image.open, which asks every format in turn, takes a tenth longer.
        with PngImagePlugin.PngImageFile(file) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{file}: not a readable PNG ({error}); replace the file") from error
    if picture.mode != "RGB":
        raise DataError(f"{file}: mode {picture.mode} instead of RGB; convert to RGB, 8 bits a channel")
    return picture
