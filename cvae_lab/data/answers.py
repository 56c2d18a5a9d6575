"""Find the course's text files with the true frames of the test clips, and add these frames to the clips."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from cvae_lab.data.cache import cached, content_key
from cvae_lab.data.clips import AnswerFormat, Clip
from cvae_lab.data.course_csv import HEIGHT, WIDTH, read_2023, read_submission, regular
from cvae_lab.data.pixels import DataError

SAME_FRAME = 8.0  # grey levels; two frames with a smaller mean absolute difference are treated as equal

logger = logging.getLogger(__name__)


def answer_files(path: Path) -> tuple[AnswerFormat, dict[str, Path]]:
    """Return the format of the answers at `path` (a file or a folder) and a dict of the answer files.

    In the format of 2023, each clip has a file, whose key is the clip's number. In the format of later years, all clips
    are in one file, whose key is "".
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    named = {match[1]: file for file in files if (match := re.fullmatch(r"(?i)gt0*([0-9]+)\.csv", file.name))}
    if named:
        return "2023", named
    if path.is_dir():
        files = [file for file in files if file.name.lower() == "gt.csv"]
    return ("later", {"": files[0]}) if files else ("none", {})


def is_picture_folder(path: Path) -> bool:
    """Return whether `path` is a folder without text files of the course, so that the true frames must be pictures."""
    return path.is_dir() and answer_files(path)[0] == "none"


def read_answers(path: str | Path, clips: Sequence[Clip], cache: Path | None = None) -> tuple[Clip, ...]:
    """Return the test clips with their true frames, read from the course's answer files.

    Raises DataError if a file cannot be read, or if the number of frames in a file differs from that of the clip.

    Args:
        path: a folder with GT0.csv, GT1.csv, … (2023) or gt.csv (later years), or one such file. In the format of
            2023, a clip without a file is returned unchanged.
        clips: the test clips in order, of any length.
        cache: folder where the values are cached, because parsing the text takes seconds.
    """
    path = Path(path)
    year, files = answer_files(path)
    if not path.exists() or year == "none":
        raise DataError(
            f"{path}: no true frames found; give GT0.csv, … (2023), gt.csv (later years), or the folder of these files"
        )
    lengths = {clip.name: len(clip) for clip in clips}
    sources = {name: files[name] for name in lengths if name in files} if year == "2023" else files
    _check_answers(path, clips, sources)

    def read() -> dict[str, UInt8[Tensor, "t 3 h w"]]:
        if year == "later":
            return dict(zip(lengths, read_submission(files[""], list(lengths.values())), strict=True))
        return {name: read_2023(file, lengths[name]) for name, file in sources.items()}

    if cache:
        key = content_key(path.parent, list(sources.values()), year, lengths)
        where = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
        answers = cached(cache, f"answers-{where}", key, read)
    else:
        answers = read()
    return tuple(
        _answered(clip, answers[clip.name], path) if clip.name in answers else clip for clip in clips
    )


def _check_answers(path: Path, clips: Sequence[Clip], sources: dict[str, Path]) -> None:
    if any(clip.first.shape != (3, HEIGHT, WIDTH) for clip in clips):
        raise DataError(
            f"{path}: the course's true frames have {WIDTH} x {HEIGHT} pixels; read the test clips at this size"
        )
    if not sources:
        names = ", ".join(clip.name for clip in clips)
        raise DataError(
            f"{path}: no file has the true frames of clip {names}; number the files like the test clips"
        )
    for file in sources.values():
        regular(file)


def _answered(clip: Clip, answer: UInt8[Tensor, "t 3 h w"], path: Path) -> Clip:
    """Return the clip with true frames.

    Frame 0 is copied from the clip, because the values in the files are rounded.
    """
    difference = float((answer[0].float() - clip.first.float()).abs().mean())
    if difference > SAME_FRAME:
        logger.warning(
            "%s: the first frame of clip %s differs from the frame in test_img by %.0f grey levels on average; check "
            "that the file has the true frames of this clip.",
            path,
            clip.name,
            difference,
        )
    return replace(clip, answer=torch.cat([clip.first[None], answer[1:]]))


def find_answers(root: Path) -> Path | None:
    """Search for the course's answer files in the data folder, its folder test, and Demo_Test in or beside it."""
    places = (root, root / "test", root / "Demo_Test", root.resolve().parent / "Demo_Test")
    return next((place for place in places if place.is_dir() and answer_files(place)[0] != "none"), None)


def with_answers(
    root: Path, clips: tuple[Clip, ...], path: Path | None, cache: Path
) -> tuple[tuple[Clip, ...], AnswerFormat]:
    """Add answers to the test clips, and return the clips with the format of the answers.

    The first available source is used: files at `path`, true frames that the clips already contain, files that
    `find_answers` finds. If found files do not belong to the clips, a warning is logged and the clips have no answers.
    Files at `path` that do not belong to the clips raise DataError.
    """
    has_pictures = any(clip.answer is not None for clip in clips)
    if path and not (has_pictures and is_picture_folder(path)):
        return read_answers(path, clips, cache), answer_files(path)[0]
    if has_pictures:
        return clips, "folder"
    found = find_answers(root) if clips else None
    if found is None:
        return clips, "none"
    try:
        return read_answers(found, clips, cache), answer_files(found)[0]
    except DataError as error:
        logger.warning("Answers were found but are not used: %s.", error)
        return clips, "none"
