"""Grade the submissions of a class. An error in one submission is reported and does not stop the others."""

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor

from cvae_lab.data.clips import Clip, Dataset
from cvae_lab.data.pixels import DataError, to_float, to_uint8
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.metrics import grade, pooled_psnr, static_baseline
from cvae_lab.models.device import pick_device
from cvae_lab.teaching.grading.prediction_files import (
    PICTURES,
    VIDEO_FORMATS,
    Clips,
    is_prose,
    numbered,
    picture_folders,
    read_clips,
    text_files,
)
from cvae_lab.teaching.grading.scores import aligned, averages, score
from cvae_lab.training import checkpoint

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
FILES = (".csv", ".txt", ".npz", ".gif", ".zip", *VIDEO_FORMATS, *CHECKPOINTS)
MAX_BYTES = 2_000_000_000  # maximum size of a checkpoint, or of all unpacked files of a zip archive together
MAX_MEMBERS = 20_000  # maximum number of files in a zip archive
SIMILAR = 45.0  # PSNR in dB between two submissions; from this value on, one is probably a copy of the other
MAX_FAULT = 500  # characters of an error message that are kept
SAMPLES = 8  # frames per clip that are kept to compare submissions with each other


def grade_class(
    folders: Path | Sequence[Path], data: Dataset, log: Callable[[str], None] = lambda line: None
) -> pd.DataFrame:
    """Return one row per submission: scores, grade, static baseline and similar submissions, or an error message.

    A submission is a file or folder of predictions (see `read_clips`), a checkpoint, or a zip archive that contains
    one of these. A checkpoint is used to predict the test clips of `data`. The grade is computed from the mean PSNR
    with the table of the assignment. If a submission cannot be read, its row has an error message and no grade.
    Rows are sorted by mean PSNR.

    Args:
        folders: folder of the class, or folders of single students.
        data: data set with the true frames of its test clips.
        log: called with one line per submission.
    """
    tests = [clip for clip in data.tests if clip.answer is not None]
    if not tests:
        raise DataError(
            f"{data.name}: no test clip has true frames, so nothing can be graded; give --answers"
        )
    baseline = float(np.mean([float(static_baseline(to_float(clip.answer)).mean()) for clip in tests]))
    rows: dict[str, dict[str, Any]] = {}
    samples: dict[str, Tensor] = {}
    for name, path in _named(folders, len(tests)):
        row = {"submission": name, "fault": "", "similar to": ""}
        try:
            clips = _prediction(path, tests, data, log)
            found = averages(score(clips, [clip.answer for clip in tests]))
            samples[name] = _sample(clips, tests)
            rows[name] = row | found | {"grade": grade(found["mean PSNR"])}
            log(f"{name}: {found['mean PSNR']:.2f} dB")
        except Exception as error:  # no error in a submission may stop the grading of the others
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            rows[name] = row | {"fault": kind + (" ".join(str(error).split())[:MAX_FAULT] or "unreadable")}
            log(f"{name}: {rows[name]['fault']}")
        rows[name] |= {"static baseline": baseline}
    for name, others in _similar(samples).items():
        rows[name]["similar to"] = others
    return _table(rows.values())


def _table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    columns = ["submission", "mean PSNR", "static baseline", "grade", "similar to", "fault"]
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*columns, *(name for name in table.columns if name not in columns)])
    table["grade"] = table["grade"].astype("Int64")
    return table.sort_values("mean PSNR", ascending=False, ignore_index=True)


def _named(folders: Path | Sequence[Path], n_clips: int) -> list[tuple[str, Path]]:
    """Yield every submission with its name.

    The name is the path of the submission relative to its folder. With several folders, the name of the folder is added
    in front.
    """
    roots = [folders] if isinstance(folders, Path) else list(folders)
    found = []
    for root in roots:
        if not root.exists():
            raise DataError(
                f"{root}: there is no such file or folder; give a folder with one file or folder per student"
            )
        for path in submissions(root, n_clips):
            below = path.relative_to(root).as_posix()
            parts = [str(root)] * (len(roots) > 1 or below == ".") + [below] * (below != ".")
            found.append(("/".join(parts), path))
    if not found:
        raise DataError(
            f"{', '.join(map(str, roots))}: there is no submission in this folder; give a folder with one file or "
            f"folder per student"
        )
    return found


def submissions(folder: Path, n_clips: int) -> list[Path]:
    """Return the submissions at or below a path, in sorted order.

    Submissions are files with one of the suffixes in FILES, and folders of pictures or text files.

    Args:
        n_clips: number of test clips. A folder with more text files or picture folders is read as a class folder.
    """
    if folder.name.startswith(".") or folder.name == "__MACOSX":
        return []
    if folder.is_symlink() or folder.is_file():
        is_note = folder.suffix.lower() == ".txt" and not folder.is_symlink() and is_prose(folder)
        return [folder] if folder.suffix.lower() in FILES and not is_note else []
    if not folder.is_dir():  # reading from a pipe or a device could block forever
        return []
    found = {inner: submissions(inner, n_clips) for inner in sorted(folder.iterdir())}
    if _is_one_submission(folder, [inner for inner in found if found[inner]], n_clips):
        return [folder]
    return [path for paths in found.values() for path in paths]


def _is_one_submission(folder: Path, candidates: Sequence[Path], n_clips: int) -> bool:
    """Whether the pictures, text files or picture folders in a folder are the parts of one prediction.

    They must be more than the other submissions in the folder. A class folder with one broken file of this kind is
    therefore still read as a class.
    """
    if pictures := numbered(folder, PICTURES):
        return len(pictures) > len(candidates)
    parts = text_files(folder) or (picture_folders(folder) if n_clips > 1 else [])
    return 0 < len(parts) <= n_clips and len(parts) > len(set(candidates) - set(parts))


def _prediction(path: Path, tests: Sequence[Clip], data: Dataset, log: Callable[[str], None]) -> Clips:
    """Return the predicted clips of a submission. For a damaged file, an error of any type may be raised."""
    linked = next((file for file in (path, *path.rglob("*")) if file.is_symlink()), None)
    if linked:
        raise DataError(
            f"{linked}: this is a link to another file, and links are not followed; hand in the file itself"
        )
    if path.suffix.lower() == ".zip":
        return _from_zip(path, tests, data, log)
    if path.suffix.lower() in CHECKPOINTS:
        return _from_checkpoint(path, tests, data, log)
    return read_clips(path, [len(clip) for clip in tests])


def _from_checkpoint(path: Path, tests: Sequence[Clip], data: Dataset, log: Callable[[str], None]) -> Clips:
    _check_size(path)
    # The activation of the last layer is chosen with validation frames; without them, with the test clips.
    known = data.val.as_clips()[:1] or tests
    model = checkpoint.load_model(path, pick_device(), clips=known, log=log)
    return [to_uint8(frames) for frames in predict_clips(model, tests, checkpoint.train_config(path))]


def _check_size(path: Path) -> None:
    """Refuse a file that is too large, or an archive that lists too many files or bytes, before it is unpacked."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise DataError(
                f"{path}: this archive has more than {MAX_MEMBERS} files; hand in only the prediction"
            )
        size = max(size, sum(member.file_size for member in members))
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: {size:,} bytes are more than the limit of {MAX_BYTES:,} bytes; hand in a smaller file"
        )


def _from_zip(path: Path, tests: Sequence[Clip], data: Dataset, log: Callable[[str], None]) -> Clips:
    """Unpack a zip archive to a temporary folder and read its prediction.

    The archive must contain exactly one submission.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: this is not a zip archive, or it is incomplete; hand in the file again")
    _check_size(path)
    with tempfile.TemporaryDirectory() as temporary:
        # zipfile creates no links, writes no file outside the folder, and writes at most the size given for each file.
        with zipfile.ZipFile(path) as archive:
            archive.extractall(temporary)
        found = submissions(Path(temporary), len(tests))
        if len(found) != 1 or found[0].suffix.lower() == ".zip":
            names = ", ".join(str(file.relative_to(temporary)) for file in found[:3]) or "none"
            raise DataError(
                f"{path}: the archive must contain one submission, but it contains {len(found)} ({names})"
            )
        try:
            return _prediction(found[0], tests, data, log)
        except (ValueError, OSError) as error:
            raise DataError(str(error).replace(temporary, str(path))) from error


def _sample(clips: Clips, tests: Sequence[Clip]) -> UInt8[Tensor, "n 3 h w"]:
    """Return a few predicted frames of every clip, without frame 0. Frame numbers are the same for all submissions."""
    kept = []
    for number, (predicted, clip) in enumerate(zip(clips, tests, strict=True)):
        frames, _ = aligned(predicted, clip.answer, number)
        kept.append(frames[torch.linspace(0, len(frames) - 1, min(SAMPLES, len(frames))).long()])
    return torch.cat(kept)


def _similar(samples: dict[str, Tensor]) -> dict[str, str]:
    """Return, for each submission, the other submissions that are almost equal, with the PSNR between the two."""
    found: dict[str, list[str]] = {name: [] for name in samples}
    names = list(samples)
    for index, name in enumerate(names):
        for other in names[:index]:
            equal = torch.equal(samples[name], samples[other])
            between = pooled_psnr(to_float(samples[name]), to_float(samples[other]))
            if equal or between >= SIMILAR:
                note = "identical" if equal else f"{between:.0f} dB between them"
                found[name].append(f"{other} ({note})")
                found[other].append(f"{name} ({note})")
    return {name: "; ".join(others) for name, others in found.items()}
