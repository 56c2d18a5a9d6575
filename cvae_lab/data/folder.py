"""The handout's folders as uint8 tensors: read with every fault named, decoded once, kept in a cache."""

import itertools
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from cvae_lab.data.cache import cache_dir, read_pictures
from cvae_lab.data.clips import Clip, Dataset, Video, find_boundaries
from cvae_lab.data.pixels import DataError

__all__ = ["PARTS", "DataError", "cache_dir", "read_folder", "write_folder"]

PARTS = ("train", "val", "test")
BOUNDARIES_FILE = (
    "cuts.txt"  # in a part's folder: the place, from 0, of the first frame of every recording but the first
)


def read_folder(
    root: str | Path,
    boundaries: tuple[int, ...] | None = None,
    size: tuple[int, int] = (32, 64),
    progress: bool = True,
    cache: str | Path | None = None,
    parts: Sequence[str] = PARTS,
    min_frames: int = 16,
) -> Dataset:
    """Read the handout's folders; pictures come out as `size` (height, width).

    `boundaries` are those of the training frames; without them, a part's `cuts.txt` names them (`train/cuts.txt`), and
    without that they are found from the frames. A part not in `parts` stays empty. The training part needs
    `min_frames` frames. `cache` is the folder that keeps decoded pictures, `cache_dir()` by default. Names,
    numbering and pairs of every part are checked before the first picture is decoded. The first fault raises
    `DataError`.
    """
    root = Path(root)
    _check_root(root, parts)
    layout = {part: _test_files(root) if part == "test" else _video_files(root, part) for part in parts}
    for part, least in (("train", min_frames), ("val", 2)):
        if part in layout and len(layout[part][0]) < least:
            raise DataError(
                f"{root / part / part}_img: {len(layout[part][0])} frames are too few, a clip needs {least}; "
                "add frames or ask for shorter clips"
            )
    pictures = {
        part: read_pictures(root, part, groups, size, progress, cache) for part, groups in layout.items()
    }
    return Dataset(
        root.resolve().name,
        _video(root, "train", pictures.get("train"), size, boundaries),
        _video(root, "val", pictures.get("val"), size, None),
        _clips(root, layout["test"], pictures["test"]) if "test" in layout else (),
    )


def write_folder(dataset: Dataset, out: str | Path) -> None:
    """Write a data set as the handout's folders, with `test/test_answer` where answers are known.

    Appears under its name only when complete; an empty part is left out. Cuts, for which the layout has no place,
    go to `cuts.txt`. Raises DataError where `out` holds something or a clip's name is no number.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already holds something; choose a new or empty folder, or remove it first")
    if names := [clip.name for clip in dataset.tests if not re.fullmatch("[0-9]+", clip.name)]:
        raise DataError(f"test clip {names[0]!r}: the name is text where a number should be; rename the clip")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        made = Path(scratch) / out.name
        for part, video in (("train", dataset.train), ("val", dataset.val)):
            if not len(video):
                continue
            _write_pictures(video.frames, made / part / f"{part}_img")
            _write_pictures(video.labels, made / part / f"{part}_label")
            (made / part / BOUNDARIES_FILE).write_text(" ".join(map(str, video.boundaries)) + "\n")
        for clip in dataset.tests:
            _write_pictures(clip.first[None], made / "test" / "test_img" / clip.name)
            _write_pictures(clip.labels, made / "test" / "test_label" / clip.name)
            if clip.answer is not None:
                _write_pictures(clip.answer, made / "test" / "test_answer" / clip.name)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)


def _write_pictures(pictures: UInt8[Tensor, "n 3 h w"], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{number}.png", compress_level=1)


def _check_root(root: Path, parts: Sequence[str]) -> None:
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds {', '.join(parts)}")
    if any((root / part).is_dir() for part in PARTS):
        return
    if any((root / f"{part}_img").is_dir() for part in PARTS):
        raise DataError(f"{root}: this is one part of a data set; use {root.resolve().parent}")
    for inner in sorted(root.iterdir()):
        if any((inner / part).is_dir() for part in PARTS):
            raise DataError(f"{root}: the data is one folder down; use {inner}")


def _video_files(root: Path, part: str) -> list[list[Path]]:
    """Image files and label files of the training or validation part, in order."""
    images, labels = _numbered(root / part / f"{part}_img"), _numbered(root / part / f"{part}_label")
    _check_pairs(images, labels)
    return [_in_order(images), _in_order(labels)]


def _test_files(root: Path) -> list[list[Path]]:
    """For every test clip in order: its first frame, its labels, its answer frames (none where unknown)."""
    folders = {kind: root / "test" / f"test_{kind}" for kind in ("img", "label", "answer")}
    images, labels = _numbered(folders["img"], ""), _numbered(folders["label"], "")
    _check_pairs(images, labels)
    groups = []
    for number in sorted(images):
        first, poses = _numbered(images[number]), _numbered(labels[number])
        if len(first) != 1:
            raise DataError(f"{images[number]}: {len(first)} images; a test clip gives its first frame alone")
        if len(poses) < 2:
            raise DataError(
                f"{labels[number]}: {len(poses)} label, too few to predict a frame; give 2 or more"
            )
        folder = folders["answer"] / images[number].name
        answer = _numbered(folder) if folder.is_dir() else {}
        if answer:
            _check_pairs(answer, poses)
        groups += [_in_order(first), _in_order(poses), _in_order(answer)]
    return groups


def _numbered(folder: Path, suffix: str = ".png") -> dict[int, Path]:
    """PNG files (or, with no suffix, folders) by the number in their name: `12` or `frame12`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the handout's layout has it, add it or correct its name")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        # Hidden files are what systems leave behind (.DS_Store and the like); other kinds are no pictures.
        if path.name.startswith(".") or (path.suffix.lower() != suffix or path.is_dir() == bool(suffix)):
            continue
        match = re.fullmatch(r"(?:frame)?([0-9]+)", path.stem)
        if not match:
            raise DataError(
                f"{path}: the name is text where a number should be; rename it to <integer>{suffix} or "
                f"frame<integer>{suffix}, or move it away"
            )
        number = int(match[1])
        if number in found:
            raise DataError(f"{path}: number {number} is there twice, see {found[number].name}; remove one")
        found[number] = path
    if not found:
        raise DataError(f"{folder}: holds no {'PNG files' if suffix else 'clip folders'}; add them")
    return found


def _check_pairs(images: dict[int, Path], labels: dict[int, Path]) -> None:
    for ours, theirs, lack in ((images, labels, "label"), (labels, images, "image")):
        if lone := sorted(ours.keys() - theirs.keys()):
            folder, other = ours[lone[0]].parent, next(iter(theirs.values())).parent
            raise DataError(
                f"{folder}: {_few(ours[n].name for n in lone)} without a matching "
                f"{lack} in {other}; add the {lack} or remove the file"
            )


def _in_order(files: dict[int, Path]) -> list[Path]:
    """The files sorted by number, refusing gaps."""
    numbers = sorted(files)
    gaps = [b for a, b in itertools.pairwise(numbers) if b != a + 1]
    if gaps:
        raise DataError(
            f"{files[gaps[0]].parent}: gap in the numbering before {_few(files[n].name for n in gaps)}; "
            "add the missing files or number them without gaps"
        )
    return [files[n] for n in numbers]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _video(
    root: Path,
    part: str,
    pictures: Sequence[Tensor] | None,
    size: tuple[int, int],
    boundaries: tuple[int, ...] | None,
) -> Video:
    nothing = torch.empty(0, 3, *size, dtype=torch.uint8)
    frames, labels = pictures or (nothing, nothing)
    if boundaries is None:
        named = root / part / BOUNDARIES_FILE
        boundaries = (
            _read_boundaries(named, len(frames))
            if len(frames) and named.is_file()
            else find_boundaries(frames)
        )
    return Video(frames, labels, tuple(boundaries), part)


def _read_boundaries(file: Path, frames: int) -> tuple[int, ...]:
    words = file.read_text(errors="replace").split()
    boundaries = tuple(int(word) for word in words if re.fullmatch("[0-9]+", word))
    rising = all(a < b for a, b in itertools.pairwise((0, *boundaries, frames)))
    if len(boundaries) < len(words) or not rising:
        raise DataError(
            f"{file}: must hold the place of the first frame of every recording but the first, counted from 0, rising, "
            f"each from 1 to {frames - 1}; correct it, or remove it to have boundaries found"
        )
    return boundaries


def _clips(root: Path, groups: list[list[Path]], pictures: Sequence[Tensor]) -> tuple[Clip, ...]:
    clips = []
    for i in range(0, len(groups), 3):
        first, labels, answer = pictures[i : i + 3]
        name = groups[i][0].parent.name
        if len(answer) and not torch.equal(answer[0], first[0]):
            raise DataError(
                f"{groups[i + 2][0]}: the answer does not begin with the clip's first frame "
                f"{groups[i][0]}; put that frame first"
            )
        clips.append(Clip(name, first[0], labels, answer if len(answer) else None))
    return tuple(clips)
