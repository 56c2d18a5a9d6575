"""Predict the test clips with trained models, and write GIFs, HTML players and the files to hand in."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.data import Dataset, course_csv, load
from cvae_lab.data.clips import Clip
from cvae_lab.data.course_csv import write_2023, write_submission
from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import to_uint8
from cvae_lab.evaluation import metrics
from cvae_lab.evaluation.scoring import predict_clips_in_chunks
from cvae_lab.models.device import pick_device
from cvae_lab.runs.folder import find_runs
from cvae_lab.runs.result import Predicted, RunError, gather
from cvae_lab.training import checkpoint
from cvae_lab.views.clip_views import write_clip_gif, write_clip_player

Output = Literal["auto", "linear", "sigmoid"]
Form = Literal["later", "2023"]
Log = Callable[[str], None]
BATCH_STATISTICS = "batch statistics"
"""Name of the prediction in which batch norm uses the statistics of each label, as in the course's code.

The class of that code defines a method `eval`, which hides `nn.Module.eval`. Its batch norm therefore stays in training
mode in validation and test. Scores of that code can only be reproduced in this mode. In the other predictions, batch
norm uses its running statistics, as is usual in evaluation.
"""

KINDS = ("plain", "corrected")
"""Kinds of prediction: without and with the test-time corrections."""


class _Chosen(NamedTuple):
    """A checkpoint, the default folder of its predictions, and the reason why the checkpoint was chosen."""

    file: Path
    out: Path
    reason: str


def predict_run(
    runs: Sequence[Path],
    data: str,
    seed: int = 0,
    form: Form = "later",
    log: Log = print,
    out: Path | None = None,
    plain: bool = False,
    answers: Path | None = None,
    output: Output = "auto",
    batch_statistics: bool = False,
) -> Path:
    """Write a GIF and an HTML player per test clip, and the files to hand in; return their folder.

    Predictions of several checkpoints are averaged. `_clips_to_predict` and `_reported` describe the printed table.
    Raises RunError before the prediction if the folder is not writable.

    Args:
        runs: run folders, folders of runs (the run with the highest held-out score is used), or checkpoint files.
        seed: seed of the samples of z.
        form: file format of the course: `later` is one CSV of all clips (later years), `2023` is one file per clip.
            For frames of another size than 32 x 64, predictions.npz is written instead (uint8, with frame 0).
        out: folder of the files; by default `test` in the run folder, or a folder named after the checkpoint file.
        plain: write and score the plain predictions only.
        answers: true frames of the test clips (`data.answers.read_answers`).
        output: last activation of a network that another trainer saved (`checkpoint.load_model`).
        batch_statistics: write the prediction in the mode of the course's code, without test-time corrections.
    """
    chosen = [_choose(run) for run in runs]
    kinds = _kinds(chosen, plain, batch_statistics)
    out = out or _default_folder(chosen, "" if kinds[-1] == "corrected" else kinds[-1])
    _check_writable(out)
    height = _common_height(chosen)
    source = load(data, parts=("val", "test"), required=("test",), answers=answers, height=height)
    clips, scored = _clips_to_predict(source)
    videos = _predict_all(chosen, clips, _reported(kinds, chosen), seed, output, log)
    for line in score_lines(clips[:scored], videos):
        log(line)
    _write(out, form, source.tests, videos[kinds[-1]], log)
    return out


def _clips_to_predict(source: Dataset) -> tuple[list[Clip], int]:
    """Return the clips to predict, and how many of them are scored, from the first one.

    These are the test clips and one validation clip, which is not scored. If no test clip has true frames, these are
    the test clips and all validation clips, and all are scored. `RunFolder.finish` predicts the same batch, so both
    scores are equal to the last digit. In a batch of another size, sums can be rounded differently.
    """
    validation = source.val.as_clips()
    if any(clip.answer is not None for clip in source.tests):
        return [*source.tests, *validation[:1]], len(source.tests)
    return [*source.tests, *validation], len(source.tests) + len(validation)


def _kinds(chosen: Sequence[_Chosen], plain: bool, batch_statistics: bool) -> tuple[str, ...]:
    """Return the kinds of prediction to compute. Predictions of the last kind are written to files."""
    if not batch_statistics:
        return KINDS[: 2 - plain]
    for file, *_ in chosen:
        if not checkpoint.is_course(file) and checkpoint.load_model(file).config.name != "handout":
            raise RunError(
                f"{file} contains a network without batch norm (preset compact), so --batch-statistics has no effect; "
                "omit this option."
            )
    return ("plain", BATCH_STATISTICS)


def _reported(kinds: tuple[str, ...], chosen: Sequence[_Chosen]) -> tuple[str, ...]:
    """Return the kinds of prediction that are scored.

    `plain` has the score in the result of the run, and `corrected` uses the test-time corrections
    (`evaluation.corrections`). Checkpoints of the course's code also get the score in the mode of that code.
    """
    from_course = all(checkpoint.is_course(file) for file, *_ in chosen)
    return (BATCH_STATISTICS, *kinds) if from_course and BATCH_STATISTICS not in kinds else kinds


def _predict_all(
    chosen: Sequence[_Chosen],
    clips: Sequence[Clip],
    kinds: Sequence[str],
    seed: int,
    output: Output,
    log: Log,
) -> dict[str, Predicted]:
    """Predictions averaged over the checkpoints, by kind: plain, corrected at test time, or BATCH_STATISTICS.

    Only the frames of the last kind are kept.
    """
    device, models = pick_device(), []
    for file, _, reason in chosen:
        log(f"Predicting with {file}{reason}")
        model = checkpoint.load_model(file, device, output=output, clips=clips, log=log)
        models.append((model, checkpoint.train_config(file)))
    videos = {}
    for kind in kinds:
        modes = {"corrected": kind == "corrected", "batch_statistics": kind == BATCH_STATISTICS}
        by_model = [
            predict_clips_in_chunks(model, clips, trained, seed, **modes) for model, trained in models
        ]
        videos[kind] = gather(clips, _averaged(by_model), keep=kind == kinds[-1], with_ssim=False)
    return videos


def _choose(run: Path) -> _Chosen:
    """Return the checkpoint at `run`, or the checkpoint with the best held-out score in the folder `run`."""
    if run.is_file():
        return _Chosen(run, run.parent / f"{run.stem}-test", "")
    if not run.exists():
        raise RunError(f"There is no run folder and no checkpoint file {run}.")
    found = find_runs(run)
    best = max(found, key=lambda one: one.result["heldout_psnr"])
    reason = f",\n  the best held-out score of {len(found)} runs: {best.result['heldout_psnr']:.2f} dB"
    return _Chosen(best.path / "best.pt", best.path / "test", reason if len(found) > 1 else "")


def _default_folder(chosen: Sequence[_Chosen], kind: str) -> Path:
    """Return the default folder of the first checkpoint, with a suffix for averaged and for uncorrected predictions."""
    folder = chosen[0].out
    suffix = f"-mean-of-{len(chosen)}" if len(chosen) > 1 else ""
    return folder.with_name(folder.name + suffix + (f"-{kind.replace(' ', '-')}" if kind else ""))


def _check_writable(folder: Path) -> None:
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        if is_new:
            folder.rmdir()  # the folder is created again before files are written
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written to ({error.strerror}); give another folder with --out."
        ) from None


def _common_height(chosen: Sequence[_Chosen]) -> int:
    """Return the frame height of all checkpoints.

    Raises RunError if heights differ, because a mean is then not defined.
    """
    heights = {one.file: checkpoint.frame_height(one.file) for one in chosen}
    if len(set(heights.values())) > 1:
        listed = ", ".join(f"{file}: {height}" for file, height in heights.items())
        raise RunError(
            f"These checkpoints predict frames of different heights ({listed}); average checkpoints of one height."
        )
    return next(iter(heights.values()))


def _averaged(by_model: Sequence[Iterator[tuple[int, Tensor]]]) -> Iterator[tuple[int, Tensor]]:
    """Mean of the chunks of several models. All models predict the same frames in the same order."""
    for chunks in zip(*by_model, strict=True):
        yield chunks[0][0], sum(frames for _, frames in chunks) / len(chunks)


def score_lines(clips: Sequence[Clip], videos: dict[str, Predicted]) -> list[str]:
    """Return the lines of a table of mean PSNR by clip and kind of prediction, and of notes on it."""
    rows = []
    for index, clip in enumerate(clips):
        if clip.answer is not None:
            found = list(videos.values())
            curves = [*(kind.psnr[index] for kind in found), found[0].baseline[index]]
            rows.append([float(curve.mean()) for curve in curves])
    if not rows:
        return ["There is no score, because the true frames of these clips are not known."]
    names = [clip.name for clip in clips if clip.answer is not None]
    part = "Validation" if all(name.startswith("val") for name in names) else "Test"
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    head = [*videos, "static baseline"]
    lines = [f"{part} clips, mean PSNR over the predicted frames, in dB:"]
    lines.append(f"{'clip':<6}" + "".join(f"{name:>17}" for name in head))
    for name, row in [*zip(names, rows, strict=True), ("mean", means)]:
        lines.append(f"{name:<6}" + "".join(f"{value:>17.2f}" for value in row))
    kind = list(videos)[-1]
    lines.append(
        f"Grade by the assignment's table: {metrics.grade(means[len(videos) - 1])} % ({kind} prediction)."
    )
    mean = dict(zip(videos, means, strict=False))
    if "corrected" in mean:
        lines.append(
            f"The test-time corrections change the mean by {mean['corrected'] - mean['plain']:+.2f} dB."
        )
    if BATCH_STATISTICS in mean:
        lines.append(
            "batch statistics: batch norm stays in training mode, as in the course's code. This changes the mean by "
            f"{mean[BATCH_STATISTICS] - mean['plain']:+.2f} dB."
        )
    return lines


def _write(out: Path, form: Form, clips: Sequence[Clip], predicted: Predicted, log: Log) -> None:
    """Write the files of the test clips. They are the first of the predicted clips."""
    out.mkdir(exist_ok=True)
    for clip, frames, psnr in zip(clips, predicted.frames, predicted.psnr, strict=False):
        write_clip_gif(out / f"clip{clip.name}.gif", clip, frames)
        write_clip_player(out / f"clip{clip.name}.html", clip, frames, psnr)
    pairs = zip(clips, predicted.frames, strict=False)
    whole = [torch.cat([clip.first[None], frames]) for clip, frames in pairs]
    for file in write_course_files(out, form, clips, whole):
        if file.suffix == ".npz":
            height, width = clips[0].first.shape[-2:]
            log(
                f"The course's formats have frames of 32 x 64 pixels, not {height} x {width}, so the frames were "
                f"written to {file}."
            )
        else:
            log(f"To hand in: {file}")
    log(f"Open first: {out / f'clip{clips[0].name}.html'}")


def write_course_files(
    out: Path,
    form: Form,
    clips: Sequence[Clip],
    whole: Sequence[Float[Tensor, "_ 3 h w"] | UInt8[Tensor, "_ 3 h w"]],
) -> list[Path]:
    """Write submission.csv (`later`) or one predK.csv per clip (`2023`). The clips in `whole` include frame 0.

    Frames that do not have the course's 32 x 64 pixels are written to predictions.npz instead.
    """
    if whole[0].shape[-2:] != (course_csv.HEIGHT, course_csv.WIDTH):
        arrays = {clip.name: to_uint8(frames).numpy() for clip, frames in zip(clips, whole, strict=True)}
        with replacing(out / "predictions.npz") as temporary:
            np.savez_compressed(temporary, **arrays)
        return [out / "predictions.npz"]
    if form == "later":
        write_submission(out / "submission.csv", whole)
        return [out / "submission.csv"]
    files = [out / f"pred{clip.name}.csv" for clip in clips]
    for file, frames in zip(files, whole, strict=True):
        write_2023(file, frames)
    return files
