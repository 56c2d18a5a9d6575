"""Read the tensors and plain values of a checkpoint file without running code. Other files raise CheckpointError."""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file


class CheckpointError(ValueError):
    """Error for a file that is not a checkpoint of this model. The message contains the file and the reason."""


def _plain_dict(factory: object = None, *_: object) -> dict:
    """Replace a `defaultdict` by a dict with the same values, without calling the factory."""
    return {}


def _plain_list(items: Iterable = (), _maxlen: object = None) -> list:
    """Replace a `deque` by a list."""
    return list(items)


class _PlainPath(pathlib.PurePosixPath):
    """Pure path that replaces any `Path`, because a pure path cannot open files."""


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

HARMLESS: list[Any] = [
    argparse.Namespace,
    (_plain_dict, "collections.defaultdict"),
    (_plain_list, "collections.deque"),
    *((_PlainPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((kind, f"builtins.{kind.__name__}") for kind in (int, float, str, bool, list, dict, tuple)),
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"),
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Types that training programs save beside the weights. Reading them does not run code or open a file."""

_TEXT_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file itself; run git lfs pull in the repository of the file",
    ),
    (b"<!doctype", "is an HTML page, not a checkpoint; download the file itself"),
    (b"<html", "is an HTML page, not a checkpoint; download the file itself"),
    (b"\x1f\x8b", "is a gzip archive; unpack it and give the file inside"),
    (b"\xfd7zXZ", "is an xz archive; unpack it and give the file inside"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it and give the file inside"),
    (b"Rar!", "is a RAR archive; unpack it and give the file inside"),
    (b"\x89HDF", "is an HDF5 file, which is not a checkpoint of PyTorch"),
)


def read_file(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file (.pt, .pth, .ckpt, .safetensors), which must be a dict.

    The file is read with `weights_only=True` and the types in HARMLESS. torch.save has written zip archives since 2020.
    The CRC-32 of every record in an archive is verified first, which detects every flipped bit. For a checkpoint of
    9 MB, this check takes 18 ms and torch.load takes 80 ms (preset compact, one CPU core). Any other file raises
    CheckpointError with one sentence.
    """
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file, so it is not a checkpoint.")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); copy or download it again.")
    beginning = head.lstrip().lower()
    for start, reason in _TEXT_KINDS:
        if beginning.startswith(start.lower()):
            raise CheckpointError(f"{path} {reason}.")
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        _check_archive(path)
    raw = _load(path, is_archive=head.startswith(b"PK"))
    if not isinstance(raw, dict):
        kind = type(raw).__name__
        raise CheckpointError(f"{path} contains a {kind}, not a dict of weights, so it is not a checkpoint.")
    return raw


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the weights, and the configuration if the file's metadata contain one of this project."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        weights = load_file(path)
        if "config" not in about:
            return {"state_dict": weights}
        return {"format": int(about.get("format", 1)), "config": about["config"], "state_dict": weights}
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is a damaged or incomplete safetensors file; copy or download it again."
        ) from error


def _check_archive(path: Path) -> None:
    """Raise CheckpointError if a zip archive was not written by torch.save, or if a record is damaged."""
    incomplete = CheckpointError(f"{path} is incomplete or damaged; copy or download it again.")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_kind(path, archive.namelist())
            # torch.save does not compress. A compressed record could be larger than the memory when it is unpacked.
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise CheckpointError(f"{path} is compressed, unlike the files of torch.save; save it again.")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises errors of many types for a damaged archive
        raise incomplete from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of its record {damaged} is wrong; copy or download it again."
        )


def _check_kind(path: Path, names: list[str]) -> None:
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in last or any("/code/" in name for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which contains code; save the weights instead: "
            "torch.save(model.state_dict(), 'weights.pt')."
        )
    if "data.pkl" not in last:
        files = [name for name in names if not name.endswith("/") and "__MACOSX" not in name]
        inside = f"it holds {files[0]}" if files else "it contains no file"
        raise CheckpointError(f"{path} is a zip archive, not a checkpoint ({inside}); unpack it first.")


def _load(path: Path, is_archive: bool) -> Any:  # noqa: ANN401
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, is_archive, str(error)) from error
    except Exception as error:  # torch raises errors of many types for a damaged file
        raise CheckpointError(
            f"{path} is incomplete, damaged or not a checkpoint of PyTorch; copy or download it again."
        ) from error


def _unsafe(path: Path, is_archive: bool, report: str) -> CheckpointError:
    """Return the error for a file with other types than tensors and the types in HARMLESS."""
    names = _unsafe_types(path) if is_archive else re.findall(r"GLOBAL ([\w.]+)", report)
    with path.open("rb") as file:
        mentions_modules = b"torch.nn.modules" in file.read(2**20)
    if any(name.startswith("torch.nn.modules") for name in names) or (names and mentions_modules):
        return CheckpointError(
            f"{path} contains a whole pickled module. Reading this module would run code, so the file is refused. "
            "Convert it on the machine where it was saved:\n"
            f"    model = torch.load({path.name!r}, weights_only=False)\n"
            f"    torch.save(model.state_dict(), {path.stem + '_weights.pt'!r})"
        )
    if not names and not is_archive:
        return CheckpointError(f"{path} is not a checkpoint of PyTorch, or it is damaged.")
    harmless = {_full_name(item) for item in HARMLESS}
    other = next((name for name in names if name not in harmless), "an unknown type")
    return CheckpointError(
        f"{path} holds an object of type {other}, which could run code when it is read, so the file is refused; "
        "save the weights alone: torch.save(model.state_dict(), 'weights.pt')."
    )


def _unsafe_types(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the names are only details of an error that is raised in any case
        return []


def _full_name(item: Any) -> str:  # noqa: ANN401
    return item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__name__}"
