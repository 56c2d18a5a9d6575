"""Free-running prediction: each predicted frame is the next step's input.

`predict` gives the same result as `reference.reference_predict` in less time, for three reasons. Labels are encoded in
batches. On a GPU, a step is a CUDA graph. On a CPU, a step of `compact` has fewer operations (`folded`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cvae_lab.data.pixels import to_float
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.modules import StepwiseBatchNorm2d
from cvae_lab.rollout.cuda_graph import CudaGraphFunction
from cvae_lab.rollout.folded import FoldedDecoder
from cvae_lab.rollout.latents import Latents, NoiseSource, clip_noise, posterior_latents, prior_latents
from cvae_lab.rollout.step_groups import by_step

STREAMS_PER_CALL = {"handout": 6, "compact": 64}
"""Number of clips that a CPU decodes in one batch.

With 60 clips, the wide layers of `handout` exceed the CPU cache, and prediction is half as fast.
"""

LABELS_PER_CALL = 32  # number of labels encoded in one batch; limits the memory for long clips
MIN_FRAMES_FOR_GRAPH = 16  # with fewer frames, recording a CUDA graph takes longer than it saves

Labels = Float[Tensor, "b t 3 h w"] | UInt8[Tensor, "b t 3 h w"]


def predict(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource = None,
    batch_statistics: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """Predict frames 1 to T-1 in [0, 1] from frame 0 and labels 0 to T-1 (assignment, section 4).

    z is drawn from the prior. The prediction of a clip does not depend on the other clips in the batch.

    Args:
        first: frame 0 in [0, 1].
        labels: pose labels, uint8 or float in [0, 1]; labels[:, 0] belongs to `first`. T is at least 2.
        generator: one generator per clip, or one generator for the seeds of all clips in order. Without a generator the
            seed is 0, and every call returns the same frames. To draw different samples, pass the same generator to
            several calls.
        batch_statistics: see `evaluating`.
    """
    return joined(predict_in_chunks(model, first, labels, generator, batch_statistics), first, labels)


def predict_in_chunks(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource = None,
    batch_statistics: bool = False,
    convert: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Float[Tensor, "b n 3 h w"]]:
    """Yield the frames of `predict` in chunks of up to LABELS_PER_CALL, for clips that are too long for the memory.

    Args:
        convert: converts a chunk of `labels` to float in [0, 1], the network's input.
    """
    convert = convert or _as_float
    with evaluating(model, batch_statistics):
        if folds(model, first.device):
            yield from _folded_chunks(model, first, labels, generator, convert)
        else:
            latents = prior_latents(model, first, generator)
            yield from _free_run_chunks(model, first, labels, latents, convert)


def predict_with_posterior(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    generator: NoiseSource = None,
    mean: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """Return the frames of `predict` with z from the posterior of the true frames: an upper bound, not a prediction."""
    with evaluating(model):
        return free_run(model, x[:, 0], p, posterior_latents(model, x, p, generator, mean))


def free_run(
    model: CVAE, first: Float[Tensor, "b 3 h w"], labels: Labels, latents: Latents
) -> Float[Tensor, "b s 3 h w"]:
    """Predict frames 1 to T-1 in [0, 1]. Each is the input of the next step. The caller must set eval mode."""
    return joined(_free_run_chunks(model, first, labels, latents, _as_float), first, labels)


def folds(model: CVAE, device: torch.device) -> bool:
    """Return whether `predict` uses the folded decoder: for `compact` with prior N(0, I) on a CPU."""
    return model.config.name == "compact" and model.Prior_Predictor is None and device.type == "cpu"


@contextmanager
def evaluating(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Set eval mode, and restore the previous mode of every module afterwards.

    If `batch_statistics` is true, batch norm uses the statistics of the current batch. The course's code also does so
    in validation, because its class overrides `nn.Module.eval`. Set this option only to reproduce scores of that code.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, StepwiseBatchNorm2d)]
    model.eval()
    for layer in norms:
        layer.batch_statistics = batch_statistics
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for layer in norms:
            layer.batch_statistics = False


def joined(chunks: Iterator[Tensor], first: Tensor, labels: Tensor) -> Float[Tensor, "b s 3 h w"]:
    """Return the predictions of frames 1 to T-1 in one tensor."""
    frames = first.new_empty(first.shape[0], labels.shape[1] - 1, *first.shape[1:])
    done = 0
    for chunk in chunks:
        frames[:, done : done + chunk.shape[1]] = chunk
        done += chunk.shape[1]
    return frames


def _folded_chunks(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource,
    convert: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    noise, size = clip_noise(model, first, generator), STREAMS_PER_CALL[model.config.name]
    starts = zip(first.split(size), convert(labels[:, 0]).split(size), strict=True)
    with torch.no_grad():
        decoders = [FoldedDecoder(model, *start) for start in starts]
    for chunk in labels[:, 1:].split(LABELS_PER_CALL, dim=1):
        z = torch.stack([next(noise) for _ in range(chunk.shape[1])])
        parts = zip(decoders, convert(chunk).split(size), z.split(size, dim=1), strict=True)
        with torch.no_grad():  # ends before each yield, so the caller's code is not affected
            frames = torch.cat([decoder.predict(p, list(part)) for decoder, p, part in parts])
        yield frames


def _free_run_chunks(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    latents: Latents,
    convert: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    with torch.no_grad():
        anchor = model.anchor(first, convert(labels[:, 0]))
        features, step, s = model.frame_transformation(first), None, 0
    for chunk in labels[:, 1:].split(LABELS_PER_CALL, dim=1):
        frames = first.new_empty(first.shape[0], chunk.shape[1], *first.shape[1:])
        with torch.no_grad():
            for place, label in enumerate(_encode_labels(model, convert(chunk)).unbind(1)):
                inputs = [features, label, latents(s, features, label), *([] if anchor is None else [anchor])]
                step = step or _step_function(model, inputs, n_frames=labels.shape[1] - 1)
                frames[:, place], features = step(*inputs)
                s += 1
            frames.clamp_(0, 1)
        yield frames


def _as_float(pixels: Tensor) -> Tensor:
    return to_float(pixels) if pixels.dtype == torch.uint8 else pixels


def _encode_labels(model: CVAE, p: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s l hf wf"]:
    """Encode the labels of all steps in one batch, in step order, because batch norm treats each step separately."""
    labels = model.label_transformation(by_step(p), steps=p.shape[1])
    return labels.unflatten(0, (p.shape[1], -1)).transpose(0, 1)


def _step_function(
    model: CVAE, example: Sequence[Tensor], n_frames: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a function from frame features, label features, z and anchor to the next frame and its features."""

    def step(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        frame = model.decode_features(*inputs)
        return frame, model.frame_transformation(frame)

    if uses_cuda_graphs(example[0].device):
        return CudaGraphFunction(step, example) if n_frames >= MIN_FRAMES_FOR_GRAPH else step
    return partial(_in_parts, STREAMS_PER_CALL[model.config.name], step)


def uses_cuda_graphs(device: torch.device) -> bool:
    """Return whether launching the small layers of a step from Python takes longer than running these layers."""
    return device.type == "cuda"


def _in_parts(size: int, function: Callable[..., tuple[Tensor, ...]], *streams: Tensor) -> tuple[Tensor, ...]:
    """Call `function` on `size` clips at a time and concatenate the results, which do not depend on other clips."""
    parts = zip(*(stream.split(size) for stream in streams), strict=True)
    return tuple(torch.cat(part) for part in zip(*(function(*part) for part in parts), strict=True))
