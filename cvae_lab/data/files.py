"""Atomic file writes: a path always contains the complete old file or the complete new file."""

import contextlib
import errno
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
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, of a quota, and of a limit on the size of files."""

DAY = 24 * 3600  # seconds; longer than any write takes


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    The temporary name has the suffix of `path`, because libraries choose a file format by the suffix. After an error
    the temporary file is removed and `path` has the old content. If the process is killed, the temporary file stays.
    The next process that writes to the folder removes this file (`remove_stale`).

    If the disk is full, raises OSError with the name of the file and the free space.
    """
    path = Path(path)
    remove_stale_once(path.parent.resolve())
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno not in FULL or isinstance(error, DiskFullError):
            raise
        written = temporary.stat().st_size if temporary.exists() else 0
        raise DiskFullError(path, f"more than {written / 1e6:.1f}", error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically. Raises the same errors as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes | memoryview) -> None:
    """Write bytes atomically.

    If the disk is full, raises OSError with the file name, the file size and the free space.
    """
    with replacing(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DiskFullError(Path(path), f"{len(content) / 1e6:.1f}", error) from error


class DiskFullError(OSError):
    """Error for a write that failed because of a full disk, a quota, or the file-size limit of the process."""

    def __init__(self, path: Path, needed: str, error: OSError) -> None:
        free = shutil.disk_usage(path.parent).free / 1e6
        super().__init__(
            f"The disk is full: {path} needs {needed} MB, and {free:.1f} MB are free ({error.strerror}). "
            "Earlier files are unchanged; free some space and run the command again (train: with --resume)."
        )
        self.errno = error.errno


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path`. The name contains this machine's name and the process id."""
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
def remove_stale_once(folder: Path) -> None:
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
