"""Pixels: picture files to uint8 tensors, and uint8 (0 to 255, in files) to and from float ([0, 1], in models)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm


class DataError(ValueError):
    """A fault in the data: one sentence that says what, where and how to mend it."""


Frames = UInt8[Tensor, "_ 3 _ _"] | Float[Tensor, "_ 3 _ _"]
"""Frames of shape (time, 3, height, width): uint8, or float in [0, 1]."""


def to_float(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert uint8 pixels to float32 in [0, 1]."""
    return pixels.float() / 255


def to_uint8(frames: Float[Tensor, "..."] | UInt8[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Convert float pixels to uint8 on the CPU: clamped to [0, 1], scaled, rounded to nearest. NaN becomes 0.

    Clamping prevents the wrap-around of values outside [0, 1]. uint8 input is returned as it is.
    """
    if frames.dtype == torch.uint8:
        return frames.detach().cpu()
    unit = frames.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8)


def decode(
    groups: Sequence[Sequence[Path]], size: tuple[int, int], progress: bool = False, title: str = ""
) -> UInt8[Tensor, "_ 3 h w"]:
    """Decode picture files into one uint8 tensor of `size` (height, width), group after group.

    Pictures of another size are resized bilinearly. Within a group all must be RGB and of one size; otherwise
    DataError.
    """
    total = sum(map(len, groups))
    pixels = np.empty((total, 3, *size), np.uint8)
    # disable=None shows the bar on a terminal only; a log would keep every refresh.
    bar = tqdm(
        total=total, desc=f"decoding {title}", unit=" PNG", leave=False, disable=None if progress else True
    )
    position = 0
    with bar:
        for group in groups:
            source = open_picture(group[0]).size if group else None
            for file in group:
                pixels[position] = _decode_one(file, source, size)
                position += 1
                bar.update()
    return torch.from_numpy(pixels)


def _decode_one(file: Path, source: tuple[int, int], size: tuple[int, int]) -> UInt8[np.ndarray, "3 h w"]:
    picture = open_picture(file)
    if picture.size != source:
        raise DataError(
            f"{file}: {picture.size[0]} x {picture.size[1]} pixels, but the first file of its folder has "
            f"{source[0]} x {source[1]}; bring all to one size"
        )
    target = (size[1], size[0])
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)


def open_picture(file: Path) -> Image.Image:
    """Read an 8-bit RGB PNG. Raises DataError for any other file."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{file}: not a readable PNG ({error}); replace the file") from error
    if picture.mode != "RGB":
        raise DataError(f"{file}: mode {picture.mode} instead of RGB; convert to RGB, 8 bits a channel")
    return picture
