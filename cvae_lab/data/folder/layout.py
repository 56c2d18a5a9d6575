"""Find the folder, the splits (train, val, test) and the files of a data set, without decoding pictures."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cvae_lab.data.folder.names import (
    check_pairs,
    in_order,
    is_ignored,
    numbered_folders,
    numbered_pictures,
)
from cvae_lab.data.pixels import DataError, Group

PARTS = ("train", "val", "test")
MAX_DEPTH, MAX_FOLDERS = 3, 1000  # limits of the search for a data set below a folder

logger = logging.getLogger(__name__)


def find_root(root: Path) -> Path:
    """Return the folder that contains train, val or test.

    The result is `root`, or the only data set that is found at most three levels below `root`.
    """
    if root.is_file():
        raise DataError(f"{root}: this is a file; {_unpack(root)}")
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the folder that contains train, val or test")
    if any((root / part).is_dir() for part in PARTS):
        return root
    if any((root / f"{part}_img").is_dir() for part in PARTS):
        raise DataError(f"{root}: this is one split of a data set; use {root.resolve().parent}")
    inner = _data_sets_inside(root)
    if len(inner) > 1:
        raise DataError(
            f"{root}: this folder contains several data sets; give one of {', '.join(map(str, inner[:4]))}"
        )
    if inner:
        logger.warning("%s: the data set in the subfolder %s is read.", root, inner[0].relative_to(root))
        return inner[0]
    archives = sorted(path for path in root.iterdir() if path.suffix.lower() == ".zip")
    if archives:
        raise DataError(f"{root}: this folder contains none of train, val and test; {_unpack(archives[0])}")
    raise DataError(
        f"{root}: this folder contains none of train, val and test; give the folder that contains them"
    )


def _unpack(file: Path) -> str:
    if file.suffix.lower() != ".zip":
        return "give the folder that contains train, val or test"
    out = file.with_suffix("")
    return f'unpack it with: python -m zipfile -e "{file}" "{out}", then use "{out}"'


def _data_sets_inside(root: Path) -> list[Path]:
    level, seen = [root], 0
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _folders(outer)]
        seen += len(level)
        if seen > MAX_FOLDERS:  # for example in a home folder, where the search would take long
            return []
        # The folder must also contain a picture folder, because a subfolder called test is common.
        if found := [one for one in level if any((one / part / f"{part}_img").is_dir() for part in PARTS)]:
            return found
    return []


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name))
    except OSError:  # no permission to read the folder
        return []


def find_parts(
    root: Path, parts: Sequence[str], required: Sequence[str] = (), answers: Path | None = None
) -> dict[str, list[Group]]:
    """Return the picture files of every split that exists. Check file names, frame numbers, and that all labels exist.

    Args:
        parts: splits to search for.
        required: splits that must exist. A missing split raises DataError.
        answers: folder with one folder of true frames for every test clip; the default is `test/test_answer`.
    """
    if unknown := {*parts, *required} - set(PARTS):
        raise ValueError(f"unknown splits {sorted(unknown)}; choose from {', '.join(PARTS)}")
    found = {}
    for part in parts:
        if part in required or _is_there(root, part):
            found[part] = _test_groups(root, answers) if part == "test" else _video_groups(root, part)
    if not found:
        raise DataError(
            f"{root}: this folder contains no pictures in {' or '.join(parts)}; add pictures, or give another folder"
        )
    return found


def _is_there(root: Path, part: str) -> bool:
    """Return whether the folder of a split exists and contains pictures. Two empty picture folders are logged."""
    if not (root / part).is_dir():
        return False
    folders = [root / part / f"{part}_{kind}" for kind in ("img", "label")]
    if all(folder.is_dir() for folder in folders):
        numbered = numbered_folders if part == "test" else numbered_pictures
        if not any(numbered(folder) for folder in folders):
            logger.warning("%s: both picture folders are empty; the split %s is not read.", root / part, part)
            return False
    return True


def _video_groups(root: Path, part: str) -> list[Group]:
    """Return the image files and the label files of the training or validation video, in order."""
    images, labels = (
        _not_empty(numbered_pictures(folder), folder, "PNG or JPEG files")
        for folder in (root / part / f"{part}_img", root / part / f"{part}_label")
    )
    check_pairs(images, labels)
    return [Group(in_order(images), False), Group(in_order(labels), True)]


def _test_groups(root: Path, answers: Path | None) -> list[Group]:
    """Return three groups for every test clip, in this order: first frame, labels, true frames (empty if unknown)."""
    images, labels = (
        _not_empty(numbered_folders(folder), folder, "clip folders")
        for folder in (root / "test" / "test_img", root / "test" / "test_label")
    )
    answers = answers or root / "test" / "test_answer"
    answer_folders = numbered_folders(answers) if answers.is_dir() else {}
    check_pairs(images, labels)
    groups = []
    for number in sorted(images):
        first = _not_empty(numbered_pictures(images[number]), images[number], "PNG or JPEG files")
        poses = _not_empty(numbered_pictures(labels[number]), labels[number], "PNG or JPEG files")
        if len(first) != 1:
            raise DataError(
                f"{images[number]}: {len(first)} images, but the folder must contain only the first frame "
                f"of the clip; remove the others"
            )
        if len(poses) < 2:
            raise DataError(
                f"{labels[number]}: {len(poses)} label is too few to predict a frame; add labels, because a clip needs "
                f"2 labels or more"
            )
        answer = numbered_pictures(answer_folders[number]) if number in answer_folders else {}
        if answer:
            check_pairs(answer, poses)
        groups += [
            Group(in_order(first), False),
            Group(in_order(poses), True, str(number)),
            Group(in_order(answer), False),
        ]
    return groups


def _not_empty(found: dict[int, Path], folder: Path, what: str) -> dict[int, Path]:
    if not found:
        raise DataError(f"{folder}: this folder contains no {what}; add {what}")
    return found
