"""Score predictions, and grade the submissions of a class. No code of a submission is executed or unpickled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.data.clips import Clip, Dataset
from cvae_lab.data.pixels import DataError, to_float
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.metrics import average_2023, average_later, grade, psnr, ssim, static_baseline
from cvae_lab.models.device import pick_device
from cvae_lab.teaching.prediction_files import CLIP_FRAMES, Clips, read_clips
from cvae_lab.training import CheckpointError, checkpoint

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
SUBMISSIONS = (".csv", ".txt", ".npz", ".gif", ".mp4", *CHECKPOINTS)
NEAR_IDENTICAL = 45.0  # dB; if the PSNR between two submissions is higher, one is probably a copy
SAMPLES = 24  # frames per clip that are kept to compare submissions with each other


def score(prediction: Clips, truth: Clips) -> pd.DataFrame:
    """Return PSNR (dB) and SSIM of every predicted frame; columns clip, frame, psnr, ssim.

    Frame 0 of a clip is an input and is not scored. A prediction with T - 1 frames does not contain frame 0. Raises
    DataError if the numbers of clips or frames are different.
    """
    if len(prediction) != len(truth):
        raise DataError(
            f"the prediction has {len(prediction)} clips, but the answer has {len(truth)}; the numbers must be equal"
        )
    tables = []
    for number, (predicted, true) in enumerate(zip(prediction, truth, strict=True)):
        frames, true = _aligned(predicted, true, number)
        values = {"psnr": psnr(frames, true).numpy(), "ssim": ssim(frames, true).numpy()}
        tables.append(pd.DataFrame({"clip": str(number), "frame": np.arange(1, len(true) + 1), **values}))
    return pd.concat(tables, ignore_index=True)


def _aligned(
    predicted: Tensor, true: Tensor, number: int
) -> tuple[Float[Tensor, "t 3 h w"], Float[Tensor, "t 3 h w"]]:
    """Predicted and true frames 1 to T-1 as floats."""
    if predicted.shape[1:] != true.shape[1:] or abs(len(predicted) - len(true)) > 1:
        raise DataError(
            f"clip {number}: the prediction has {len(predicted)} frames of {tuple(predicted.shape[2:])} pixels, the "
            f"answer {len(true)} of {tuple(true.shape[2:])}; sizes must be equal, and the prediction may omit frame 0"
        )
    if len(predicted) == len(true):
        predicted, true = predicted[1:], true[1:]
    elif len(predicted) > len(true):
        predicted = predicted[1:]
    else:
        true = true[1:]
    return to_float(predicted), to_float(true)


def averages(scores: pd.DataFrame) -> dict[str, float]:
    """Return averages over clips: mean PSNR, the two averages of the course (all in dB), and mean SSIM."""
    clips = [torch.from_numpy(clip["psnr"].to_numpy()) for _, clip in scores.groupby("clip")]
    return {
        "mean PSNR": float(np.mean([float(clip.mean()) for clip in clips])),
        "average of 2023": float(np.mean([average_2023(clip) for clip in clips])),
        "average of later years": float(np.mean([average_later(clip) for clip in clips])),
        "mean SSIM": float(scores["ssim"].mean()),
    }


def grade_class(folder: Path, data: Dataset, log: Callable[[str], None] = lambda line: None) -> pd.DataFrame:
    """Return one row per submission at or below `folder`: scores, grade, static baseline, copies, or the error.

    A submission is a submission CSV, a folder with text files of 2023 or PNGs, a GIF, video or npz, or a checkpoint,
    which predicts the test clips of `data`. A broken submission is reported in its row, and the others are graded.
    Submissions are read one at a time.

    Args:
        data: a data set whose test clips have true frames.
        log: called with one line per submission.
    """
    tests = [clip for clip in data.tests if clip.answer is not None]
    if not tests:
        raise DataError(
            f"{data.name}: no test clip has true frames, so there is nothing to grade; give the answers"
        )
    baseline = float(np.mean([float(static_baseline(to_float(clip.answer)).mean()) for clip in tests]))
    rows: list[dict[str, Any]] = []
    samples: dict[str, Tensor] = {}
    for path in submissions(folder):
        name = path.relative_to(folder).as_posix()
        row = {"submission": name} | _graded(path, tests, samples, name) | {"static baseline": baseline}
        rows.append(row)
        log(f"{name}: {row['fault'] or format(row['mean PSNR'], '.2f') + ' dB'}")
    if not rows:
        raise DataError(
            f"{folder}: contains no submission; give a folder with one file or folder per student"
        )
    return pd.DataFrame(rows).sort_values("mean PSNR", ascending=False, ignore_index=True)


def submissions(folder: Path) -> list[Path]:
    """Return the submissions below a folder: files of known types, and folders of pictures or text files of 2023."""
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if any(parent in found for parent in path.parents) or path.name.startswith("."):
            continue
        if path.is_dir():
            texts = [f for f in path.iterdir() if f.suffix.lower() in (".txt", ".csv") and f.is_file()]
            if len(texts) > 1 or any(f.suffix.lower() == ".png" for f in path.iterdir()):
                found.append(path)
        elif path.is_file() and path.suffix.lower() in SUBMISSIONS:
            found.append(path)
    return found


def _graded(path: Path, tests: Sequence[Clip], samples: dict[str, Tensor], name: str) -> dict[str, Any]:
    """The scores of one submission, or its error. A sample of its frames is added to `samples`."""
    blank = {"mean PSNR": np.nan, "grade": 0, "copy of": "", "fault": ""}
    try:
        clips = _prediction(path, tests)
        scores = score(clips, [clip.answer for clip in tests])
    except (DataError, CheckpointError, OSError, ValueError, RuntimeError) as error:
        return blank | {"fault": str(error).splitlines()[0]}
    found = averages(scores)
    sample = torch.cat([clip[:: max(1, len(clip) // SAMPLES)][:SAMPLES] for clip in clips])
    copy = _copy_of(sample, samples)
    samples[name] = sample
    return blank | found | {"grade": grade(found["mean PSNR"]), "copy of": copy}


def _prediction(path: Path, tests: Sequence[Clip]) -> Clips:
    if path.suffix.lower() in CHECKPOINTS:
        model = checkpoint.load_model(path, pick_device())
        frames = predict_clips(model, tests, checkpoint.train_config(path))
        return [(clip.clamp(0, 1) * 255).round().to(torch.uint8) for clip in frames]
    lengths = {len(clip) for clip in tests}
    return read_clips(path, lengths.pop() if len(lengths) == 1 else CLIP_FRAMES)


def _copy_of(sample: Tensor, others: dict[str, Tensor]) -> str:
    """The earlier submission that is equal or almost equal to this one, with the PSNR between them; else empty."""
    for name, other in others.items():
        if sample.shape == other.shape:
            between = float(psnr(to_float(sample), to_float(other)).mean())
            if between >= NEAR_IDENTICAL:
                return f"{name} ({'identical' if torch.equal(sample, other) else f'{between:.0f} dB apart'})"
    return ""
