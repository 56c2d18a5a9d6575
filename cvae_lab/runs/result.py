"""Result of a run: scores, hardware, versions and commit. The content is validated when a result is read."""

import contextlib
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cvae_lab.config import RunConfig
from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float, to_uint8
from cvae_lab.evaluation.metrics import grade, psnr, ssim

SSIM_EVERY = 1
"""SSIM is computed on frames 1, 1 + SSIM_EVERY, 1 + 2 * SSIM_EVERY, ..."""

SCORE_COLUMNS = ("clip", "frame", "psnr", "baseline_static", "ssim")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class RunError(ValueError):
    """Error for a run folder that is missing, unfinished, damaged or not from this project."""


class Result(BaseModel):
    """The content of `result.json`. PSNR is in dB, KL in nats per frame. A score without true frames is None."""

    model_config = ConfigDict(extra="allow")

    strategy: str
    tf_strategy: str
    preset: str
    seed: int
    data: str
    scored_on: Literal["test", "validation", "held-out"]
    checkpoint: str = ""  # weights with which the scores below are computed; empty in results of version 0.1
    psnr_mean: Finite
    baseline_static: Finite | None
    ssim_mean: Finite | None
    grade: int
    psnr_by_clip: dict[str, Finite]
    val_psnr_prior: Finite | None = None
    val_psnr_posterior: Finite | None = None
    heldout_psnr: Finite
    best_epoch: int
    kl_nats: Finite
    psnr_final: Finite | None = None  # of the weights after the last epoch
    heldout_final: Finite | None = None
    kl_nats_final: Finite | None = None
    epochs: int
    minutes: Finite
    parameters: int
    hardware: str
    python: str
    torch: str
    commit: str


def checked(text: str, file: Path) -> dict[str, Any]:
    """Return the content of a result file. Raises RunError if it is truncated, or a field is missing or wrong."""
    try:
        raw = json.loads(text)
        Result.model_validate(raw)
    except json.JSONDecodeError as error:
        state = "is empty" if not text.strip() else f"is not complete JSON ({error.msg}, line {error.lineno})"
        raise RunError(f"{file} {state}; run the training command again to write it.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        cause = "is missing" if first["type"] == "missing" else first["msg"]
        raise RunError(
            f"{file} is not a result of this project: {field} {cause}; run the training command again to write it."
        ) from None
    return raw


def read_scores(text: str, file: Path) -> pd.DataFrame:
    """Return the content of `psnr_per_frame.csv`. Raises RunError if it is truncated or a column is not readable."""
    kinds = {"clip": str, "frame": int, "psnr": float, "baseline_static": float, "ssim": float}
    try:
        table = pd.read_csv(io.StringIO(text), dtype=kinds)
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError):
        table = pd.DataFrame()
    if list(table) != list(SCORE_COLUMNS) or not text.endswith("\n"):
        raise RunError(f"{file} is damaged or truncated; run the training command again to write it.")
    return table


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file after its checksums are verified. Raises RunError if the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    # A damaged archive makes zipfile, zlib and NumPy raise errors of many types.
    except Exception as error:
        raise RunError(f"{file} is damaged; run the training command again to write it.") from error


class Predicted(NamedTuple):
    """Predicted frames 1 to T-1 of every clip as uint8 (empty if not kept), and the scores per frame of every clip.

    `psnr` and `baseline` are in dB, and `ssim` is nan where it was not computed. All three are empty for a clip without
    true frames.
    """

    frames: list[UInt8[Tensor, "_ 3 _ _"]]
    psnr: list[Float[Tensor, " _"]]
    baseline: list[Float[Tensor, " _"]]
    ssim: list[Float[Tensor, " _"]]


def gather(
    clips: Sequence[Clip],
    chunks: Iterable[tuple[int, Float[Tensor, "n 3 h w"]]],
    keep: bool = True,
    with_ssim: bool = True,
) -> Predicted:
    """Score the chunks of `predict_clips_in_chunks` as float, and keep their frames as uint8.

    A clip of 10,000 frames of 32 x 64 pixels takes 61 MB. As float32, it would take 246 MB.

    Args:
        keep: keep the frames.
        with_ssim: also compute SSIM, of the frames that SSIM_EVERY selects.
    """
    lengths = [len(clip) - 1 for clip in clips]
    frames = [
        torch.empty(n * keep, *clip.first.shape, dtype=torch.uint8)
        for n, clip in zip(lengths, clips, strict=True)
    ]
    scored = [n * (clip.answer is not None) for n, clip in zip(lengths, clips, strict=True)]
    kinds = (torch.float32, torch.float32, torch.float64)
    curves = ([torch.full((n,), math.nan, dtype=kind) for n in scored] for kind in kinds)
    predicted = Predicted(frames, *curves)
    done = [0] * len(clips)
    for index, device_chunk in chunks:
        clip, chunk, start = clips[index], device_chunk.cpu(), done[index]
        stop = done[index] = start + len(chunk)
        if keep:
            frames[index][start:stop] = to_uint8(chunk)
        if clip.answer is not None:
            truth = to_float(clip.answer[start + 1 : stop + 1])
            predicted.psnr[index][start:stop] = psnr(chunk, truth)
            predicted.baseline[index][start:stop] = psnr(to_float(clip.first).expand_as(truth), truth)
            if with_ssim:
                where = slice(-start % SSIM_EVERY, None, SSIM_EVERY)
                predicted.ssim[index][start:stop][where] = ssim(chunk[where], truth[where])
    return predicted


def score(clips: Sequence[Clip], predicted: Predicted) -> pd.DataFrame:
    """Return one row per predicted frame of every clip whose true frames are known, with columns SCORE_COLUMNS.

    `frame` counts from 1. `psnr` and `baseline_static` are in dB. `ssim` is nan if it was not computed.
    """
    tables = [pd.DataFrame(columns=list(SCORE_COLUMNS))]
    for clip, *scores in zip(clips, predicted.psnr, predicted.baseline, predicted.ssim, strict=True):
        if clip.answer is not None:
            columns = [clip.name, np.arange(1, len(clip)), *(values.numpy() for values in scores)]
            tables.append(pd.DataFrame(dict(zip(SCORE_COLUMNS, columns, strict=True))))
    return pd.concat(tables[1:] or tables)


def summarise(
    config: RunConfig, chosen: dict[str, Any], last: dict[str, Any], scores: pd.DataFrame, final: pd.DataFrame
) -> dict[str, Any]:
    """Return the values of a result that are computed from scores and history.

    Args:
        chosen: the record of the epoch after which `best.pt` was saved.
        last: the record of the last epoch.
        scores: rows of `score` for the predictions of `best.pt`.
        final: the same for the weights after the last epoch.

    Raises RunError if a required value is not a finite number.
    """
    by_clip, scored_on = _by_clip(scores)
    mean = by_clip.mean() if len(by_clip) else pd.Series({"psnr": chosen["heldout_psnr"]})
    mean_final = _by_clip(final)[0]["psnr"].mean() if len(final) else last["heldout_psnr"]
    values = {
        "strategy": config.train.kl_strategy, "tf_strategy": config.train.tf_strategy,
        "preset": config.model.name, "seed": config.train.seed, "data": Path(config.data).name,
        "scored_on": scored_on, "checkpoint": f"best.pt, epoch {chosen['epoch']}",
        "psnr_mean": mean["psnr"], "baseline_static": mean.get("baseline_static"), "ssim_mean": mean.get("ssim"),
        "grade": grade(mean["psnr"]),
        "psnr_by_clip": scores.groupby("clip", sort=False)["psnr"].mean().astype(float).round(3).to_dict(),
        "val_psnr_prior": chosen["val_psnr_prior"], "val_psnr_posterior": chosen["val_psnr_posterior"],
        "heldout_psnr": chosen["heldout_psnr"], "best_epoch": int(chosen["epoch"]), "kl_nats": chosen["kl_nats"],
        "psnr_final": mean_final, "heldout_final": last["heldout_psnr"], "kl_nats_final": last["kl_nats"],
        "epochs": int(last["epoch"]), "minutes": last["seconds"] / 60,
    }  # fmt: skip
    for name in ("psnr_mean", "heldout_psnr", "kl_nats"):
        if not math.isfinite(values[name]):
            raise RunError(
                f"The run ended with {name} = {values[name]}, so the run has no result; try a smaller lr or beta_max."
            )
    return {name: _plain(value) for name, value in values.items()}


def _by_clip(scores: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return mean scores per clip, and the kind of clips that was scored.

    The test clips are scored if their true frames are known. Otherwise the validation clip is scored. If there is no
    validation clip, the held-out segments are scored.
    """
    means = scores.groupby("clip", sort=False)[["psnr", "baseline_static", "ssim"]].mean().astype(float)
    is_validation = means.index.str.startswith("val") if len(means) else np.zeros(0, bool)
    if len(means) and not is_validation.all():
        return means[~is_validation], "test"
    return means, "validation" if len(means) else "held-out"


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value that JSON can represent: a Python number instead of a NumPy number, None instead of nan."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance() -> dict[str, str]:
    """Return hardware, Python, torch and package versions, and the git commit.

    The commit ends in "+changes" if the package differs from the commit. Outside a checkout, the commit is the value of
    the environment variable CVAE_LAB_COMMIT, or empty. The version is empty if the package is not installed.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    commit = _git("rev-parse", "--short", "HEAD") or os.environ.get("CVAE_LAB_COMMIT", "")
    if commit and _git("status", "--porcelain", "--", "."):
        commit += "+changes"
    return {
        "hardware": f"{device}, {os.cpu_count()} CPU cores", "python": platform.python_version(),
        "torch": torch.__version__, "cvae_lab": _version(), "commit": commit,
    }  # fmt: skip


def _version() -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version("cvae-lab")
    return ""


def commit_to_reproduce() -> str:
    """Return the commit with which records are made. Raises RunError if the package has uncommitted changes."""
    commit = provenance()["commit"]
    if not commit or commit.endswith("+changes"):
        raise RunError(
            "The package has uncommitted changes; commit them first, so that the records can name the commit."
        )
    return commit


def _git(*words: str) -> str:
    """Return the output of a git command in the folder of the package; empty if git fails or is missing."""
    folder = Path(__file__).parents[1]
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def cpu_name() -> str:
    """Return the model name of the processor, as reported by the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
