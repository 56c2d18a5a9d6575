"""What is seen: matplotlib figures, the frame scrubber, the stand-alone player, GIF and MP4.

Colours are Okabe and Ito's, told apart by colour-blind readers too, and legible on light and dark pages.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"  # baselines, everywhere

Frames = UInt8[Tensor, "_ 3 _ _"] | Float[Tensor, "_ 3 _ _"]  # (time, 3, height, width): bytes, or [0, 1]


def to_uint8(frames: Frames) -> UInt8[Tensor, "_ 3 _ _"]:
    """Frames as bytes on the CPU: clamped to [0, 1], never wrapped, and rounded; NaN becomes black."""
    if frames.dtype == torch.uint8:
        return frames.detach().cpu()
    unit = frames.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8)
