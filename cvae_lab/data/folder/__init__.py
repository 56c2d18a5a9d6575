"""Read a data set in the assignment's folder layout as uint8 tensors. Decoded pictures are cached.

train/train_img/*.png    train/train_label/*.png    (val the same)
test/test_img/K/0.png    test/test_label/K/*.png    test/test_answer/K/*.png if the answers are known
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from cvae_lab.data.answers import is_picture_folder, with_answers
from cvae_lab.data.cache import cache_dir, cached, content_key
from cvae_lab.data.clips import Clip, Dataset, Video, find_boundaries
from cvae_lab.data.folder.boundaries import BOUNDARIES_FILE, read_boundaries
from cvae_lab.data.folder.layout import PARTS, find_parts, find_root
from cvae_lab.data.folder.notices import conversion_notices, palette_of, size_notices
from cvae_lab.data.folder.writing import write_folder
from cvae_lab.data.pixels import DataError, Fit, Group, chosen_size, decode

__all__ = ["PARTS", "DataError", "read_folder", "write_folder"]

logger = logging.getLogger(__name__)


def read_folder(
    root: str | Path,
    boundaries: tuple[int, ...] | None = None,
    size: tuple[int, int] | None = (32, 64),
    progress: bool = True,
    cache: str | Path | None = None,
    parts: Sequence[str] = PARTS,
    min_frames: int = 16,
    required: Sequence[str] = (),
    fit: Fit = "stretch",
    answers: str | Path | None = None,
) -> Dataset:
    """Read a data set in the assignment's folder layout. The first fault raises DataError.

    The names and the numbering of all files are checked before the first picture is decoded, and each frame must have
    a label. One warning is logged for all converted pictures of a split, and one for each source size that is resized.

    Args:
        root: the folder that holds train, val or test, or a folder with such a folder inside.
        boundaries: index of the first frame of every training recording except the first. By default they are read
            from `train/cuts.txt`. Without this file they are detected from the frames.
        size: (height, width) of the pictures in the result. Larger pictures are reduced to it. If it is larger than the
            course's 32 x 64, smaller pictures are refused, because enlarged pictures contain no more detail. None means
            the size of the pictures if it is one of `pixels.SIZES`, and otherwise 32 x 64.
        cache: folder for the cache of decoded pictures; the default is `cache_dir()`.
        parts: splits to read. A missing split is empty in the result.
        min_frames: smallest allowed number of training frames, which is the number of frames in a training clip.
        required: splits that must exist. A missing one raises DataError.
        fit: how pictures of another aspect ratio are resized, see `pixels.Fit`.
        answers: file or folder with the true frames of the test clips, see `answers.read_answers`. The default is
            `test/test_answer`, or else the result of `answers.find_answers`.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit is {fit!r}; choose one of {', '.join(get_args(Fit))}")
    root, answers = find_root(Path(root)), Path(answers) if answers else None
    groups = _find_groups(root, parts, required, answers, min_frames)
    size = chosen_size(groups, size)
    folder = Path(cache) if cache else cache_dir()
    pixels = _read_parts(root, groups, size, progress, folder, fit)
    return _dataset(root, groups, pixels, size, boundaries, answers, folder)


def _find_groups(
    root: Path, parts: Sequence[str], required: Sequence[str], answers: Path | None, min_frames: int
) -> dict[str, list[Group]]:
    """Return the files of each split after the checks that need no pixels."""
    pictures = answers if answers and is_picture_folder(answers) else None
    groups = find_parts(root, parts, required, pictures)
    _check_lengths(root, groups, min_frames)
    return groups


def _read_parts(
    root: Path, groups: dict[str, list[Group]], size: tuple[int, int], progress: bool, cache: Path, fit: Fit
) -> dict[str, Sequence[Tensor]]:
    """Return the pixels of every group of every split. Log which pictures were resized or converted."""
    read = {part: _read_pictures(root, part, groups[part], size, progress, cache, fit) for part in groups}
    for line in (*size_notices(read, groups, size, fit), *conversion_notices(read)):
        logger.warning("%s: %s", root, line)
    return {part: read[part]["pixels"].split([len(group.files) for group in groups[part]]) for part in groups}


def _dataset(
    root: Path,
    groups: dict[str, list[Group]],
    pixels: dict[str, Sequence[Tensor]],
    size: tuple[int, int],
    boundaries: tuple[int, ...] | None,
    answers: Path | None,
    cache: Path,
) -> Dataset:
    train = _video(root, "train", pixels.get("train"), size, boundaries)
    val = _video(root, "val", pixels.get("val"), size, None)
    tests = _clips(groups["test"], pixels["test"]) if "test" in groups else ()
    tests, answer_format = with_answers(root, tests, answers, cache)
    palette = palette_of(root, [train.labels, val.labels, *(clip.labels for clip in tests)])
    return Dataset(root.resolve().name, train, val, tests, palette, answer_format)


def _check_lengths(root: Path, groups: dict[str, list[Group]], min_frames: int) -> None:
    for part, least in (("train", min_frames), ("val", 2)):
        if part in groups and len(groups[part][0].files) < least:
            raise DataError(
                f"{root / part / part}_img: {len(groups[part][0].files)} frames are too few, a clip needs {least}; "
                "add frames or use shorter clips"
            )


def _read_pictures(
    root: Path, part: str, groups: list[Group], size: tuple[int, int], progress: bool, cache: Path, fit: Fit
) -> dict[str, Any]:
    """Return the result of `pixels.decode` as a dict. It is read from the cache if no file has changed."""
    where = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    files = [file for group in groups for file in group.files]
    key = content_key(root, files, fit, [(len(group.files), group.is_label) for group in groups])
    name = f"{part}-{size[0]}x{size[1]}-{where}"
    return cached(cache, name, key, lambda: decode(groups, size, progress, part, fit)._asdict())


def _video(
    root: Path,
    part: str,
    pixels: Sequence[Tensor] | None,
    size: tuple[int, int],
    boundaries: tuple[int, ...] | None,
) -> Video:
    nothing = torch.empty(0, 3, *size, dtype=torch.uint8)
    frames, labels = pixels or (nothing, nothing)
    if boundaries is None:
        named = root / part / BOUNDARIES_FILE
        boundaries = (
            read_boundaries(named, len(frames))
            if len(frames) and named.is_file()
            else find_boundaries(frames)
        )
    return Video(frames, labels, tuple(boundaries) if len(frames) else (), part)


def _clips(groups: list[Group], pixels: Sequence[Tensor]) -> tuple[Clip, ...]:
    """Build the test clips. Each clip has three groups: the first frame, the labels and the answer."""
    clips = []
    for i in range(0, len(groups), 3):
        first, labels, answer = pixels[i : i + 3]
        if len(answer) and not torch.equal(answer[0], first[0]):
            raise DataError(
                f"{groups[i + 2].files[0]}: the answer does not begin with the clip's first frame "
                f"{groups[i].files[0]}; put that frame first"
            )
        clips.append(Clip(groups[i + 1].name, first[0], labels, answer if len(answer) else None))
    return tuple(clips)
