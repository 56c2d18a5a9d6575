"""Files that show a predicted clip: animated GIFs and the HTML player, with true frames and scores if known."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cvae_lab.data.clips import Clip
from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import to_float, to_uint8
from cvae_lab.evaluation.metrics import psnr, static_baseline
from cvae_lab.views.html_player import write_html
from cvae_lab.views.sprites import SCALE, Pictures

FASTEST = 50  # frames per second; browsers play a GIF more slowly if its frames last less than 2/100 s
CAPTION = 20  # height of a line of text in a GIF, pixels
FONT_SIZE = 13  # pixels
COURSE_WIDTH = 64  # width of a frame of the course in pixels
MARGIN = 4  # pixels between the panels of a GIF
BACKGROUND, BLANK = (235,) * 3, 205  # grey of the background, and of a panel without a picture


def write_gif(path: Path | str, frames: Pictures, fps: int | float = 20) -> None:
    """Write a GIF that repeats forever. Its duration equals that of the video, with an error of at most 1/100 s.

    A GIF stores durations in hundredths of a second. Each rounding error is added to the next duration, so frames of a
    video with 30 frames per second last 3, 3, 4, 3, 3, 4 hundredths. Above 50 frames per second, some frames are left
    out. Equal neighbours become one frame that lasts as long as both. All frames have the same palette of 256 colours,
    so a constant background does not flicker and adds no bytes.
    """
    if not len(frames):
        raise ValueError(f"There are no frames to write to {path}: give at least one.")
    if not fps > 0:
        raise ValueError(f"{fps} is not a number of frames per second for {path}: give a number above 0.")
    sample = np.concatenate(frames[:: max(1, len(frames) // 16)])
    palette = Image.fromarray(sample).quantize(256, kmeans=2, dither=Image.Dither.NONE)
    images, durations = [], []
    for i, hundredths in _timing(len(frames), fps):
        images.append(Image.fromarray(frames[i]).quantize(palette=palette, dither=Image.Dither.NONE))
        durations.append(10 * hundredths)
    with replacing(path) as temporary:
        options = {"save_all": True, "append_images": images[1:], "duration": durations, "loop": 0}
        images[0].save(temporary, "GIF", **options)


def _timing(n: int, fps: int | float) -> Iterator[tuple[int, int]]:
    """Yield the index of every frame to write, and its duration in hundredths of a second."""
    rate = min(fps, FASTEST)
    count = max(1, round(n * rate / fps))
    ends = [round(100 * (k + 1) / rate) for k in range(count)]
    for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield k * n // count, end - start


def write_grid_gif(
    path: Path, clips: Sequence[Clip], predictions: Sequence[Float[Tensor, "_ 3 _ _"]], scale: int = 2
) -> None:
    """Write one GIF with one row per clip: label, true frame (if known) and prediction.

    It shows every second frame in real time and ends with the shortest prediction. Captions give the names of clips
    and columns and the frame number.
    """
    length = min(len(frames) for frames in predictions)
    frames = _captioned(clips, predictions, scale, range(1, length + 1, 2))
    write_gif(path, frames, fps=10)


def write_clip_gif(path: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """Write a GIF of one clip at 20 frames per second: label, true frame if known and prediction, with captions."""
    write_gif(path, _captioned([clip], [frames], SCALE, range(1, len(frames) + 1)))


def _captioned(
    clips: Sequence[Clip], predictions: Sequence[Float[Tensor, "_ 3 _ _"]], scale: int, numbers: range
) -> Pictures:
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
    words = [f"frame {numbers[-1]}", *(f"clip {clip.name}" for clip in clips)]
    left = int(max(map(font.getlength, words))) + 2 * MARGIN
    base = Image.new(
        "RGB",
        (left + len(names) * (width + MARGIN), CAPTION + len(clips) * (height + MARGIN)),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(base)
    for column, name in enumerate(names):
        center = left + column * (width + MARGIN) + width / 2
        draw.text((center, CAPTION / 2), name, "black", font, "mm")
    for row, clip in enumerate(clips):
        middle = CAPTION + row * (height + MARGIN) + height / 2
        draw.text((MARGIN, middle), f"clip {clip.name}", "black", font, "lm")
    frames = np.repeat(np.asarray(base)[None], len(numbers), axis=0)
    at = list(numbers)
    for row, (clip, prediction) in enumerate(zip(clips, predictions, strict=True)):
        panels = [clip.labels[at], *[clip.answer if clip.answer is None else clip.answer[at]] * known]
        panels.append(prediction[[number - 1 for number in at]])
        top = CAPTION + row * (height + MARGIN)
        for column, panel in enumerate(panels):
            x = left + column * (width + MARGIN)
            frames[:, top : top + height, x : x + width] = (
                BLANK if panel is None else _resized(panel, scale, reduction)
            )
    for frame, number in zip(frames, at, strict=True):
        frame[:CAPTION, :left] = _text(f"frame {number}", left, font)
    return frames


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


def write_clip_player(path: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """Write the HTML player of one clip: label, true frame and PSNR if known, and prediction."""
    known: dict[str, Any] = {}
    if clip.answer is not None:
        truth = to_float(clip.answer)
        known = {"psnr": psnr(frames, truth[1:]).numpy(), "truth": clip.answer[1:]}
        known["baseline"] = static_baseline(truth).numpy()
    write_html(path, clip.labels[1:], frames, title=f"Clip {clip.name}", **known)
