"""Frame player as one HTML file that needs no kernel, no network and no other file."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from numpy.typing import ArrayLike

from cvae_lab.data.files import write_text
from cvae_lab.data.pixels import Frames
from cvae_lab.views.sprites import (
    INVITATION,
    captions,
    clip_data,
    data_uri,
    frame_strip,
    frame_strip_html,
    source,
    split_panels,
    sprite_sheets,
)

COLOURS = 256  # maximum number of colours per panel
STRIP_COLUMNS = 4  # number of frames in the static strip, which a notebook output contains twice
STRIP = re.compile(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"')
STATIC = re.compile(r'<template data-static="">(.*?)</template>', re.DOTALL)


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
    name: str = "prediction",
) -> str:
    """Return an HTML page that plays the clip. Arguments, keys and buttons are the same as in `scrubber`.

    Each panel is reduced to 256 colours, so the pixels are approximate. Compared with the original frames, the PSNR of
    the reduced frames is 44 dB for the true frames of the first test clip of `small` (629 frames) and 49 dB for real
    frames. The size of a page is 1 to 2 MB for 629 frames if true frames are shown.
    """
    parts, names = split_panels(labels, truth, prediction), captions(truth is not None, name)
    clip = clip_data(parts, names, psnr, baseline, title or "Predicted clip", fps, horizon, numbers)
    sheets = [
        f'<img hidden alt="" data-panel="{k}" src="{data_uri(sheet)}">'
        for k, part in enumerate(parts)
        for sheet in sprite_sheets(part, COLOURS)
    ]
    return Template(source("player.html")).substitute(
        title=html.escape(clip["title"]),
        style=source("player.css"),
        script=source("player.js").replace("export default { render };", ""),
        clip=html.escape(json.dumps(clip, ensure_ascii=False, separators=(",", ":"))),
        sheets="\n".join(sheets),
        static=frame_strip_html(*frame_strip(parts, names, clip["numbers"], STRIP_COLUMNS), clip["title"]),
    )


def write_html(
    path: Path | str, labels: Frames, prediction: Frames, **options: ArrayLike | Frames | None
) -> None:
    """Write the player page atomically. The options are the same as in `html_player`."""
    write_text(path, html_player(labels, prediction, **options))


class EmbeddedPage:
    """A player page in the output of a notebook, made by `embed`."""

    def __init__(self, page: str, height: int) -> None:
        found = STATIC.search(page)
        self._static = found[1] if found else f"<p><em>{INVITATION}</em></p>"
        self._strip = STRIP.search(self._static)
        self._page = STATIC.sub("", page)
        self._height = height

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return HTML that shows the page.

        In a viewer that removes styles, iframes and scripts, a static strip is shown.

        A viewer that shows no HTML, such as VS Code in a folder that is not trusted, shows the strip as a PNG. The
        iframe is sandboxed, so its scripts cannot access the notebook. The page sends its height to the notebook.
        """
        text = html.escape(self._page, quote=True)
        resize = (
            "addEventListener('message', (event) => { for (const frame of document.querySelectorAll("
            "'iframe.cvae-page')) if (frame.contentWindow === event.source && event.data.cvaePlayerHeight)"
            " frame.style.height = event.data.cvaePlayerHeight + 'px'; });"
        )
        picture = {"image/png": self._strip[1]} if self._strip else {}
        metadata = {"image/png": {"alt": html.unescape(self._strip[2])}} if self._strip else {}
        data = {
            "text/html": (
                "<style>.cvae-static { display: none; }</style>"
                f'<div class="cvae-static">{self._static}</div><script>{resize}</script>'
                f'<iframe class="cvae-page" srcdoc="{text}" sandbox="allow-scripts" title="frame player"'
                f' style="border: 0; width: 100%; height: {self._height}px"></iframe>'
            ),
            "text/plain": INVITATION,
        }
        return data | picture, metadata


def embed(page: str, height: int = 420) -> EmbeddedPage:
    """Show a player page in the output of a notebook.

    Args:
        page: the text of `html_player`.
        height: height of the iframe in CSS pixels until the page has sent its own height.
    """
    return EmbeddedPage(page, height)
