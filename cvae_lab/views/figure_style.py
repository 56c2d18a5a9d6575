"""Size and style of all figures, and functions for alternative text and vector files."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cvae_lab.data.files import replacing
from cvae_lab.views import GREY, PALETTE

WIDTH = 9.0  # inches
DPI = 100
COLUMN_LABELS = {
    "loss": "loss",
    "mse": "mean squared error",
    "kl_nats": "KL, nats per frame",
    "beta": "KL weight β",
    "tf_ratio": "teacher-forcing ratio",
    "lr": "learning rate",
    "val_psnr_prior": "validation PSNR, prior z, dB",
    "heldout_psnr": "held-out PSNR, dB",
    "val_psnr_posterior": "validation PSNR, posterior z, dB",
}
STYLE = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",  # opaque background, so that black text is readable on a dark page
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # text in SVG files is stored as text, not as outlines
}


class DescribedFigure(Figure):
    """Figure with alternative text for readers who cannot see the picture.

    Notebooks store this text with the picture.
    """

    alt = ""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"image/png": {"alt": self.alt}} if self.alt else {}


def described(figure: Figure, alt: str) -> Figure:
    """Set the alternative text of a figure, and return the figure."""
    figure.alt = " ".join(alt.split())
    return figure


def save_vector(figure: Figure, path: Path | str) -> Path:
    """Save a figure as SVG or PDF, depending on the suffix of `path`, with the alternative text as description.

    Text in an SVG file is stored as text, not as outlines. Raises ValueError for other suffixes.
    """
    path = Path(path)
    keys = {".svg": "Description", ".pdf": "Subject"}
    if path.suffix not in keys:
        raise ValueError(f"{path}: the name of a vector file must end in .svg or .pdf; change the name.")
    metadata = {
        keys[path.suffix]: getattr(figure, "alt", ""),
        "Date" if path.suffix == ".svg" else "CreationDate": None,
    }
    with replacing(path) as temporary, plt.rc_context(STYLE):
        figure.savefig(temporary, bbox_inches="tight", metadata=metadata)
    return path


def quiet(ax: Axes) -> Axes:
    """Remove the top and right spines."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def with_band(
    ax: Axes, x: ArrayLike, mean: ArrayLike, low: ArrayLike, high: ArrayLike, label: str, color: str
) -> None:
    """Draw a line and the band between `low` and `high` around it."""
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=color, label=label)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over `window` frames, and over fewer frames at the ends."""
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()


def legend_below(figure: Figure, columns: int) -> None:
    """Draw one legend for all panels, which contains every name once."""
    handles = [ax.get_legend_handles_labels() for ax in figure.axes]
    entries = {name: line for lines, names in handles for line, name in zip(lines, names, strict=True)}
    ncols = min(len(entries), columns)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols)
