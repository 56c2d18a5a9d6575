"""The test: predict the clips of a data set with a finished run; write what one looks at and what one hands in."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab import checkpoint, metrics
from cvae_lab.data import load
from cvae_lab.data.clips import Clip
from cvae_lab.runs.course import write_submission
from cvae_lab.runs.record import RunFolder, find_runs, predict_clips, write_player
from cvae_lab.state import pick_device
from cvae_lab.views import player


def predict_run(run: Path, data: str, seed: int = 0) -> Iterator[str]:
    """GIF and HTML player per test clip, one submission CSV; yields a line for each thing done.

    A model trained with flips predicts each clip and its mirror image, and the mean of both counts: about 0.3 dB
    above the run's own record, which is one rollout.

    `run` is a run folder, a folder of runs (its best by held-out score is used) or a checkpoint file.
    """
    weights = run if run.is_file() else best_run(run).path / "best.pt"
    model, trained = checkpoint.load_model(weights, pick_device()), checkpoint.train_config(weights)
    clips = load(data).tests
    yield f"predicting with {weights}"
    out = weights.parent / "test"
    out.mkdir(exist_ok=True)
    predictions = predict_clips(model, clips, trained, seed, mirror=trained.flip)
    means = []
    for clip, frames in zip(clips, predictions, strict=True):
        write_clip(out, clip, frames)
        said = "no answer"
        if clip.answer is not None:
            means.append(float(metrics.psnr(frames, clip.answer[1:].float() / 255).mean()))
            said = f"{means[-1]:.2f} dB"
        yield f"clip {clip.name}: {said}, {out}/clip{clip.name}.gif"
    whole = [
        torch.cat([clip.first[None].float() / 255, f]) for clip, f in zip(clips, predictions, strict=True)
    ]
    write_submission(out / "submission.csv", whole)
    yield f"submission: {out / 'submission.csv'}"
    if means:
        mean = sum(means) / len(means)
        yield f"mean {mean:.2f} dB, grade {metrics.grade(mean)} %"


def write_clip(out: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """clipK.gif and clipK.html: label | truth where known | prediction."""
    truth = None if clip.answer is None else clip.answer[1:]
    player.write_gif(out / f"clip{clip.name}.gif", player.panels(clip.labels[1:], truth, frames))
    write_player(out / f"clip{clip.name}.html", clip, frames)


def best_run(root: Path) -> RunFolder:
    """The finished run at or below `root` with the highest held-out score: chosen without looking at a test clip."""
    return max(find_runs(root), key=lambda run: run.result["heldout_psnr"])
