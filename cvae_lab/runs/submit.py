"""The test: predict the clips of a data set with a finished run; write what one looks at and what one hands in."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab import checkpoint, metrics
from cvae_lab.data import load
from cvae_lab.data.clips import Clip
from cvae_lab.device import keep_memory, pick_device
from cvae_lab.runs.course import write_2023, write_submission
from cvae_lab.runs.record import RunFolder, find_runs, predict_clips, write_player
from cvae_lab.views import player

Form = Literal["later", "2023"]


def predict_run(runs: Sequence[Path], data: str, seed: int = 0, form: Form = "later") -> Iterator[str]:
    """GIF and HTML player per test clip, and the files to hand in; yields a line for each thing done.

    Predictions are refined (`cvae_lab/refine.py`), so they score above a run's own record, which is one rollout.
    Those of several runs are averaged, and lie in the first one's folder. `form` is the course's: `later` years
    take one CSV of all clips, `2023` took a file of numbers per clip.

    Where no test clip has an answer, validation is predicted and scored as well.

    Each of `runs` is a run folder, a folder of runs (its best by held-out score is used) or a checkpoint file.
    """
    keep_memory()
    checkpoints = [run if run.is_file() else best_run(run).path / "best.pt" for run in runs]
    source, device = load(data), pick_device()
    clips = source.tests
    scored = [] if any(clip.answer is not None for clip in clips) else source.val.as_clips()
    films = []
    for file in checkpoints:
        yield f"predicting with {file}"
        model, trained = checkpoint.load_model(file, device), checkpoint.train_config(file)
        films.append(predict_clips(model, [*clips, *scored], trained, seed, refined=True))
    predictions = [sum(alike) / len(alike) for alike in zip(*films, strict=True)]
    predictions, others = predictions[: len(clips)], predictions[len(clips) :]
    out = checkpoints[0].parent / "test"
    out.mkdir(exist_ok=True)
    means = []
    for clip, frames in zip(clips, predictions, strict=True):
        write_clip(out, clip, frames)
        said = "no answer"
        if clip.answer is not None:
            means.append(_mean_psnr(frames, clip))
            said = f"{means[-1]:.2f} dB"
        yield f"clip {clip.name}: {said}, {out}/clip{clip.name}.gif"
    whole = [
        torch.cat([clip.first[None].float() / 255, f]) for clip, f in zip(clips, predictions, strict=True)
    ]
    for file in write_form(out, form, clips, whole):
        yield f"submission: {file}"
    if means:
        mean = sum(means) / len(means)
        yield f"mean {mean:.2f} dB, grade {metrics.grade(mean)} %"
    for clip, frames in zip(scored, others, strict=True):
        still = float(metrics.static_baseline(clip.answer.float() / 255).mean())
        yield f"validation: {_mean_psnr(frames, clip):.2f} dB, a still picture {still:.2f} dB"


def _mean_psnr(frames: Float[Tensor, "s 3 h w"], clip: Clip) -> float:
    """Over the predicted frames, in dB."""
    return float(metrics.psnr(frames, clip.answer[1:].float() / 255).mean())


def write_form(
    out: Path, form: Form, clips: Sequence[Clip], whole: Sequence[Float[Tensor, "_ 3 32 64"]]
) -> list[Path]:
    """submission.csv (`later`) or predK.csv per clip (`2023`), of whole clips, their given frame first."""
    if form == "later":
        write_submission(out / "submission.csv", whole)
        return [out / "submission.csv"]
    files = [out / f"pred{clip.name}.csv" for clip in clips]
    for file, frames in zip(files, whole, strict=True):
        write_2023(file, frames)
    return files


def write_clip(out: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """clipK.gif and clipK.html: label | truth where known | prediction."""
    truth = None if clip.answer is None else clip.answer[1:]
    player.write_gif(out / f"clip{clip.name}.gif", player.panels(clip.labels[1:], truth, frames))
    write_player(out / f"clip{clip.name}.html", clip, frames)


def best_run(root: Path) -> RunFolder:
    """The finished run at or below `root` with the highest held-out score: chosen without looking at a test clip."""
    return max(find_runs(root), key=lambda run: run.result["heldout_psnr"])
