"""Animated GIFs that play at the speed of the video."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cvae_lab.data.files import replacing
from cvae_lab.views.sprites import Pictures

FASTEST = 50  # frames per second: browsers slow down a GIF whose frames last less than 2/100 s


def write_gif(path: Path | str, frames: Pictures, fps: int | float = 20) -> None:
    """Write an endlessly repeating GIF that lasts as long as the video, to 1/100 s.

    A GIF counts time in hundredths of a second. The rounding error is carried from frame to frame, so 30 frames
    per second last 3, 3, 4, 3, 3, 4 hundredths. Above 50 frames per second some frames are left out. Equal neighbours
    become one frame that lasts as long as both. One palette of 256 colours serves all frames, so a constant
    background does not flicker and takes no space.
    """
    if not len(frames):
        raise ValueError(f"There are no frames to write to {path}: give at least one.")
    if not isinstance(fps, int | float) or not fps > 0:
        raise ValueError(f"{fps!r} is not a number of frames per second for {path}: give a number above 0.")
    sample = np.concatenate(frames[:: max(1, len(frames) // 16)])
    palette = Image.fromarray(sample).quantize(256, kmeans=2, dither=Image.Dither.NONE)
    timed = [
        (Image.fromarray(frames[i]).quantize(palette=palette, dither=Image.Dither.NONE), 10 * hundredths)
        for i, hundredths in _schedule(len(frames), fps)
    ]
    images, durations = zip(*timed, strict=True)
    with replacing(path) as temporary:
        options = {"save_all": True, "append_images": images[1:], "duration": list(durations), "loop": 0}
        images[0].save(temporary, "GIF", **options)


def _schedule(n: int, fps: int | float) -> Iterator[tuple[int, int]]:
    """Index of every frame to write and its duration in hundredths of a second."""
    shown = min(fps, FASTEST)
    count = max(1, round(n * shown / fps))
    for k in range(count):
        yield int(k * n / count), max(2, round(100 * (k + 1) / shown) - round(100 * k / shown))
