"""Train `compact` on the data set `varied`, and write half-precision weights and the record of the training."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cvae_lab.config import ConfigError, RunConfig, TrainConfig
from cvae_lab.data import load, load_varied
from cvae_lab.data.clips import Clip, Dataset
from cvae_lab.data.files import write_bytes, write_text
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.metrics import psnr, static_baseline
from cvae_lab.models.device import pick_device
from cvae_lab.models.pretrained import weights_file
from cvae_lab.runs.result import provenance
from cvae_lab.training import TrainState, fit
from cvae_lab.training.checkpoint import FORMAT, copy_weights, load_model
from cvae_lab.views.clip_views import write_clip_player, write_grid_gif

LIMIT = 2_000_000
"""Largest size of a file of weights in bytes."""

SETTINGS: dict[str, Any] = {"holdout": 0.0, "eval_every": 10**6, "batch_size": 64}
"""Training parameters that differ from the defaults. All recordings train; validation recordings are separate."""

LONG_PART, LONG_FRAMES, LONG_LR = 0.25, 12, 1e-3
"""Last part of training: fraction of the time, frames per clip (longer clips reduce later errors), learning rate."""


def pretrain(
    out: Path,
    minutes: float,
    height: int,
    recordings: int,
    seed: int,
    params: dict[str, Any],
    command: str = "",
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on `recordings` recordings of `varied`, write `out` and the JSON record beside it, and return the record.

    Rendering is not included in `minutes`. The scores are computed with the weights in the file, which are rounded to
    half precision.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the name of the file must end in .safetensors.")
    config = RunConfig.from_params("varied", height=height, minutes=minutes, seed=seed, **(SETTINGS | params))
    begun = time.monotonic()
    data = load_varied(recordings, height)
    rendered = time.monotonic() - begun
    log(f"{len(data.train)} training frames of {recordings} recordings after {rendered:.0f} s")
    short, long = stages(config)
    first = _trained(TrainState.create(config.model, short), data, short, log)
    second = TrainState.create(config.model, long)
    copy_weights(second, first.evaluation_model().state_dict())
    second = _trained(second, data, long, log)
    write_weights(out, second.evaluation_model().state_dict(), config)
    seconds = {"training": first.elapsed + second.elapsed, "rendering": rendered}
    record = {
        "command": command, "data": config.data, "recordings": recordings, "frames": len(data.train),
        "hours": {name: round(value / 3600, 4) for name, value in seconds.items()},
        "steps": [first.step, second.step], "bytes": out.stat().st_size, "scores": _scores(out, config, data),
        "model": asdict(config.model), "stages": [asdict(short), asdict(long)], **provenance(),
    }  # fmt: skip
    write_text(out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return record


def stages(config: RunConfig) -> tuple[TrainConfig, TrainConfig]:
    """Return two configurations: one with the clips of `config`, one with longer clips and smaller batches."""
    train = config.train
    fewer = max(1, train.batch_size * (train.n_frames - 1) // (LONG_FRAMES - 1))
    long = replace(
        train,
        minutes=LONG_PART * train.minutes,
        n_frames=LONG_FRAMES,
        batch_size=fewer,
        lr=LONG_LR,
        lr_warmup=0.1,
    )
    return replace(train, minutes=(1 - LONG_PART) * train.minutes), long


def _trained(state: TrainState, data: Dataset, config: TrainConfig, log: Callable[[str], None]) -> TrainState:
    shown = time.monotonic()

    def on_step(record: dict[str, float | int], progress: float) -> None:
        nonlocal shown
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            log(
                f"{100 * progress:3.0f} %, step {state.step}, loss {record['loss']:.5f}, "
                f"{record['frames_per_s']:.0f} frames/s"
            )

    for record in fit(state, data, config, on_step):
        log(f"epoch {record['epoch']}, loss {record['loss']:.5f}, PSNR {record['val_psnr_prior']:.2f} dB")
    return state


def write_weights(out: Path, weights: dict[str, Tensor], config: RunConfig) -> None:
    """Write weights in half precision, with the configuration that `load_model` needs, as a safetensors file.

    Raises ConfigError if the file would be larger than LIMIT.
    """
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    content = safetensors.torch.save(halves, {"format": str(FORMAT), "config": config.to_json()})
    if len(content) > LIMIT:
        raise ConfigError(
            f"{out} would have {len(content)} bytes, more than {LIMIT}; choose a smaller width or height."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)


def demo(out: Path, height: int = 32) -> tuple[float, float]:
    """Predict the test clips of `small` with pretrained weights; write a GIF of all and a player of the first clip.

    Returns the PSNR of the prediction and of the static baseline in dB, means over all predicted frames.
    """
    clips = load("small", height=height).tests
    config = RunConfig.from_params("small", height=height, flip=False).train
    model = load_model(weights_file("pretrained", height), pick_device())
    predictions = predict_clips(model, clips, config)
    out.mkdir(parents=True, exist_ok=True)
    write_grid_gif(out / "predictions.gif", clips, predictions)
    write_clip_player(out / "player.html", clips[0], predictions[0])
    scores = _psnr(clips, predictions)
    return scores["psnr"], scores["baseline_static"]


def _scores(file: Path, config: RunConfig, data: Dataset) -> dict[str, dict[str, float]]:
    """Return PSNR and static baseline of new recordings of `varied`, and of the test clips of `small` (dB)."""
    model = load_model(file, pick_device(config.train.device))
    small = load("small", height=config.model.height)
    sources = {"varied": (*data.val.as_clips(), *data.tests), "small": small.tests}
    return {name: _psnr(clips, predict_clips(model, clips, config.train)) for name, clips in sources.items()}


def _psnr(clips: Sequence[Clip], predictions: Sequence[Tensor]) -> dict[str, float]:
    """Return PSNR and static baseline in dB: means over all predicted frames of all clips."""
    truths = [_answer(clip) for clip in clips]
    curves = [psnr(p, truth[1:]) for truth, p in zip(truths, predictions, strict=True)]
    return {"psnr": _mean(curves), "baseline_static": _mean([static_baseline(truth) for truth in truths])}


def _answer(clip: Clip) -> Tensor:
    assert clip.answer is not None
    return to_float(clip.answer)


def _mean(curves: list[Tensor]) -> float:
    """Return the mean over all frames of all clips, in dB."""
    return round(float(torch.cat(curves).mean()), 3)
