"""Read picture files as uint8 tensors, and convert between uint8 (0 to 255, in files) and float (0 to 1, in models)."""

import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from cvae_lab.config.model import HEIGHTS

MAX_PIXELS = 40_000_000  # largest number of pixels of a picture; an 8K video frame has 33 million
BLOCK = 2**20  # bytes of a file that are checked at once
SIZES = tuple((height, 2 * height) for height in HEIGHTS)  # height and width of the frames of a data set
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


class DataError(ValueError):
    """Error in the data. The message is one sentence with the file, the cause and the fix."""


Frames = UInt8[Tensor, "_ 3 _ _"] | Float[Tensor, "_ 3 _ _"]
"""Frames of shape (time, 3, height, width): uint8, or float in [0, 1]."""

Fit = Literal["stretch", "crop", "letterbox"]
"""How a picture with another aspect ratio is resized.

`stretch` scales width and height independently, as the course's code does. `crop` keeps the aspect ratio and removes
two opposite margins. `letterbox` keeps the aspect ratio and adds bars, which are black in frames and white in labels.
"""


class Group(NamedTuple):
    """Picture files of one size: all frames or all labels of one video."""

    files: Sequence[Path]
    is_label: bool
    name: str = ""  # name of the test clip


class Decoded(NamedTuple):
    """Pixels of all groups, source size (width, height) of each group, and number of files for each conversion."""

    pixels: UInt8[Tensor, "_ 3 h w"]
    sources: list[tuple[int, int]]
    conversions: dict[str, int]


def to_float(pixels: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert uint8 pixels to float32 in [0, 1]."""
    return pixels.float() / 255


def to_uint8(frames: Float[Tensor, "..."] | UInt8[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Convert float pixels to uint8 on the CPU: clamped to [0, 1], scaled, rounded to nearest. NaN becomes 0.

    Clamping prevents the wrap-around of values outside [0, 1]. uint8 input is returned unchanged.
    """
    if frames.dtype == torch.uint8:
        return frames.detach().cpu()
    unit = frames.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8)


def decode(
    groups: Sequence[Group],
    size: tuple[int, int],
    progress: bool = False,
    title: str = "",
    fit: Fit = "stretch",
) -> Decoded:
    """Decode picture files into one uint8 tensor of `size` (height, width), one group after the other.

    Pictures of another size are resized bilinearly. Pictures in another mode are converted to RGB (`to_rgb`). All
    pictures of a group must have the same size. Raises DataError for the first file that cannot be used.
    """
    pixels = np.empty((sum(len(group.files) for group in groups), 3, *size), np.uint8)
    sources, conversions, position = [], Counter(), 0
    # disable=None shows the bar only on a terminal. In a log file, each refresh would be a new line.
    bar = tqdm(
        total=len(pixels),
        desc=f"decoding {title}",
        unit=" files",
        leave=False,
        disable=None if progress else True,
    )
    with bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about details of files that it reads correctly
        for group in groups:
            source = (0, 0)
            for number, file in enumerate(group.files):
                picture, conversion = to_rgb(open_picture(file), group.is_label)
                source = source if number else picture.size
                _check_size(file, picture.size, source)
                resized = _resize(picture, size, fit, WHITE if group.is_label else BLACK)
                pixels[position] = np.asarray(resized).transpose(2, 0, 1)
                position += 1  # bar.n cannot be used, because a disabled bar does not count
                conversions.update([conversion] if conversion else [])
                bar.update()
            sources.append(source)
    return Decoded(torch.from_numpy(pixels), sources, dict(conversions))


def chosen_size(groups: Mapping[str, Sequence[Group]], size: tuple[int, int] | None) -> tuple[int, int]:
    """Return `size` (height, width). If `size` is None, return the size of the first picture if it is one of `SIZES`.

    Raises DataError if `size` is larger than 32 x 64 and larger than the first picture of a group.
    """
    files = [group.files[0] for part in groups.values() for group in part if group.files]
    if size == SIZES[0]:
        return size
    for file in files:
        width, height = open_picture(file).size
        if size is None:
            return (height, width) if (height, width) in SIZES else SIZES[0]
        if height < size[0] or width < size[1]:
            raise DataError(
                f"{file}: {height} x {width} pixels (height x width) are too small for frames of {size[0]} x "
                f"{size[1]}; use height {SIZES[0][0]}, or larger pictures"
            )
    return size or SIZES[0]


def _check_size(file: Path, size: tuple[int, int], first: tuple[int, int]) -> None:
    if size != first:
        raise DataError(
            f"{file}: the picture has {size[0]} x {size[1]} pixels, but the first picture of the folder has "
            f"{first[0]} x {first[1]}; resize all pictures of the folder to one size"
        )


def _resize(picture: Image.Image, size: tuple[int, int], fit: Fit, bars: tuple[int, int, int]) -> Image.Image:
    target = (size[1], size[0])
    if picture.size == target:
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, target, Image.Resampling.BILINEAR)
    if fit == "letterbox":
        return ImageOps.pad(picture, target, Image.Resampling.BILINEAR, color=bars)
    return picture.resize(target, Image.Resampling.BILINEAR)


def open_picture(file: Path) -> Image.Image:
    """Read a PNG or JPEG file, regardless of its file extension. Raises DataError for other or too large files."""
    try:
        # The format is detected from the content, so a JPEG file named .png is read.
        with Image.open(file, formats=["PNG", "JPEG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"it has {picture.width} x {picture.height} pixels")
            if picture.format == "PNG":
                _check_chunks(file)
            # Pillow keeps the upper 8 bits of 16-bit colour, but the picture's mode does not show this.
            picture.info["is_16_bit"] = "16" in str(picture.tile[0][3]) if picture.tile else False
            picture.load()
    except Image.DecompressionBombError as error:
        raise DataError(f"{file}: the picture is too large ({error}); make it smaller") from error
    # Pillow raises errors of almost any type for damaged files.
    except Exception as error:
        raise DataError(
            f"{file}: this is not a readable PNG or JPEG file ({error}); replace the file"
        ) from error
    return picture


def _check_chunks(file: Path) -> None:
    """Raise ValueError if a PNG chunk that determines pixels is damaged, or if the end of the file is missing.

    Pillow does not verify the checksums of pixel data, so it would return wrong pixels for some damaged files.
    """
    with file.open("rb") as stream:
        stream.seek(8)
        while (head := stream.read(8))[4:] != b"IEND":
            size, kind, code = int.from_bytes(head[:4], "big"), head[4:], zlib.crc32(head[4:])
            for start in range(0, size, BLOCK):
                code = zlib.crc32(stream.read(min(BLOCK, size - start)), code)
            end = stream.read(4)
            if len(end) < 4:
                raise ValueError("the file is truncated")
            if kind in (b"IHDR", b"PLTE", b"IDAT", b"tRNS") and int.from_bytes(end, "big") != code:
                raise ValueError(f"the checksum of chunk {kind.decode()} is wrong")


def to_rgb(picture: Image.Image, is_label: bool) -> tuple[Image.Image, str]:
    """Convert a picture to 8-bit RGB. Also return the kind of conversion, which is empty for an 8-bit RGB PNG.

    16-bit values are scaled to 8 bits. In labels, transparent pixels become white, the background colour of labels. In
    frames, transparency is ignored, as in the course's code.
    """
    kind = _kind(picture)
    if is_label and kind == "transparency":
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), rgba)
        kind = "transparency, shown over white"
    elif picture.mode.startswith(("I", "F")):
        grey = np.rint(np.asarray(picture, np.float64) / 257).clip(0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
    return (picture if picture.mode == "RGB" else picture.convert("RGB")), kind


def _kind(picture: Image.Image) -> str:
    """Return the property by which a picture differs from an 8-bit RGB PNG, or empty text without a difference."""
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        return "transparency"
    if picture.mode.startswith(("I", "F")) or picture.info.get("is_16_bit"):
        return "16 bits"
    if picture.format == "JPEG":
        return "JPEG"
    return {"RGB": "", "L": "grey", "1": "grey", "P": "palette"}.get(picture.mode, picture.mode)
