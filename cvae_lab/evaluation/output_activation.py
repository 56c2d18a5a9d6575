"""Find out from predictions whether a network was trained with a sigmoid after its generator.

Several public solutions of the assignment have this sigmoid. The weights have the same names and shapes with and
without the sigmoid, so both kinds of weights can be loaded. With the wrong activation, the predictions are wrong
without any error message.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import evaluating

FRAMES = 16  # largest number of frames that are predicted for the comparison


class OutputChoice(NamedTuple):
    """Output activation with the higher PSNR, and the measurements that led to this choice."""

    output: Literal["linear", "sigmoid"]
    psnr: dict[str, float]  # PSNR in dB for each activation
    frames: int  # number of predicted frames
    known: str  # kind of the frames that were compared with the predictions
    outside: float  # fraction of raw outputs outside [0, 1]

    @property
    def message(self) -> str:
        """One line with the choice, its reason, and a warning if most linear outputs lie outside [0, 1]."""
        other = "sigmoid" if self.output == "linear" else "linear"
        line = (
            f"output = {self.output}, because the PSNR of one step is {self.psnr[self.output]:.1f} dB with "
            f"{self.output} and {self.psnr[other]:.1f} dB with {other} (mean over {self.frames} {self.known})"
        )
        if self.output == "linear" and self.outside > 0.5:
            line += f"; warning: {self.outside:.0%} of the raw outputs lie outside [0, 1]"
        return line


def choose_output(model: CVAE, clips: Sequence[Clip], seed: int = 0) -> OutputChoice:
    """Compare the PSNR of one step from a true previous frame with both activations, for z from N(0, I).

    If `clips` contain true frames, at most FRAMES frames are predicted. Otherwise frame 1 of each clip is predicted and
    compared with frame 0, because these two frames differ little.

    Args:
        model: a network with a linear output.
        seed: seed of z.
    """
    if model.config.output != "linear":
        raise ValueError("choose_output needs a model with a linear output.")
    labelled = [clip for clip in clips if clip.answer is not None]
    if labelled:
        count = max(1, FRAMES // len(labelled))
        previous = torch.cat([clip.answer[:-1][:count] for clip in labelled])[:FRAMES]
        truth = torch.cat([clip.answer[1:][:count] for clip in labelled])[:FRAMES]
        labels = torch.cat([clip.labels[1:][:count] for clip in labelled])[:FRAMES]
    else:
        previous = truth = torch.stack([clip.first for clip in clips[:FRAMES]])
        labels = torch.stack([clip.labels[1] for clip in clips[:FRAMES]])
    raw = _one_step(model, to_float(previous), to_float(labels), seed)
    known = "true frames" if labelled else "frames after the first one"
    scores = {
        "linear": float(psnr(raw, to_float(truth)).mean()),
        "sigmoid": float(psnr(raw.sigmoid(), to_float(truth)).mean()),
    }
    outside = float(((raw < 0) | (raw > 1)).float().mean())
    output = "sigmoid" if scores["sigmoid"] > scores["linear"] else "linear"
    return OutputChoice(output, scores, len(truth), known, outside)


@torch.no_grad()
def _one_step(
    model: CVAE, previous: Float[Tensor, "n 3 h w"], labels: Float[Tensor, "n 3 h w"], seed: int
) -> Float[Tensor, "n 3 h w"]:
    device = next(model.parameters()).device
    shape = model.latent_shape(*previous.shape[-2:])
    z = torch.randn(len(previous), *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    with evaluating(model):
        return model.decode(previous.to(device), model.label_transformation(labels.to(device)), z).cpu()
