"""Atomic file writes: a path always holds the old file or the complete new file."""

import contextlib
import functools
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = re.sub("[^A-Za-z0-9.]", "_", platform.node())[:32]
TEMPORARY = re.compile(r"\..*\.tmp-(?P<host>[A-Za-z0-9._]*)-(?P<pid>[0-9]+)(\.[^.]*)?")
DAY = 24 * 3600  # seconds; longer than any write takes


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    The temporary name has the suffix of `path`, because libraries choose a file format by the suffix. After an error
    the temporary file is removed and `path` keeps its old content. If the process is killed, the temporary file stays.
    The next process that writes to the folder removes it (`remove_stale`).
    """
    path = Path(path)
    _remove_stale_once(path.parent.resolve())
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path`. Its name contains this machine's name and the process id."""
    return path.with_name(f".{path.stem}.tmp-{HOST}-{os.getpid()}{path.suffix}")


def remove_stale(folder: Path) -> None:
    """Remove temporary files and folders that are older than a day or whose process no longer runs.

    Processes on another machine cannot be checked, so only the age of their files counts.
    """
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            match = TEMPORARY.fullmatch(entry.name)
            if match and _is_stale(entry, match["host"], int(match["pid"])):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


@functools.cache
def _remove_stale_once(folder: Path) -> None:
    """Call `remove_stale` once per process and folder. Listing a folder takes longer than writing a small file."""
    remove_stale(folder)


def _is_stale(entry: Path, host: str, pid: int) -> bool:
    if time.time() - entry.lstat().st_mtime > DAY:
        return True
    # os.kill(pid, 0) tests whether a process exists. On Windows it would end the process.
    if host != HOST or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False  # the process exists and belongs to another user
    return False
