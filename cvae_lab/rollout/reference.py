"""The assignment's loops, one frame at a time, which define the results of all faster functions in this package.

`reference_unroll` is the loop of training, and `reference_predict` is the loop of the test. `unroll.unroll` and
`predict.predict` compute the same values faster. The tests compare the faster functions with these two.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cvae_lab.models.cvae import CVAE, reparameterise
from cvae_lab.rollout.latents import NoiseSource, clip_noise


class UnrollOutput(NamedTuple):
    """Result of a training unroll for steps s = 0 to T-2. Step s predicts frame s + 1."""

    prediction: Float[Tensor, "b s 3 h w"]
    mu: Float[Tensor, "b s z hz wz"]
    logvar: Float[Tensor, "b s z hz wz"]
    prior: tuple[Float[Tensor, "b s z hz wz"], Float[Tensor, "b s z hz wz"]] | None = None
    """mu and logvar of a learned prior; None if the prior is N(0, I)."""


class Feedback(NamedTuple):
    """Rules for the previous frame that is the input of the decoder at each training step.

    Args:
        teacher_forced: mask of the steps whose input is the true previous frame. The input of other steps is the
            predicted frame.
        bptt: number of consecutive predicted frames that gradients pass through. With 0, every predicted frame is
            detached. With -1, no frame is detached.
        noise: noise that is added to predicted frames before they are fed back, or None.
    """

    teacher_forced: Bool[Tensor, "b s"]
    bptt: int = -1
    noise: Float[Tensor, "b s 3 h w"] | None = None

    def prepare(self, prediction: Tensor, clips: Tensor | slice, step: int | Tensor) -> Tensor:
        """Convert predictions of step - 1 to inputs of `step`: truncate gradients and add noise."""
        if self.bptt >= 0:
            cut = (torch.as_tensor(step) % (self.bptt + 1) == 0).reshape(-1, 1, 1, 1).to(prediction.device)
            prediction = torch.where(cut, prediction.detach(), prediction)
        return prediction if self.noise is None else prediction + self.noise[clips, step]


def reference_unroll(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    eps: Float[Tensor, "b s z hz wz"],
    feedback: Feedback,
) -> UnrollOutput:
    """Unroll a training clip one frame at a time (assignment, section 4).

    Inputs of the posterior are the current frame and label. Inputs of the decoder are the previous frame, the current
    label and z.

    Args:
        x, p: frames and pose labels in [0, 1].
        eps: standard normal noise for the z of each step.
        feedback: rules for the previous frame of each step.
    """
    steps, priors = [], []
    previous, anchor = x[:, 0], model.anchor(x[:, 0], p[:, 0])
    for t in range(1, x.shape[1]):
        s = t - 1
        if s > 0:
            own = feedback.prepare(steps[-1][0], slice(None), s)
            forced = feedback.teacher_forced[:, s, None, None, None].to(x.device)
            previous = torch.where(forced, x[:, t - 1], own)
        label = model.label_transformation(p[:, t])
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), label)
        z = reparameterise(mu, logvar, eps[:, s])
        features = model.frame_transformation(previous)
        priors.append(model.prior(features, label))
        steps.append((model.decode_features(features, label, z, anchor), mu, logvar))
    prior = None if priors[0] is None else tuple(torch.stack(part, 1) for part in zip(*priors, strict=True))
    return UnrollOutput(*(torch.stack(part, dim=1) for part in zip(*steps, strict=True)), prior)


@torch.no_grad()
def reference_predict(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b t 3 h w"],
    generator: NoiseSource = None,
) -> Float[Tensor, "b s 3 h w"]:
    """Predict frames 1 to T-1 one at a time, from the first frame, all labels and z from the prior.

    The model must be in eval mode.

    Args:
        first: frame 0 in [0, 1].
        labels: pose labels in [0, 1]; labels[:, 0] belongs to `first`.
        generator: one generator per clip, or one generator for the seeds of all clips; None means seed 0.
    """
    anchor, noise = model.anchor(first, labels[:, 0]), clip_noise(model, first, generator)
    frames = [first]
    for t in range(1, labels.shape[1]):
        label = model.label_transformation(labels[:, t])
        features = model.frame_transformation(frames[-1])
        prior = model.prior(features, label)
        z = next(noise) if prior is None else reparameterise(*prior, next(noise))
        frames.append(model.decode_features(features, label, z, anchor))
    return torch.stack(frames[1:], dim=1).clamp(0, 1)
