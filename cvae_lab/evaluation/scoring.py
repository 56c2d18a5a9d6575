"""Predict and score the clips of a data set."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae_lab.config import TrainConfig
from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation.corrections import predict_corrected_in_chunks
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import reduced_precision
from cvae_lab.rollout import (
    Latents,
    evaluating,
    free_run,
    posterior_latents,
    predict_in_chunks,
    prior_latents,
)


def predict_clips(
    model: CVAE,
    clips: Sequence[Clip],
    config: TrainConfig,
    seed: int = 0,
    corrected: bool = False,
    batch_statistics: bool = False,
) -> list[Float[Tensor, "_ 3 _ _"]]:
    """Predict frames 1 to T-1 of every clip in one batch with z from the prior; return them on the CPU, in [0, 1].

    A clip's prediction depends on `seed` and on the clip's name, not on the other clips. Shorter clips are padded with
    their last label, and the additional frames are removed from the result.

    Args:
        config: training configuration of the model; prediction uses the same precision.
        seed: seed of z.
        corrected: apply the test-time corrections (`corrections.predict_corrected`), with mirroring only if the model
            was trained with `flip`.
        batch_statistics: predict as the course's code does (`rollout.evaluating`). Each clip is a batch of its own,
            because batch norm would otherwise use the labels of all clips together. `corrected` is then ignored.
    """
    device = next(model.parameters()).device
    frames = [torch.empty(len(clip) - 1, *clip.first.shape, device=device) for clip in clips]
    done = [0] * len(clips)
    for index, chunk in predict_clips_in_chunks(model, clips, config, seed, corrected, batch_statistics):
        frames[index][done[index] : done[index] + len(chunk)] = chunk
        done[index] += len(chunk)
    return [clip.cpu() for clip in frames]


def predict_clips_in_chunks(
    model: CVAE,
    clips: Sequence[Clip],
    config: TrainConfig,
    seed: int = 0,
    corrected: bool = False,
    batch_statistics: bool = False,
) -> Iterator[tuple[int, Float[Tensor, "n 3 h w"]]]:
    """Yield the frames of `predict_clips` in short chunks, each with the index of its clip, on the model's device.

    The chunks of one clip are in order. The caller may convert and store each chunk, so the memory does not contain all
    frames as float32.
    """
    if batch_statistics and len(clips) > 1:
        for index, clip in enumerate(clips):
            single = predict_clips_in_chunks(model, [clip], config, seed, batch_statistics=True)
            yield from ((index, chunk) for _, chunk in single)
        return
    device = next(model.parameters()).device
    labels = _padded_labels(clips).to(device)
    first = to_float(torch.stack([clip.first for clip in clips]).to(device))
    streams = [clip_generator(clip, seed) for clip in clips]
    if corrected and not batch_statistics:
        chunks = predict_corrected_in_chunks(model, first, labels, streams, mirror=config.flip)
    else:
        chunks = predict_in_chunks(model, first, labels, streams, batch_statistics)
    start = 0
    while True:
        # The reduced precision ends before each yield, so it does not affect the caller's code.
        with reduced_precision(config, device):
            chunk = next(chunks, None)
        if chunk is None:
            return
        for index, (row, clip) in enumerate(zip(chunk, clips, strict=True)):
            if start < len(clip) - 1:
                yield index, row[: len(clip) - 1 - start]
        start += chunk.shape[1]


def _padded_labels(clips: Sequence[Clip]) -> UInt8[Tensor, "b t 3 h w"]:
    """Return the labels of all clips. Shorter clips are padded with their last label."""
    longest = max(len(clip.labels) for clip in clips)
    labels = clips[0].labels.new_empty(len(clips), longest, *clips[0].labels.shape[1:])
    for row, clip in zip(labels, clips, strict=True):
        row[: len(clip.labels)] = clip.labels
        row[len(clip.labels) :] = clip.labels[-1]
    return labels


def clip_generator(clip: Clip, seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that depends on `seed` and the clip's name."""
    entropy = np.random.SeedSequence((seed, int.from_bytes(clip.name.encode(), "big")))
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


def evaluate(model: CVAE, clips: Sequence[Clip], seed: int = 0) -> dict[str, list[Float[Tensor, " s"]]]:
    """Return the PSNR in dB of every predicted frame of every clip, free-running, for two sources of z.

    With `prior`, the frames are a prediction; with `posterior`, z depends on the true frames. Clips of equal length are
    evaluated in one batch.
    """
    scores: dict[str, list] = {kind: [torch.empty(0)] * len(clips) for kind in ("prior", "posterior")}
    for length in sorted({len(clip.labels) for clip in clips}):
        places = [index for index, clip in enumerate(clips) if len(clip.labels) == length]
        for kind, curves in _evaluate_equal([clips[index] for index in places], model, seed).items():
            for index, curve in zip(places, curves, strict=True):
                scores[kind][index] = curve
    return scores


def mean_scores(model: CVAE, validation: Sequence[Clip], heldout: Sequence[Clip]) -> dict[str, float]:
    """Return the mean PSNR on the validation clips, and on the held-out segments of the training recordings.

    Checkpoints are selected by `heldout_psnr`. The validation clips are used for this score only if there is no
    held-out segment. The score is a mean over frames, because the segment of a short recording has few frames. Without
    clips, a score is nan.
    """
    scores = evaluate(model, [*validation, *heldout])
    count = len(validation)
    mean = {
        kind: sum(float(curve.mean()) for curve in curves[:count]) / count if count else math.nan
        for kind, curves in scores.items()
    }
    return {
        "val_psnr_prior": mean["prior"],
        "val_psnr_posterior": mean["posterior"],
        "heldout_psnr": float(torch.cat(scores["prior"][count:]).mean()) if heldout else mean["prior"],
    }


def _evaluate_equal(clips: Sequence[Clip], model: CVAE, seed: int) -> dict[str, Float[Tensor, "c s"]]:
    """Evaluate clips of equal length, with both sources of z in one batch."""
    device = next(model.parameters()).device
    x = to_float(torch.stack([clip.answer for clip in clips]).to(device))
    p = to_float(torch.stack([clip.labels for clip in clips]).to(device))
    streams = [[clip_generator(clip, seed + k, device) for clip in clips] for k in range(2)]
    with evaluating(model):
        sources = (prior_latents(model, x[:, 0], streams[0]), posterior_latents(model, x, p, streams[1]))
        frames = free_run(model, x[:, 0].repeat(2, 1, 1, 1), p.repeat(2, 1, 1, 1, 1), _side_by_side(sources))
    scores = psnr(frames, x[:, 1:].repeat(2, 1, 1, 1, 1)).cpu()
    return {"prior": scores[: len(clips)], "posterior": scores[len(clips) :]}


def _side_by_side(sources: Sequence[Latents]) -> Latents:
    """Return latents for a batch that consists of equal blocks, one for each source."""

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        parts = zip(sources, previous.chunk(len(sources)), label.chunk(len(sources)), strict=True)
        return torch.cat([source(step, *features) for source, *features in parts])

    return latents
