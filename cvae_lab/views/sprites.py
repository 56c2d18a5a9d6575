"""Data of a clip for the players: panels of pictures, sprite sheets, PSNR curves, and a static strip of frames.

In all functions, `labels`, `prediction` and `truth` have the same length, and index i of all three is the same frame.
The first frame of a clip is not predicted and is left out, so index 0 is frame 1.
"""

import base64
import html
import io
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from cvae_lab.data.pixels import Frames, to_uint8
from cvae_lab.views import GREY, PALETTE

SCALE = 4  # screen pixels per frame pixel in a GIF
PANEL_WIDTH = 256  # screen pixels of a panel in a player
GAP = 1  # frame pixels between panels
STRIP_PIXELS = 64  # largest width of a frame in a strip of frames, in frame pixels
PALETTE_SAMPLE = 2_000_000  # the colours of a sheet are chosen from at most this number of pixels
TEXT_PIXELS = 15  # size of the text in a strip of frames
MARGIN = 8  # pixels around a strip of frames
SHEET = 4096  # largest width and height of a sprite sheet; phones do not decode larger pictures
INVITATION = "Run this cell for the interactive player."

Pictures = UInt8[np.ndarray, "_ _ _ 3"]  # (time, height, width, 3)


def split_panels(label: Frames, truth: Frames | None, prediction: Frames) -> list[Pictures]:
    """Convert label, truth (if known) and prediction to uint8 pictures. Raises ValueError if shapes differ."""
    parts = [label, prediction] if truth is None else [label, truth, prediction]
    shapes = " ".join(str(tuple(part.shape)) for part in parts)
    if len({part.shape for part in parts}) > 1:
        raise ValueError(
            f"The clips have different shapes, {shapes}: give clips of one shape, all without the first frame."
        )
    if not len(label):
        raise ValueError("There are no frames to show: give at least one.")
    return [to_uint8(part).permute(0, 2, 3, 1).numpy() for part in parts]


def captions(with_truth: bool, name: str = "prediction") -> list[str]:
    """Return the captions of the panels, from left to right."""
    return ["pose label", "truth", name] if with_truth else ["pose label", name]


def panels(label: Frames, truth: Frames | None, prediction: Frames, scale: int = SCALE) -> Pictures:
    """Put label, truth (if known) and prediction side by side, and enlarge all panels without smoothing.

    A thin white gap separates the k panels. The shape is
    (time, height * scale, (k * width + (k - 1) * GAP) * scale, 3).
    """
    parts = split_panels(label, truth, prediction)
    gap = np.full((*parts[0].shape[:2], GAP, 3), 255, np.uint8)
    row = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(row, axis=2).repeat(scale, axis=1).repeat(scale, axis=2)


def clip_data(
    parts: Sequence[Pictures],
    names: Sequence[str],
    psnr: ArrayLike | None,
    baseline: ArrayLike | None,
    title: str,
    fps: int | float,
    horizon: int | None,
    numbers: Sequence[int] | None,
) -> dict[str, Any]:
    """Return the data of a player, except for the pictures, as values that JSON can represent.

    Raises ValueError if a curve or the list of frame numbers does not have one value per frame.
    """
    n, height, width, _ = parts[0].shape
    columns, per_sheet = sheet_layout(n, height, width)
    numbers = range(1, n + 1) if numbers is None else numbers
    if len(numbers) != n:
        raise ValueError(f"There are {len(numbers)} frame numbers for {n} frames: give one number for each.")
    panel = width * max(1, round(PANEL_WIDTH / width))
    curves = [
        _curve("prediction", "", psnr, n, PALETTE[0], ""),
        _curve("static baseline", "static baseline ", baseline, n, GREY, "5 3"),
    ]
    return {
        "title": title, "captions": list(names), "frames": n, "width": width, "height": height,
        "columns": columns, "per_sheet": per_sheet, "fps": fps, "horizon": horizon or 0,
        "numbers": [int(number) for number in numbers], "page_width": len(parts) * (panel + 8) - 8,
        "curves": [curve for curve in curves if curve and set(curve["values"]) != {None}],
    }  # fmt: skip


def _curve(
    name: str, prefix: str, values: ArrayLike | None, n: int, color: str, dash: str
) -> dict[str, Any] | None:
    """Return one PSNR curve for JSON. Values that are not finite become None, because JSON has no infinity."""
    if values is None:
        return None
    values = np.asarray(values, float)
    if values.shape != (n,):
        raise ValueError(
            f"The PSNR has shape {values.shape}, but there are {n} predictions: give one value for each."
        )
    finite = [round(float(value), 3) if np.isfinite(value) else None for value in values]
    return {"name": name, "prefix": prefix, "values": finite, "color": color, "dash": dash}


def sheet_layout(n: int, height: int, width: int) -> tuple[int, int]:
    """Return the frames per row of a sprite sheet and the frames per sheet.

    A sheet is approximately square, and at most SHEET pixels wide and high.
    """
    columns = max(1, min(math.ceil(math.sqrt(n * height / width)), SHEET // width))
    return columns, columns * max(1, min(math.ceil(n / columns), SHEET // height))


def sprite_sheets(pictures: Pictures, colours: int | None = None) -> list[bytes]:
    """Encode all pictures of a panel as lossless WebP sheets, row by row.

    If `colours` is given, each sheet is first reduced to a palette of this size.
    """
    n, height, width, _ = pictures.shape
    columns, per_sheet = sheet_layout(n, height, width)
    return [
        encode(_grid(pictures[start : start + per_sheet], columns), colours)
        for start in range(0, n, per_sheet)
    ]


def _grid(pictures: Pictures, columns: int) -> UInt8[np.ndarray, "high wide 3"]:
    n, height, width, _ = pictures.shape
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, height, width, 3), np.uint8)
    cells[:n] = pictures
    grid = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def encode(picture: UInt8[np.ndarray, "_ _ 3"], colours: int | None = None) -> bytes:
    """Encode a picture as lossless WebP, with at most `colours` colours if that is given."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if colours:
        every = math.ceil(math.sqrt(picture.size / 3 / PALETTE_SAMPLE))
        sample = Image.fromarray(np.ascontiguousarray(picture[::every, ::every]))
        palette = sample.quantize(colours, kmeans=1, dither=Image.Dither.NONE)
        if every > 1:
            palette = image.quantize(palette=palette, dither=Image.Dither.NONE)
        image = palette.convert("RGB")
    image.save(buffer, "WEBP", lossless=True, method=3 if colours else 0, quality=50)
    return buffer.getvalue()


def data_uri(webp: bytes) -> str:
    """Return a data URI that contains a WebP picture."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def frame_strip(
    parts: Sequence[Pictures], names: Sequence[str], numbers: Sequence[int], columns: int = 6
) -> tuple[Image.Image, str]:
    """Return a picture of a few frames of every panel, one panel per row, and its description as alternative text."""
    every = math.ceil(parts[0].shape[2] / STRIP_PIXELS)  # large frames are reduced
    parts = [part[:, ::every, ::every] for part in parts]
    n, height, width, _ = parts[0].shape
    picked = np.unique(np.linspace(0, n - 1, columns).round().astype(int))
    scale = max(1, 2 * STRIP_PIXELS // width)
    sheet = np.full((len(parts) * (height + 1) - 1, len(picked) * (width + 1) - 1, 3), 225, np.uint8)
    for row, part in enumerate(parts):
        for column, i in enumerate(picked):
            top, left = row * (height + 1), column * (width + 1)
            sheet[top : top + height, left : left + width] = part[i]
    rows, frames = ", ".join(names), ", ".join(str(numbers[i]) for i in picked)
    description = f"Rows from the top: {rows}. Frames from the left: {frames}."
    return Image.fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1)), description


def frame_strip_html(strip: Image.Image, description: str, title: str = "") -> str:
    """Return a strip of frames as HTML without scripts, and the sentence INVITATION below it.

    The strip is shown instead of an embedded page if a viewer removes scripts.
    """
    description = html.escape(description)
    uri = f"data:image/png;base64,{base64.b64encode(png(strip)).decode()}"
    return (
        f"<div><p><b>{html.escape(title)}</b></p>"
        f'<img src="{uri}" alt="Strip of frames. {description}" width="{strip.width}">'
        f"<p>{description}</p><p><em>{INVITATION}</em></p></div>"
    )


def frame_strip_output(strip: Image.Image, description: str, title: str = "") -> tuple[dict, dict]:
    """Return a strip of frames with its texts as a notebook output (data and metadata), a PNG.

    Every viewer shows a PNG without trust, kernel or script: GitHub, VS Code, nbconvert and JupyterLab. GitHub does not
    show SVG, and VS Code shows no HTML in a folder that is not trusted.
    """
    font = ImageFont.load_default(TEXT_PIXELS)
    lines = [line for line in (title, description, INVITATION) if line]
    line_height = round(1.5 * TEXT_PIXELS)
    width = max([strip.width, *(math.ceil(font.getlength(line)) for line in lines)]) + 2 * MARGIN
    picture = Image.new("RGB", (width, strip.height + len(lines) * line_height + 2 * MARGIN), "white")
    pen, y = ImageDraw.Draw(picture), MARGIN
    if title:
        pen.text((MARGIN, y), title, "black", font)
        y += line_height
    picture.paste(strip, (MARGIN, y))
    y += strip.height + MARGIN // 2
    for line in lines[-2:]:
        pen.text((MARGIN, y), line, "black", font)
        y += line_height
    alt = f"Strip of frames. {description} {INVITATION}"
    return {"image/png": base64.b64encode(png(picture)).decode()}, {"image/png": {"alt": alt}}


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG with at most 256 colours. Maximum coverage keeps the rare colours of the labels."""
    buffer = io.BytesIO()
    palette = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def source(name: str) -> str:
    """Return the text of a front-end file of the player: `player.js`, `player.css` or `player.html`."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
