"""Batched training unroll with the result of `reference.reference_unroll`."""

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.models.cvae import CVAE, reparameterise
from cvae_lab.rollout.reference import Feedback, UnrollOutput
from cvae_lab.rollout.step_groups import StepGroups, by_step


def unroll(
    model: CVAE,
    x: Float[Tensor, "b t 3 h w"],
    p: Float[Tensor, "b t 3 h w"],
    eps: Float[Tensor, "b s z hz wz"],
    feedback: Feedback,
    groups: StepGroups | None = None,
) -> UnrollOutput:
    """Compute the result of `reference_unroll` in fewer and larger batches.

    Posteriors and features of true frames and labels do not depend on predictions, so they are computed in one batch
    for all steps.

    A teacher-forced step starts a segment. The first steps of all segments of all clips form one batch, the second
    steps form the next batch, and so on. The number of these sequential batches is the length of the longest segment.
    There is 1 batch if every step is teacher-forced, and there are T - 1 if only the first step is teacher-forced.

    Args:
        groups: the groups of `feedback.teacher_forced` on this device, if they were computed before.
    """
    batch, steps, anchor = x.shape[0], x.shape[1] - 1, model.anchor(x[:, 0], p[:, 0])
    frames = model.frame_transformation(by_step(x))
    labels = model.label_transformation(by_step(p[:, 1:]), steps=steps)
    mu, logvar = model.posterior(frames[batch:], labels)
    z = reparameterise(mu, logvar, by_step(eps))

    groups = groups or StepGroups.of(feedback.teacher_forced, x.device)
    predictions, inputs = _decode_groups(model, groups, feedback, frames, labels, z, anchor)
    result = [groups.in_step_order(torch.cat(predictions)), mu, logvar]
    if model.Prior_Predictor is not None:
        result += model.prior(groups.in_step_order(torch.cat(inputs)), labels)
    prediction, mu, logvar, *prior = (part.unflatten(0, (steps, batch)).transpose(0, 1) for part in result)
    return UnrollOutput(prediction, mu, logvar, tuple(prior) or None)


def _decode_groups(
    model: CVAE,
    groups: StepGroups,
    feedback: Feedback,
    frames: Tensor,
    labels: Tensor,
    z: Tensor,
    anchor: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the predicted frames of each group, and the features of the previous frames from which they are decoded.

    `frames` and `labels` are features in step order.
    """
    labels_by_group = groups.in_group_order(labels).split(groups.sizes)
    z_by_group = groups.in_group_order(z).split(groups.sizes)
    predictions: list[Tensor] = []
    inputs: list[Tensor] = []
    for g, clips in enumerate(groups.clips):
        if g == 0:
            previous = groups.in_group_order(frames, len(clips))
        else:
            own = feedback.prepare(groups.previous_in_group(predictions[-1], g), clips, groups.steps[g])
            previous = model.frame_transformation(own)
        context = None if anchor is None else groups.of_clips(anchor, g)
        predictions.append(model.decode_features(previous, labels_by_group[g], z_by_group[g], context))
        inputs.append(previous)
    return predictions, inputs
