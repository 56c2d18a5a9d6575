"""Files that show a predicted clip: animated GIFs and the HTML player, with true frames and scores if known."""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cvae_lab.data.clips import Clip
from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import Frames, to_float, to_uint8
from cvae_lab.evaluation.metrics import psnr as psnr_of_frames
from cvae_lab.views.html_player import write_html
from cvae_lab.views.sprites import SCALE, Pictures

FASTEST = 50  # frames per second; browsers play a GIF more slowly if its frames last less than 2/100 s
CAPTION = 20  # height of a line of text in a GIF, pixels
FONT_SIZE = 13  # pixels
COURSE_WIDTH = 64  # width of a frame of the course in pixels
MOST_FRAMES = 2000  # of a longer clip, players and GIFs show every second, third, ... frame
FRAMES_PER_CALL = 64  # frames converted to float at once; limits the memory for long clips
MARGIN = 4  # pixels between the panels of a GIF
BACKGROUND, BLANK = (235,) * 3, 205  # grey of the background, and of a panel without a picture


class LazyPictures(Sequence):
    """A sequence of pictures, each of which is made when it is read, so that the memory contains only a few."""

    def __init__(self, count: int, make: Callable[[int], UInt8[np.ndarray, "_ _ 3"]]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "_ _ 3"]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def write_gif(path: Path | str, frames: Pictures | LazyPictures, fps: int | float = 20) -> None:
    """Write a GIF that repeats forever. Its duration equals that of the video, with an error of at most 1/100 s.

    A GIF stores durations in hundredths of a second. Each rounding error is added to the next duration, so frames of a
    video with 30 frames per second last 3, 3, 4, 3, 3, 4 hundredths. Above 50 frames per second, some frames are left
    out. Equal neighbours become one frame that lasts as long as both. All frames have the same palette of 256 colours,
    so a constant background does not flicker and adds no bytes. Frames are encoded and written one at a time, because
    `Image.save` would keep all of them in memory.
    """
    if not len(frames):
        raise ValueError(f"There are no frames to write to {path}: give at least one.")
    if not fps > 0:
        raise ValueError(f"{fps} is not a number of frames per second for {path}: give a number above 0.")
    sample = np.concatenate([frames[i] for i in range(0, len(frames), max(1, len(frames) // 16))])
    palette = Image.fromarray(sample).quantize(256, kmeans=2, dither=Image.Dither.NONE)
    images = (
        (Image.fromarray(frames[i]).quantize(palette=palette, dither=Image.Dither.NONE), hundredths)
        for i, hundredths in _timing(len(frames), fps)
    )
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write_images(file, palette, images)


def _write_images(file: BinaryIO, palette: Image.Image, images: Iterator[tuple[Image.Image, int]]) -> None:
    """Write a GIF (GIF89a specification) from images with one palette, and their durations in hundredths of a second.

    Of each image except the first, only the smallest rectangle that contains all changed pixels is written.
    """
    previous, duration = next(images)
    colours = bytes(palette.getpalette("RGB"))[:768].ljust(768, b"\0")
    # 0xF7: a palette of 2^8 colours with 8 bits each follows.
    file.write(b"GIF89a" + struct.pack("<HHBBB", *previous.size, 0xF7, 0, 0) + colours)
    file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # repeat forever
    waiting, place, shown = previous, (0, 0), np.asarray(previous)
    for image, hundredths in chain(images, [(None, 0)]):
        pixels = None if image is None else np.asarray(image)
        changed = None if pixels is None else pixels != shown
        if changed is not None and not changed.any():
            duration += hundredths
            continue
        file.write(b"".join(GifImagePlugin.getdata(waiting, place, duration=10 * duration, disposal=1)))
        if image is not None:
            rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
            place = int(columns[0]), int(rows[0])
            waiting = image.crop((*place, int(columns[-1]) + 1, int(rows[-1]) + 1))
            duration, shown = hundredths, pixels
    file.write(b";")


def _timing(n: int, fps: int | float) -> Iterator[tuple[int, int]]:
    """Yield the index of every frame to write, and its duration in hundredths of a second."""
    rate = min(fps, FASTEST)
    count = max(1, round(n * rate / fps))
    ends = [round(100 * (k + 1) / rate) for k in range(count)]
    for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield k * n // count, end - start


def write_grid_gif(path: Path, clips: Sequence[Clip], predictions: Sequence[Frames], scale: int = 2) -> None:
    """Write one GIF with one row per clip: label, true frame (if known) and prediction.

    It shows every second frame in real time, or fewer of long clips, and ends with the shortest prediction. Captions
    give the names of clips and columns and the frame number.
    """
    length = min(len(frames) for frames in predictions)
    step = 2 * _step(math.ceil(length / 2))
    write_gif(path, _captioned(clips, predictions, scale, range(1, length + 1, step)), fps=20 / step)


def write_clip_gif(path: Path, clip: Clip, frames: Frames) -> None:
    """Write a GIF of one clip in real time: label, true frame if known and prediction, with captions.

    It has 20 frames per second if the clip has at most MOST_FRAMES frames, and fewer otherwise.
    """
    step = _step(len(frames))
    write_gif(path, _captioned([clip], [frames], SCALE, range(1, len(frames) + 1, step)), fps=20 / step)


def _step(length: int) -> int:
    """Distance between the frames that are shown of a clip, so that there are at most MOST_FRAMES."""
    return math.ceil(length / MOST_FRAMES)


def _captioned(
    clips: Sequence[Clip], predictions: Sequence[Frames], scale: int, numbers: range
) -> LazyPictures:
    """Pictures with one row per clip. Captions give the names of rows and columns and the frame number.

    Frames are enlarged by `scale`. Wider frames than in the course are enlarged less or reduced, so that a panel is at
    most `scale` times as wide as a frame of the course.
    """
    font = _font()
    known = any(clip.answer is not None for clip in clips)
    names = ["pose label", *["truth"] * known, "prediction"]
    high, wide = clips[0].labels.shape[-2:]
    widest = scale * COURSE_WIDTH
    reduction, scale = max(1, wide // widest), max(1, min(scale, widest // wide))
    height, width = (scale * (size // reduction) for size in (high, wide))
    rows = [f"clip {clip.name}" for clip in clips]
    left = int(max(map(font.getlength, [f"frame {numbers[-1]}", *rows]))) + 2 * MARGIN
    base = _captions(rows, names, height, width, left)

    def picture(index: int) -> UInt8[np.ndarray, "_ _ 3"]:
        number, pixels = numbers[index], np.array(base)
        pixels[:CAPTION, :left] = _text(f"frame {number}", left, font)
        for row, (clip, prediction) in enumerate(zip(clips, predictions, strict=True)):
            truth = [clip.answer if clip.answer is None else clip.answer[number]] * known
            top = CAPTION + row * (height + MARGIN)
            for column, panel in enumerate([clip.labels[number], *truth, prediction[number - 1]]):
                x = left + column * (width + MARGIN)
                shown = BLANK if panel is None else _resized(panel[None], scale, reduction)[0]
                pixels[top : top + height, x : x + width] = shown
        return pixels

    return LazyPictures(len(numbers), picture)


def _captions(rows: Sequence[str], columns: Sequence[str], height: int, width: int, left: int) -> Image.Image:
    """Return a picture with the captions of rows and columns, and empty panels of `height` x `width` pixels."""
    size = (left + len(columns) * (width + MARGIN), CAPTION + len(rows) * (height + MARGIN))
    base = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(base)
    for column, name in enumerate(columns):
        center = left + column * (width + MARGIN) + width / 2
        draw.text((center, CAPTION / 2), name, "black", _font(), "mm")
    for row, name in enumerate(rows):
        middle = CAPTION + row * (height + MARGIN) + height / 2
        draw.text((MARGIN, middle), name, "black", _font(), "lm")
    return base


def _resized(panel: Tensor, scale: int, reduction: int) -> Pictures:
    """Return uint8 pictures, enlarged by repeating pixels or reduced by averaging pixels."""
    if reduction > 1:
        panel = avg_pool2d(to_float(to_uint8(panel)), reduction)
    return to_uint8(panel).permute(0, 2, 3, 1).numpy().repeat(scale, axis=1).repeat(scale, axis=2)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib includes, so that captions are the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)


def _text(text: str, width: int, font: ImageFont.FreeTypeFont) -> UInt8[np.ndarray, "_ _ 3"]:
    image = Image.new("RGB", (width, CAPTION), BACKGROUND)
    ImageDraw.Draw(image).text((MARGIN, CAPTION / 2), text, "black", font, "lm")
    return np.asarray(image)


def write_clip_player(
    path: Path, clip: Clip, frames: Frames, psnr: Float[Tensor, " s"] | None = None
) -> None:
    """Write the HTML player of one clip: label, true frame and PSNR if known, and prediction.

    Of a clip with more than MOST_FRAMES frames, every second, third, ... frame is shown in real time. The title says
    so.

    Args:
        psnr: PSNR per frame. Without it, the PSNR is computed from `frames`.
    """
    step = _step(len(frames))
    numbers = range(1, len(frames) + 1, step)
    title = f"Clip {clip.name}" + (f" (1 of {step} frames is shown)" if step > 1 else "")
    known: dict[str, Any] = {}
    if clip.answer is not None:
        curve = _curve(frames, clip.answer[1:]) if psnr is None else psnr
        baseline = _curve(clip.first.expand_as(clip.answer[1:]), clip.answer[1:])
        known = {"psnr": curve[::step].numpy(), "baseline": baseline[::step].numpy()}
        known["truth"] = clip.answer[1::step]
    write_html(
        path, clip.labels[1::step], frames[::step], title=title, numbers=numbers, fps=20 / step, **known
    )


def _curve(frames: Frames, truth: Frames) -> Float[Tensor, " s"]:
    """PSNR per frame in dB."""
    pairs = zip(frames.split(FRAMES_PER_CALL), truth.split(FRAMES_PER_CALL), strict=True)
    return torch.cat([psnr_of_frames(_as_float(frame), _as_float(true)) for frame, true in pairs])


def _as_float(frames: Frames) -> Float[Tensor, "_ 3 _ _"]:
    return to_float(frames) if frames.dtype == torch.uint8 else frames
