"""Frame scrubber: a notebook widget that plays a clip in the browser, even while the kernel is busy."""

from collections.abc import Sequence
from typing import Any

import anywidget
import ipywidgets
import traitlets
from numpy.typing import ArrayLike

from cvae_lab.data.pixels import Frames
from cvae_lab.views.sprites import (
    INVITATION,
    captions,
    clip_data,
    frame_strip,
    frame_strip_output,
    source,
    split_panels,
    sprite_sheets,
)

SLIDER_INVITATION = "Run this cell for the interactive version."


class Scrubber(anywidget.AnyWidget):
    """Player of one clip. All frames are sent to the browser once, and then drawn in the browser.

    `frame` counts from 1, and is synchronised with the kernel at most ten times a second while the clip plays. Link
    `frame` to other widgets with `ipywidgets.jslink((slider, "value"), (scrubber, "frame"))`, or observe it. `speed` is
    a factor by which the frames per second of the clip are multiplied.
    """

    _esm = source("player.js")
    _css = source("player.css")
    clip = traitlets.Dict().tag(sync=True)
    sheets = traitlets.List().tag(sync=True)
    # Values are not sent back to the browser, because a late reply would overwrite a newer value.
    frame = traitlets.Int(1).tag(sync=True, echo_update=False)
    playing = traitlets.Bool(False).tag(sync=True, echo_update=False)
    speed = traitlets.Float(1.0).tag(sync=True, echo_update=False)

    def __init__(self, clip: dict[str, Any], sheets: list[list[bytes]], static: tuple[dict, dict]) -> None:
        """Create a player; `static` is the notebook output (data and metadata) for viewers without widgets."""
        super().__init__(clip=clip, sheets=sheets)
        self._static = static

    @traitlets.validate("frame")
    def _inside_the_clip(self, proposal: dict[str, Any]) -> int:
        return max(1, min(self.clip["frames"], proposal["value"]))

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Add a static strip of frames, which is shown if the widget cannot be shown."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        picture, description = self._static
        return data | picture | {"text/plain": INVITATION}, metadata | description


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
    fps: int | float = 20,
) -> Scrubber:
    """Create a notebook widget that plays a clip and moves through it by slider, keys or clicks on the curve.

    Args:
        labels, prediction, truth: frames of one shape; their pixels are shown unchanged.
        psnr, baseline: PSNR in dB per frame, of the prediction and of the static baseline.
        horizon: number of frames of the training unroll; they are shaded in the plot of the curve.
        name: caption of `prediction`.
        numbers: number of each frame in the clip. Numbers are needed only if some frames of the clip are not shown.
        fps: frames per second at speed 1.
    """
    parts, names = split_panels(labels, truth, prediction), captions(truth is not None, name)
    clip = clip_data(parts, names, psnr, baseline, title, fps, horizon, numbers)
    static = frame_strip_output(*frame_strip(parts, names, clip["numbers"]), title)
    return Scrubber(clip, [sprite_sheets(part) for part in parts], static)


class SliderBox(ipywidgets.VBox):
    """Sliders and, below the sliders, the `ipywidgets.HTML` that the sliders change.

    A viewer without widgets shows a sentence instead. `tests/execute_notebook.py` adds a picture of the HTML to the
    notebook.
    """

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, Any]:
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": SLIDER_INVITATION}
