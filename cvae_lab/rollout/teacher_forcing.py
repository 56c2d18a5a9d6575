"""Draw which steps of a training clip are teacher-forced. `schedules.tf_ratio_at` gives the probability."""

import torch
from jaxtyping import Bool
from torch import Tensor


def sample_teacher_forcing(
    ratio: float,
    clips: int,
    steps: int,
    per: str,
    generator: torch.Generator,
    epoch_is_forced: bool | None = None,
) -> Bool[Tensor, "b s"]:
    """Draw the teacher-forcing mask. The input of a step is the true previous frame with probability `ratio`.

    The first step of every clip is always teacher-forced, because its previous frame is the first frame.

    Args:
        per: unit of one random decision: a `batch`, a `clip` or a `step`. For `epoch`, the caller draws the decision
            and passes it as `epoch_is_forced`.
        generator: a CPU generator.
    """
    if per == "epoch":
        mask = torch.full((clips, steps), bool(epoch_is_forced))
    else:
        shape = {"batch": (1, 1), "clip": (clips, 1), "step": (clips, steps)}[per]
        mask = (torch.rand(shape, generator=generator) < ratio).expand(clips, steps).clone()
    mask[:, 0] = True
    return mask
