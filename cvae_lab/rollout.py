"""Frames through time: the literal loop, its fast equivalent, and prediction.

Two paths that cannot be confused: `reconstruct` may look at the future through the posterior, `predict`
cannot, because it is never given it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cvae_lab.cvae import CVAE, reparameterise
from cvae_lab.data.clips import ClipBatch
from cvae_lab.device import sent
from cvae_lab.graph import Captured
from cvae_lab.modules import StepwiseBatchNorm2d
from cvae_lab.waves import Order, by_step

Latents = Callable[[int, Tensor, Tensor], Tensor]
"""z of every step: called with s = 0, 1, ..., the features of the frame fed to it, and of its label; (b, z, hz, wz)."""


PART = {"handout": 6, "compact": 64}
"""Streams that a CPU decodes at a time: with 60 at once the course's wide layers leave its cache, at half the pace."""

WORTH = 16  # frames from which a CUDA graph of a step is worth its recording


class Unrolled(NamedTuple):
    """What a training unroll gives: predictions of frames 1 to T-1, their posteriors, their priors if learned."""

    prediction: Float[Tensor, "b s 3 h w"]
    mu: Float[Tensor, "b s z hz wz"]
    logvar: Float[Tensor, "b s z hz wz"]
    prior: tuple[Float[Tensor, "b s z hz wz"], Float[Tensor, "b s z hz wz"]] | None = None


class Feed(NamedTuple):
    """How steps are fed: which get the true previous frame, where gradients stop, noise on predictions fed back."""

    coins: Bool[Tensor, "b s"]
    bptt: int = -1
    noise: Float[Tensor, "b s 3 h w"] | None = None

    def back(self, prediction: Tensor, rows: Tensor | slice, step: int | Tensor) -> Tensor:
        """Predictions of step - 1 on their way into `step`: truncated gradient, noise."""
        if self.bptt >= 0:  # gradients cross at most `bptt` of these links in a row
            cut = (torch.as_tensor(step) % (self.bptt + 1) == 0).reshape(-1, 1, 1, 1).to(prediction.device)
            prediction = torch.where(cut, prediction.detach(), prediction)
        return prediction if self.noise is None else prediction + self.noise[rows, step]


def unroll_literal(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    eps: Float[Tensor, "b s z hz wz"],
    feed: Feed,
) -> Unrolled:
    """The handout's training protocol, frame by frame: the specification of every faster path."""
    steps, priors = [], []
    previous, anchor = x[:, 0], model.anchor(x[:, 0], p[:, 0])
    for t in range(1, x.shape[1]):
        s = t - 1
        if s > 0:
            own = feed.back(steps[-1][0], slice(None), s)
            previous = torch.where(feed.coins[:, s, None, None, None].to(x.device), x[:, t - 1], own)
        label = model.label_transformation(p[:, t])
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), label)
        z = reparameterise(mu, logvar, eps[:, s])
        features = model.frame_transformation(previous)
        priors.append(model.prior(features, label))
        steps.append((model.decode_features(features, label, z, anchor), mu, logvar))
    prior = None if priors[0] is None else tuple(torch.stack(part, 1) for part in zip(*priors, strict=True))
    return Unrolled(*(torch.stack(part, dim=1) for part in zip(*steps, strict=True)), prior)


def unroll(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    eps: Float[Tensor, "b s z hz wz"],
    feed: Feed,
) -> Unrolled:
    """Equal to `unroll_literal`: only predictions must wait for predictions.

    True frames, labels and posteriors wait for nothing and go in one batch. A step fed the true frame starts a
    segment; the first steps of all segments of all clips go in one batch, then the second steps of those that
    have one, and so on: as many batches as the longest segment has steps (1 at forcing 1, T - 1 at forcing 0).
    """
    batch, steps, anchor = x.shape[0], x.shape[1] - 1, model.anchor(x[:, 0], p[:, 0])
    frames = model.frame_transformation(by_step(x))
    labels = model.label_transformation(by_step(p[:, 1:]), steps=steps)
    mu, logvar = model.posterior(frames[batch:], labels)
    z = reparameterise(mu, logvar, by_step(eps))

    order = Order.of(feed.coins, x.device)
    parts = [order.arranged(whole).split(order.sizes) for whole in (labels, z)]
    done, fed = [], []
    for rows, at, before, label, latent in zip(order.rows, order.at, order.before, *parts, strict=True):
        if not done:
            previous = order.arranged(frames, len(rows))
        else:
            previous = model.frame_transformation(feed.back(done[-1][before], rows, at))
        context = None if anchor is None else anchor[rows]
        done.append(model.decode_features(previous, label, latent, context))
        fed.append(previous)
    result = [order.restored(torch.cat(done)), mu, logvar]
    if model.Prior_Predictor is not None:
        result += model.prior(order.restored(torch.cat(fed)), labels)
    prediction, mu, logvar, *prior = (part.unflatten(0, (steps, batch)).transpose(0, 1) for part in result)
    return Unrolled(prediction, mu, logvar, tuple(prior) or None)


class Unroll(nn.Module):
    """The whole unroll as one forward, so that DistributedDataParallel sees it as one."""

    def __init__(self, model: CVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ClipBatch, eps: Float[Tensor, "b s z hz wz"], feed: Feed) -> Unrolled:
        return unroll(self.model, batch.x, batch.p, eps, feed)


def _encode_labels(model: CVAE, p: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s l hf wf"]:
    """Label features of all steps at once; step-major, so that batch norm can keep the steps apart."""
    labels = model.label_transformation(by_step(p), steps=p.shape[1])
    return labels.unflatten(0, (p.shape[1], -1)).transpose(0, 1)


@contextmanager
def evaluating(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Eval mode, then every module's own mode again.

    `batch_statistics` lets the handout's batch norm use the batch at hand, as the course's validation does (its
    `eval` method hides `nn.Module.eval`): needed to reproduce a course score, wrong otherwise.
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


def prior_latents(
    model: CVAE, first: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
) -> Latents:
    """z from the prior, N(0, I) or learned; noise from the generator's own device (the same video on any device).

    Without a generator, here as everywhere in this room, from one of seed 0: the same video at every call.
    """
    noise = _noise(model, first, generator)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        prior = model.prior(previous, label)
        return noise() if prior is None else reparameterise(*prior, noise())

    return latents


def _noise(
    model: CVAE, first: Float[Tensor, "b 3 h w"], generator: torch.Generator | None
) -> Callable[[], Tensor]:
    shape = (first.shape[0], *model.latent_shape(*first.shape[-2:]))
    source = generator or torch.Generator().manual_seed(0)
    return lambda: sent(torch.randn(shape, generator=source, device=source.device), first.device)


def zero_latents(model: CVAE, first: Float[Tensor, "b 3 h w"]) -> Latents:
    """z = 0, the mean of N(0, I)."""
    zeros = first.new_zeros(first.shape[0], *model.latent_shape(*first.shape[-2:]))
    return lambda step, previous, label: zeros


def posterior_latents(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    mean: bool = False,
) -> Latents:
    """z ~ q(z | x_t, p_t), or its mean: sees the answer, so never a prediction."""
    noise = _noise(model, x[:, 0], generator)

    def latents(step: int, previous: Tensor, label: Tensor) -> Tensor:
        t = step + 1
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), model.label_transformation(p[:, t]))
        return mu if mean else reparameterise(mu, logvar, noise())

    return latents


@torch.no_grad()
def rollout(
    model: CVAE, first: Float[Tensor, "b 3 h w"], labels: Float[Tensor, "b t 3 h w"], latents: Latents
) -> Float[Tensor, "b s 3 h w"]:
    """Frames 1 to T-1 from the first, each fed to the next, in [0, 1]. The model's mode is the caller's choice."""
    anchor = model.anchor(first, labels[:, 0])
    frames = first.new_empty(first.shape[0], labels.shape[1] - 1, *first.shape[1:])
    features, step = model.frame_transformation(first), None
    for chunk in range(1, labels.shape[1], 64):  # label features ahead, but not of a whole film at once
        encoded = _encode_labels(model, labels[:, chunk : chunk + 64])
        for s, label in enumerate(encoded.unbind(1), chunk - 1):
            given = [features, label, latents(s, features, label), *([] if anchor is None else [anchor])]
            step = step or _step(model, given, enough=frames.shape[1] >= WORTH)
            frames[:, s], features = step(*given)
    return frames.clamp_(0, 1)


def _step(model: CVAE, example: Sequence[Tensor], enough: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """Features of a frame and a label, z and the anchor to the next frame and its features, as the device likes it."""

    def step(*given: Tensor) -> tuple[Tensor, Tensor]:
        frame = model.decode_features(*given)
        return frame, model.frame_transformation(frame)

    if launch_bound(example[0].device):
        return Captured(step, example) if enough else step
    return partial(_by_parts, PART[model.config.name], step)


def launch_bound(device: torch.device) -> bool:
    """Whether a step of small layers waits for Python to launch them: on a GPU it does."""
    return device.type == "cuda"


def _by_parts(size: int, function: Callable[..., tuple[Tensor, ...]], *streams: Tensor) -> tuple[Tensor, ...]:
    """`function` of `size` streams at a time, joined: the same, since no stream sees another."""
    parts = zip(*(stream.split(size) for stream in streams), strict=True)
    return tuple(torch.cat(part) for part in zip(*(function(*part) for part in parts), strict=True))


def predict(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    batch_statistics: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """The test: from frame 0 and labels 0 to T-1 to frames 1 to T-1 in [0, 1], z from the prior (handout, section 4).

    labels[:, 0] belongs to the given frame. All clips of the batch at once; any T >= 2.
    """
    with evaluating(model, batch_statistics):
        return rollout(model, first, labels, prior_latents(model, first, generator))


def reconstruct(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    mean: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """Free-running like `predict`, but with z from the posterior of the true frames: an upper bound, no prediction."""
    with evaluating(model):
        return rollout(model, x[:, 0], p, posterior_latents(model, x, p, generator, mean))


@torch.no_grad()
def predict_literal(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b s 3 h w"]:
    """`predict` as the handout writes it, one frame and one label at a time: its specification."""
    with evaluating(model):
        latents, anchor = prior_latents(model, first, generator), model.anchor(first, labels[:, 0])
        frames = [first]
        for t in range(1, labels.shape[1]):
            label = model.label_transformation(labels[:, t])
            features = model.frame_transformation(frames[-1])
            z = latents(t - 1, features, label)
            frames.append(model.decode_features(features, label, z, anchor))
        return torch.stack(frames[1:], dim=1).clamp(0, 1)
