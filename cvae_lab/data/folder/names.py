"""Read frame numbers from file names such as `12.png` or `img_00012.jpg`, and clip numbers from folder names."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cvae_lab.data.pixels import DataError

PICTURES = (".png", ".jpg", ".jpeg")
LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini", "__macosx")
# `3 (1).png` is the name that a browser gives to a second download of `3.png`.
COPY_MARK = re.compile(r" ?\([0-9]+\)$")
LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)")


def is_ignored(name: str) -> bool:
    """Return whether a file is hidden or created by an operating system, such as Thumbs.db or __MACOSX."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def numbered_pictures(folder: Path) -> dict[int, Path]:
    """Return the picture files of a folder as a dict from frame number to path. Other files are ignored."""
    files = [path for path in _entries(folder) if path.suffix.lower() in PICTURES and not path.is_dir()]
    for file in files:
        if not file.is_file():  # reading from a pipe or a device could block forever
            raise DataError(f"{file}: this is not a regular file; replace it with a picture or remove it")
    return _by_number(files)


def numbered_folders(folder: Path) -> dict[int, Path]:
    """Return the clip folders inside a folder as a dict from clip number to path."""
    return _by_number([path for path in _entries(folder) if path.is_dir()])


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder, but the assignment's layout requires it; add the folder or correct "
            f"its name"
        )
    return sorted(path for path in folder.iterdir() if not is_ignored(path.name))


def _by_number(paths: Sequence[Path]) -> dict[int, Path]:
    """Return a dict from the last number in each file name to the path.

    The rest of the name must be equal for all files.
    """
    names = [path.stem if path.suffix.lower() in PICTURES else path.name for path in paths]
    numbers = _numbers(names) or _numbers([COPY_MARK.sub("", name) for name in names])
    if numbers is None or len(set(numbers)) < len(paths):
        raise _naming_fault(paths, [COPY_MARK.sub("", name) for name in names])
    return dict(zip(numbers, paths, strict=True))


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Return the last number of every name, or None if the names do not have the same pattern."""
    matches = [LAST_NUMBER.fullmatch(name) for name in names]
    if not all(matches) or len({(match[1], match[3]) for match in matches}) > 1:
        return None
    return [int(match[2]) for match in matches]


def _naming_fault(paths: Sequence[Path], names: Sequence[str]) -> DataError:
    """Return the error for the first fault: a name without a number, a repeated number, or a different pattern."""
    found: dict[int, Path] = {}
    patterns = []
    for path, name in zip(paths, names, strict=True):
        match = LAST_NUMBER.fullmatch(name)
        if not match:
            return DataError(
                f"{path}: the name has no number; rename it to <integer>{path.suffix}, or move it to another folder"
            )
        number = int(match[2])
        if number in found:
            return DataError(
                f"{path}: number {number} occurs twice, also in {found[number].name}; remove one"
            )
        found[number] = path
        patterns.append((match[1], match[3]))
    usual = Counter(patterns).most_common(1)[0][0]
    odd = next(i for i, pattern in enumerate(patterns) if pattern != usual)
    example = paths[patterns.index(usual)].name
    return DataError(
        f"{paths[odd]}: the name does not follow the pattern of {example}; use one pattern for all names in a folder"
    )


def check_pairs(images: dict[int, Path], labels: dict[int, Path]) -> None:
    """Raise DataError if an image has no label of the same number, or a label has no image."""
    for ours, theirs, missing in ((images, labels, "label"), (labels, images, "image")):
        if lone := sorted(ours.keys() - theirs.keys()):
            folder, other = ours[lone[0]].parent, next(iter(theirs.values())).parent
            raise DataError(
                f"{folder}: {_few(ours[n].name for n in lone)} without a matching "
                f"{missing} in {other}; add the {missing} or remove the file"
            )


def in_order(files: dict[int, Path]) -> list[Path]:
    """Return the files sorted by number. Raises DataError if a number is missing."""
    numbers = sorted(files)
    gaps = [b for a, b in itertools.pairwise(numbers) if b != a + 1]
    if gaps:
        raise DataError(
            f"{files[gaps[0]].parent}: the numbering has a gap before {_few(files[n].name for n in gaps)}; "
            "add the missing files, or number the files without gaps"
        )
    return [files[n] for n in numbers]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
