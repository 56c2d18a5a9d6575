"""The test: predict the clips of a data set with trained models; write pictures and the files to hand in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.data import load
from cvae_lab.data.clips import Clip
from cvae_lab.data.course_csv import write_2023, write_submission
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation import metrics, predict_clips
from cvae_lab.models.device import pick_device
from cvae_lab.runs.folder import best_run
from cvae_lab.training import checkpoint
from cvae_lab.views.clip_views import write_clip_gif, write_clip_player

Form = Literal["later", "2023"]


def predict_run(
    runs: Sequence[Path],
    data: str,
    seed: int = 0,
    form: Form = "later",
    log: Callable[[str], None] = print,
) -> Path:
    """Write a GIF and an HTML player per test clip, and the files to hand in; return their folder.

    Predictions use the test-time corrections (`evaluation.corrections`), so they score higher than a run's own result,
    which is one plain rollout. Predictions of several runs are averaged and written to the folder of the first.
    Where no test clip has true frames, validation clips are predicted and scored as well.

    Args:
        runs: run folders, folders of runs (the best one by held-out score is used), or checkpoint files.
        seed: of z.
        form: the course's file format: `later` years take one CSV of all clips, `2023` took one file per clip.
        log: called with a line of text for each thing done.
    """
    checkpoints = [run if run.is_file() else best_run(run).path / "best.pt" for run in runs]
    source, device = load(data), pick_device()
    clips = source.tests
    scored = [] if any(clip.answer is not None for clip in clips) else source.val.as_clips()
    by_model = []
    for file in checkpoints:
        log(f"predicting with {file}")
        model, trained = checkpoint.load_model(file, device), checkpoint.train_config(file)
        by_model.append(predict_clips(model, [*clips, *scored], trained, seed, corrected=True))
    predictions = [sum(same_clip) / len(same_clip) for same_clip in zip(*by_model, strict=True)]
    out = checkpoints[0].parent / "test"
    out.mkdir(exist_ok=True)
    _write_clips(out, form, clips, predictions[: len(clips)], log)
    for clip, frames in zip(scored, predictions[len(clips) :], strict=True):
        static = float(metrics.static_baseline(to_float(clip.answer)).mean())
        log(f"validation: {_mean_psnr(frames, clip):.2f} dB, static baseline {static:.2f} dB")
    return out


def _write_clips(
    out: Path,
    form: Form,
    clips: Sequence[Clip],
    predictions: Sequence[Float[Tensor, "_ 3 _ _"]],
    log: Callable[[str], None],
) -> None:
    scores = []
    for clip, frames in zip(clips, predictions, strict=True):
        write_clip_gif(out / f"clip{clip.name}.gif", clip, frames)
        write_clip_player(out / f"clip{clip.name}.html", clip, frames)
        score = "true frames unknown"
        if clip.answer is not None:
            scores.append(_mean_psnr(frames, clip))
            score = f"{scores[-1]:.2f} dB"
        log(f"clip {clip.name}: {score}, {out}/clip{clip.name}.gif")
    whole = [torch.cat([to_float(clip.first[None]), f]) for clip, f in zip(clips, predictions, strict=True)]
    for file in write_course_files(out, form, clips, whole):
        log(f"submission: {file}")
    if scores:
        mean = sum(scores) / len(scores)
        log(f"mean {mean:.2f} dB, grade {metrics.grade(mean)} %")


def _mean_psnr(frames: Float[Tensor, "s 3 h w"], clip: Clip) -> float:
    """Mean PSNR over the predicted frames, in dB."""
    return float(metrics.psnr(frames, to_float(clip.answer[1:])).mean())


def write_course_files(
    out: Path, form: Form, clips: Sequence[Clip], whole: Sequence[Float[Tensor, "_ 3 32 64"]]
) -> list[Path]:
    """Write submission.csv (`later`) or one predK.csv per clip (`2023`), from whole clips that include frame 0."""
    if form == "later":
        write_submission(out / "submission.csv", whole)
        return [out / "submission.csv"]
    files = [out / f"pred{clip.name}.csv" for clip in clips]
    for file, frames in zip(files, whole, strict=True):
        write_2023(file, frames)
    return files
