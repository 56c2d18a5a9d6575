"""Write a data set in the assignment's folder layout."""

import json
import re
import shutil
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from cvae_lab.data.clips import Dataset
from cvae_lab.data.files import remove_stale, temporary_path
from cvae_lab.data.folder.boundaries import BOUNDARIES_FILE
from cvae_lab.data.palette import PALETTE_FILE, STANDARD
from cvae_lab.data.pixels import DataError


def write_folder(dataset: Dataset, out: str | Path) -> None:
    """Write a data set in the assignment's folder layout, with `test/test_answer` if answers are known.

    The complete folder is renamed to `out` at the end. Empty splits are not written. Two files are added to the
    assignment's layout: `cuts.txt` with recording boundaries, and `labels.json` if label colours are not the standard
    ones. Raises DataError if `out` is not empty or a clip's name is not a number.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out}: this folder already exists and is not empty; choose a new or empty folder, or remove it first"
        )
    if names := [clip.name for clip in dataset.tests if not re.fullmatch("[0-9]+", clip.name)]:
        raise DataError(f"test clip {names[0]!r}: the name is not a number; rename the clip")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out.parent)
    made = temporary_path(out)
    try:
        _write_parts(dataset, made)
        if out.exists():
            out.rmdir()
        made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_parts(dataset: Dataset, out: Path) -> None:
    out.mkdir()
    for part, video in (("train", dataset.train), ("val", dataset.val)):
        if not len(video):
            continue
        _write_pictures(video.frames, out / part / f"{part}_img")
        _write_pictures(video.labels, out / part / f"{part}_label")
        (out / part / BOUNDARIES_FILE).write_text(" ".join(map(str, video.boundaries)) + "\n")
    for clip in dataset.tests:
        _write_pictures(clip.first[None], out / "test" / "test_img" / clip.name)
        _write_pictures(clip.labels, out / "test" / "test_label" / clip.name)
        if clip.answer is not None:
            _write_pictures(clip.answer, out / "test" / "test_answer" / clip.name)
    if dataset.palette not in (None, STANDARD):
        (out / PALETTE_FILE).write_text(json.dumps(dataset.palette.pairs()))


def _write_pictures(pictures: UInt8[Tensor, "n 3 h w"], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{number}.png", compress_level=1)
