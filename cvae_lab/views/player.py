"""Looking at a predicted clip frame by frame: a notebook widget, a stand-alone page, GIF and MP4.

Everywhere `labels`, `prediction` and `truth` have the same length and index i of each is the same moment.
The given first frame is left out, so index 0 is frame 1. Nothing is saved except by the `write_` functions.
"""

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike
from PIL import Image

from cvae_lab.data.files import replacing
from cvae_lab.data.pixels import Frames, to_uint8
from cvae_lab.views import GREY, PALETTE
from cvae_lab.views.curve import cursor_percent, curve_svg

if TYPE_CHECKING:
    import IPython.display
    import ipywidgets

SCALE = 4  # screen pixels per frame pixel
GAP = 1  # frame pixels between panels

Pictures = UInt8[np.ndarray, "_ _ _ 3"]  # (time, height, width, 3)


def panels(label: Frames, truth: Frames | None, prediction: Frames, scale: int = SCALE) -> Pictures:
    """Label, truth (where known) and prediction side by side, enlarged without smoothing.

    A thin white gap parts them: (time, height * scale, (k * width + (k - 1) * GAP) * scale, 3).
    """
    parts = _parts(label, truth, prediction)
    gap = np.full((*parts[0].shape[:2], GAP, 3), 255, np.uint8)
    row = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(row, axis=2).repeat(scale, axis=1).repeat(scale, axis=2)


def scrubber(
    labels: Frames,
    prediction: Frames,
    truth: Frames | None = None,
    psnr: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    title: str = "",
    horizon: int | None = None,
    name: str = "prediction",
    numbers: Sequence[int] | None = None,
) -> "ipywidgets.Widget":
    """A notebook widget: play, drag or press the arrow keys to move through the clip.

    `psnr` and `baseline` (a static baseline's) are in dB; the first `horizon` frames, as many as
    training unrolled, are shaded. `name` is the caption of `prediction`; `numbers` are those of the frames
    in the clip, where not all are shown.
    Pictures are encoded beforehand and the curve is drawn once, so a step costs under a millisecond.
    """
    import ipywidgets as widgets

    shown = panels(labels, truth, prediction, scale=1)
    pictures = [_png(Image.fromarray(picture)) for picture in shown]
    texts = readouts(len(pictures), psnr, baseline, numbers)
    width = f"{SCALE * shown.shape[2]}px"
    image = widgets.Image(value=pictures[0], format="png", layout={"width": "100%"})
    image.add_class("cvae-pixels")
    slider = widgets.IntSlider(1, 1, len(pictures), description="frame", readout=False)
    slider.layout, slider.style = {"flex": "1"}, {"description_width": "initial"}
    play = widgets.Play(min=1, max=len(pictures), interval=50)
    widgets.jslink((play, "value"), (slider, "value"))
    text = widgets.HTML(texts[0], layout={"min_width": f"{0.88 * max(map(len, texts)):.0f}ch"})
    cursor = widgets.HTML(_cursor(0, len(pictures)))

    def show(change: dict[str, Any]) -> None:
        i = change["new"] - 1
        image.value, text.value, cursor.value = pictures[i], texts[i], _cursor(i, len(pictures))

    slider.observe(show, "value")
    head = widgets.HTML(_head(title, truth is not None, name))
    rows = [head, image, widgets.HBox([play, slider, text])]
    if svg := curve_svg(psnr, baseline, horizon, numbers):
        rows.append(_overlaid(widgets.HTML(svg), cursor))
    return widgets.VBox(rows, layout={"width": width, "max_width": "100%"})


def _overlaid(*pages: "ipywidgets.HTML") -> "ipywidgets.Widget":
    """Widgets on top of each other, in one cell of a grid."""
    import ipywidgets as widgets

    for page in pages:
        page.layout = {"grid_area": "1 / 1 / 2 / 2", "margin": "0", "width": "100%"}
    return widgets.GridBox(pages, layout={"overflow": "hidden"})


def html_player(
    labels: Frames,
    prediction: Frames,
    truth: Frames | None = None,
    psnr: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    title: str = "",
    fps: int | float = 20,
    horizon: int | None = None,
    numbers: Sequence[int] | None = None,
) -> str:
    """A page that plays the clip with no kernel and no network; it may also be shown inside a notebook.

    Arrow keys step (with shift by ten), space plays, home and end jump, a click on the PSNR curve seeks.
    Each panel keeps 256 colours, about 47 dB from the original, so 630 frames take 1 to 2 MB.
    """
    parts = _parts(labels, truth, prediction)
    n, height, width, _ = parts[0].shape
    columns = math.ceil(math.sqrt(n * height / width))
    config = {"width": width, "height": height, "columns": columns, "fps": fps}
    config |= {"readouts": readouts(n, psnr, baseline, numbers)}
    config |= {"cursor": [cursor_percent(0, n), cursor_percent(n - 1, n)]}
    figures = [_figure(*named, columns) for named in zip(_captions(truth is not None), parts, strict=True)]
    template = resources.files(__package__).joinpath("player.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=html.escape(title or "Predicted clip"),
        config=html.escape(json.dumps(config, ensure_ascii=False)),
        figures="".join(figures),
        curve=curve_svg(psnr, baseline, horizon, numbers),
        last=n - 1,
        page_width=len(parts) * width * SCALE + 8 * (len(parts) - 1),
        accent=PALETTE[0],
    )


def write_html(
    path: Path | str, labels: Frames, prediction: Frames, **options: ArrayLike | Frames | None
) -> None:
    """Write the stand-alone player; the options are those of `html_player`."""
    page = html_player(labels, prediction, **options)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def embed(page: str, height: int = 460) -> "IPython.display.HTML":
    """A stand-alone page inside a notebook's output, in a frame of its own that no script can leave."""
    from IPython.display import HTML

    text = html.escape(page, quote=True)
    frame = f'<iframe srcdoc="{text}" sandbox="allow-scripts" width="100%" height="{height}" style="border:0"></iframe>'
    return HTML(f"<div>{frame}</div>")  # IPython warns of output that begins with a frame


def write_gif(path: Path | str, frames: Pictures, fps: int | float = 20) -> None:
    """Write an endlessly repeating GIF; equal neighbours become one longer frame, so it lasts as long.

    One palette of 256 colours serves all frames, so a still background neither flickers nor takes space.
    """
    _check_some(frames, path)
    sample = np.concatenate(frames[:: max(1, len(frames) // 16)])
    palette = Image.fromarray(sample).quantize(256, kmeans=2, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with replacing(path) as temporary:
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
        images[0].save(temporary, "GIF", **options)


def readouts(
    n: int,
    psnr: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    numbers: Sequence[int] | None = None,
) -> list[str]:
    """One line per frame, such as `frame 123 · 27.4 dB · static baseline 19.2 dB`."""
    lines = [[f"frame {number}"] for _, number in zip(range(n), numbers or range(1, n + 1), strict=True)]
    for name, values in (("", psnr), ("static baseline ", baseline)):
        if values is None:
            continue
        values = np.asarray(values, float)
        if values.shape != (n,):
            raise ValueError(
                f"PSNR of shape {values.shape} does not fit {n} predictions: give one value for each."
            )
        for line, value in zip(lines, values, strict=True):
            line.append(f"{name}{value:.1f} dB")
    return [" · ".join(line) for line in lines]


def _parts(label: Frames, truth: Frames | None, prediction: Frames) -> list[Pictures]:
    parts = [label, prediction] if truth is None else [label, truth, prediction]
    shapes = " ".join(str(tuple(part.shape)) for part in parts)
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"Clips differ in shape, {shapes}: leave the given first frame out of all of them.")
    if not len(label):
        raise ValueError("There are no frames to show: give at least one.")
    return [to_uint8(part).permute(0, 2, 3, 1).numpy() for part in parts]


def _captions(with_truth: bool, name: str = "prediction") -> list[str]:
    return ["pose label", "truth", name] if with_truth else ["pose label", name]


def _head(title: str, with_truth: bool, name: str) -> str:
    """Title and captions for the widget, with the one style rule it needs."""
    cells = "".join(
        f'<div style="flex:1;text-align:center">{name}</div>' for name in _captions(with_truth, name)
    )
    style = "<style>.cvae-pixels{image-rendering:pixelated;outline:1px solid #8886}</style>"
    return f'{style}<b>{html.escape(title)}</b><div style="display:flex">{cells}</div>'


def _cursor(i: int, n: int) -> str:
    bar = (
        f"position:absolute;top:15%;bottom:17%;left:{cursor_percent(i, n):.2f}%;border-left:2px solid {GREY}"
    )
    return f'<div style="position:absolute;inset:0"><div style="{bar}"></div></div>'


def _png(picture: Image.Image, compress_level: int = 6) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def _figure(name: str, pictures: Pictures, columns: int) -> str:
    """One panel of the page: caption, canvas, and all its pictures as one PNG, row by row."""
    n, height, width, _ = pictures.shape
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, height, width, 3), np.uint8)
    cells[:n] = pictures
    grid = (
        cells.reshape(rows, columns, height, width, 3)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, 3)
    )
    sheet = Image.fromarray(grid).quantize(256, dither=Image.Dither.NONE)
    return (
        f'<figure><figcaption>{name}</figcaption><canvas width="{width}" height="{height}" role="img"'
        f' aria-label="{name}"></canvas><img hidden alt="" src="data:image/png;base64,'
        f'{base64.b64encode(_png(sheet, compress_level=9)).decode()}"></figure>'
    )


def _check_some(frames: Pictures, path: Path | str) -> None:
    if not len(frames):
        raise ValueError(f"There are no frames to write to {path}: give at least one.")
