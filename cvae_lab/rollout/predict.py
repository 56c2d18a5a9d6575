"""Free-running prediction: each predicted frame is the next step's input. Equal to `reference.reference_predict`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvae_lab.models.cvae import CVAE
from cvae_lab.models.modules import StepwiseBatchNorm2d
from cvae_lab.rollout.cuda_graph import CudaGraphFunction
from cvae_lab.rollout.latents import Latents, posterior_latents, prior_latents
from cvae_lab.rollout.step_groups import by_step

STREAMS_PER_CALL = {"handout": 6, "compact": 64}
"""Clips that a CPU decodes together. With 60 at once, the wide layers of `handout` exceed its cache: half the speed."""

LABELS_PER_CALL = 64  # labels encoded ahead; bounds memory on long clips
MIN_FRAMES_FOR_GRAPH = 16  # below that, recording a CUDA graph takes longer than it saves


def predict(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    batch_statistics: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """Predict frames 1 to T-1 in [0, 1] from frame 0 and labels 0 to T-1, z from the prior (assignment, section 4).

    All clips of the batch run together. Without a generator, z is drawn from one with seed 0, so every call returns
    the same frames.

    Args:
        first: frame 0 in [0, 1].
        labels: pose labels in [0, 1]; labels[:, 0] belongs to `first`. T is at least 2.
        batch_statistics: see `evaluating`.
    """
    with evaluating(model, batch_statistics):
        return free_run(model, first, labels, prior_latents(model, first, generator))


def predict_with_posterior(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    mean: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """Run as `predict` does, but with z from the posterior of the true frames: an upper bound, not a prediction."""
    with evaluating(model):
        return free_run(model, x[:, 0], p, posterior_latents(model, x, p, generator, mean))


@torch.no_grad()
def free_run(
    model: CVAE, first: Float[Tensor, "b 3 h w"], labels: Float[Tensor, "b t 3 h w"], latents: Latents
) -> Float[Tensor, "b s 3 h w"]:
    """Return frames 1 to T-1 in [0, 1], each fed to the next step. The caller sets the model's mode."""
    anchor = model.anchor(first, labels[:, 0])
    frames = first.new_empty(first.shape[0], labels.shape[1] - 1, *first.shape[1:])
    features, step = model.frame_transformation(first), None
    for start in range(1, labels.shape[1], LABELS_PER_CALL):
        encoded = _encode_labels(model, labels[:, start : start + LABELS_PER_CALL])
        for s, label in enumerate(encoded.unbind(1), start - 1):
            inputs = [features, label, latents(s, features, label), *([] if anchor is None else [anchor])]
            step = step or _step_function(model, inputs, n_frames=frames.shape[1])
            frames[:, s], features = step(*inputs)
    return frames.clamp_(0, 1)


@contextmanager
def evaluating(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Set eval mode, and restore every module's own mode afterwards.

    `batch_statistics` makes batch norm use the statistics of the current batch, as the course's validation does: its
    `eval` method overrides `nn.Module.eval`. This reproduces scores of the course's code and is wrong otherwise.
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


def _encode_labels(model: CVAE, p: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s l hf wf"]:
    """Encode the labels of all steps in one batch; in step order, so that batch norm can tell the steps apart."""
    labels = model.label_transformation(by_step(p), steps=p.shape[1])
    return labels.unflatten(0, (p.shape[1], -1)).transpose(0, 1)


def _step_function(
    model: CVAE, example: Sequence[Tensor], n_frames: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function from frame features, label features, z and anchor to the next frame and its features."""

    def step(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        frame = model.decode_features(*inputs)
        return frame, model.frame_transformation(frame)

    if uses_cuda_graphs(example[0].device):
        return CudaGraphFunction(step, example) if n_frames >= MIN_FRAMES_FOR_GRAPH else step
    return partial(_in_parts, STREAMS_PER_CALL[model.config.name], step)


def uses_cuda_graphs(device: torch.device) -> bool:
    """Whether launching a step's small layers from Python takes longer than running them."""
    return device.type == "cuda"


def _in_parts(size: int, function: Callable[..., tuple[Tensor, ...]], *streams: Tensor) -> tuple[Tensor, ...]:
    """Call `function` on `size` clips at a time and join the results; clips do not influence each other."""
    parts = zip(*(stream.split(size) for stream in streams), strict=True)
    return tuple(torch.cat(part) for part in zip(*(function(*part) for part in parts), strict=True))
