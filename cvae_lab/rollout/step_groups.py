"""Groups of training steps that can be computed in one batch: steps at equal distance from their last true frame.

A teacher-forced step is at distance 0, because no prediction is needed. If the input of the next step is the predicted
frame, that step is at distance 1, and so on until the next teacher-forced step.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class StepGroups(NamedTuple):
    """Steps of all clips, grouped by distance from the last true frame, as indices on the device.

    "Step order" is step 0 of all clips, then step 1 of all clips, and so on. In this order, a step is a slice, which
    has the channels-last memory layout. "Group order" is group 0, then group 1, and so on.
    """

    sizes: list[int]  # steps per group
    clips: Sequence[Tensor]  # per group: the clip of each step
    steps: Sequence[Tensor]  # per group: the step number
    previous: Sequence[Tensor]  # per group: index, in the previous group, of the same clip's previous step
    to_group_order: Tensor
    to_step_order: Tensor
    orders_agree: bool  # True if both orders are the same, for example if all steps are teacher-forced
    whole: Sequence[bool]  # per group: whether it is one step of all clips

    @classmethod
    def of(cls, teacher_forced: Bool[Tensor, "b s"], device: torch.device) -> "StepGroups":
        """Group the steps of a teacher-forcing mask, which is on the CPU. The resulting indices are on `device`."""
        found = list(steps_by_distance(teacher_forced))
        sizes = [len(clips) for clips, _ in found]
        clips, steps = (torch.cat(parts) for parts in zip(*found, strict=True))
        to_group_order = steps * len(teacher_forced) + clips
        to_step_order = to_group_order.argsort()
        # start of the previous group, in group order
        starts = torch.tensor([0, 0, *sizes]).cumsum(0)[: len(sizes)]
        before = to_step_order[(to_group_order - len(teacher_forced)).clamp(min=0)]
        before = before - starts.repeat_interleave(torch.tensor(sizes))
        index = _to_device(torch.stack([clips, steps, before, to_group_order, to_step_order]), device)
        orders_agree = bool((to_group_order.diff() > 0).all())
        every_clip = torch.arange(len(teacher_forced))
        whole = [torch.equal(part, every_clip) for part in clips.split(sizes)]
        return cls(sizes, *(part.split(sizes) for part in index[:3]), *index[3:], orders_agree, whole)

    def previous_in_group(self, values: Float[Tensor, "m ..."], group: int) -> Float[Tensor, "n ..."]:
        """Select the values of the clips in `group`, in the order of `group`, from the values of the previous group."""
        # Groups of equal size have the same clips in the same order. Indexing would launch more kernels on a GPU.
        return values if self.sizes[group - 1] == self.sizes[group] else values[self.previous[group]]

    def of_clips(self, values: Float[Tensor, "b ..."], group: int) -> Float[Tensor, "n ..."]:
        """Select the values of the clips in `group`, in the order of `group`, from one value per clip."""
        return values if self.whole[group] else values[self.clips[group]]

    def in_group_order(
        self, values: Float[Tensor, "tb ..."], count: int | None = None
    ) -> Float[Tensor, "n ..."]:
        """Reorder values from step order to group order. If `count` is set, only the first `count` are returned."""
        return values[:count] if self.orders_agree else values[self.to_group_order[:count]]

    def in_step_order(self, values: Float[Tensor, "sb ..."]) -> Float[Tensor, "sb ..."]:
        """Reorder values from group order to step order."""
        return values if self.orders_agree else values[self.to_step_order]


def _to_device(index: Tensor, device: torch.device) -> Tensor:
    """Copy an index from the CPU to the device. With pinned memory, the copy to a GPU is asynchronous."""
    if device.type == "cuda":
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)


def steps_by_distance(teacher_forced: Bool[Tensor, "b s"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (clips, steps) for distance 0, then distance 1, and so on, from the last true frame."""
    index = torch.arange(teacher_forced.shape[1]).expand(teacher_forced.shape)
    distance = (index - torch.where(teacher_forced, index, 0).cummax(dim=1).values).T
    for d in range(int(distance.max()) + 1):
        steps, clips = torch.nonzero(distance == d, as_tuple=True)
        yield clips, steps


def by_step(x: Float[Tensor, "b t ..."]) -> Float[Tensor, "tb ..."]:
    """Flatten clips and time into one batch dimension, in step order."""
    return x.transpose(0, 1).flatten(0, 1)
