"""Matplotlib figures in one quiet style, 9 inches wide; each is returned, none is shown or saved."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from cvae_lab.data.pixels import Frames, to_uint8
from cvae_lab.views import GREY, PALETTE

WIDTH = 9.0  # inches
GUTTER = 225  # light grey between pictures, so that white labels have an edge
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
LOGARITHMIC = ("loss", "mse", "kl_nats", "lr")
STYLE = {
    "figure.dpi": DPI,
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
}


def quiet(ax: Axes) -> Axes:
    """Take the top and right spines away."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def with_band(
    ax: Axes, x: ArrayLike, mean: ArrayLike, low: ArrayLike, high: ArrayLike, label: str, color: str
) -> None:
    """Draw a line and the band between `low` and `high` around it."""
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=color, label=label)


@plt.rc_context(STYLE)
def film_strip(
    rows: Mapping[str, Frames], indices: Sequence[int], title: str = "", pixels: int | None = None
) -> Figure:
    """The frames at `indices`, a named row for each clip and a column for each frame number (index + 1).

    `pixels` is the number of screen pixels per frame pixel at 100 dpi; by default the strip fills the width.
    """
    if not rows or not len(indices):
        raise ValueError("There is nothing to show: give at least one row of frames and one index.")
    grid = np.stack([to_uint8(frames[list(indices)]).permute(0, 2, 3, 1).numpy() for frames in rows.values()])
    gap, left, top, bottom = 2, 16 + 8 * max(map(len, rows)), 34 if title else 8, 26
    height, width = grid.shape[2] + gap, grid.shape[3] + gap
    pixels = pixels or max(1, int((WIDTH * DPI - left - 8) / (width * len(indices))))
    wide, high = pixels * (width * len(indices) - gap), pixels * (height * len(rows) - gap)
    size = np.array([left + wide + 8, top + high + bottom])
    figure = plt.figure(figsize=tuple(size / DPI))
    ax = figure.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))
    ax.imshow(_mosaic(grid, gap), interpolation="nearest", aspect="auto")
    ax.set_xticks([width * i + (width - gap) / 2 - 0.5 for i in range(len(indices))])
    ax.set_xticklabels(
        [f"frame {index + 1}" if i == 0 else str(index + 1) for i, index in enumerate(indices)]
    )
    ax.set_yticks([height * i + (height - gap) / 2 - 0.5 for i in range(len(rows))], rows)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_color(str(GUTTER / 255))
    ax.set_title(title)
    return figure


@plt.rc_context(STYLE)
def schedule(curves: Mapping[str, ArrayLike], ylabel: str, title: str = "") -> Figure:
    """Step curves of one value per epoch; later curves are thinner, so equal stretches stay visible."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    for i, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        thickness = 1.3 + 0.9 * (len(curves) - 1 - i)
        ax.stairs(values, np.arange(len(values) + 1) + 0.5, baseline=None, label=name, linewidth=thickness)
        ax.patches[-1].set_edgecolor(_colour(i))
    quiet(ax).set(xlabel="epoch", ylabel=ylabel, title=title)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_right(ax)
    return figure


@plt.rc_context(STYLE)
def histories(
    histories: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    columns: Sequence[str] = ("mse", "kl_nats", "val_psnr_prior"),
    baseline: int | float | None = None,
) -> Figure:
    """One panel per column of the runs' histories, three to a row; epochs without a value are skipped.

    A name with several histories (seeds) is drawn as their mean within the band from least to greatest, over
    the share of training. `baseline`, in dB, is drawn in the PSNR panels.
    """
    groups = {name: [h] if isinstance(h, pd.DataFrame) else list(h) for name, h in histories.items()}
    several = any(len(group) > 1 for group in groups.values())
    rows, across = math.ceil(len(columns) / 3), min(3, len(columns))
    figure, axes = plt.subplots(
        rows, across, figsize=(WIDTH, 2.4 * rows + 0.3), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(columns) :]:
        ax.remove()
    for ax, column in zip(axes.flat, columns, strict=False):
        for i, (name, group) in enumerate(groups.items()):
            _band(ax, group, column, name, _colour(i)) if several else _line(
                ax, group[0], column, name, _colour(i)
            )
        if column in LOGARITHMIC and any((h[column] > 0).any() for group in groups.values() for h in group):
            ax.set_yscale("log", nonpositive="mask")
            low, high = ax.get_ylim()
            ticks = LogLocator(subs=(1, 3)) if high < 1e3 * low else LogLocator(numticks=6)
            ax.yaxis.set(major_locator=ticks, minor_locator=NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")
        if column in ("beta", "tf_ratio"):
            ax.set_ylim(-0.05, max(1.05, ax.get_ylim()[1]) if column == "tf_ratio" else None)
        if baseline is not None and "psnr" in column:
            ax.axhline(baseline, color=GREY, linestyle="--", linewidth=1.2, label="static baseline")
        quiet(ax).set(
            xlabel="share of training" if several else "epoch", title=COLUMN_LABELS.get(column, column)
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=not several, nbins=4))
    ends = [ax.get_xlim() for ax in figure.axes]  # one time axis, though some columns start late
    for ax in figure.axes:
        ax.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))
    handles = [ax.get_legend_handles_labels() for ax in figure.axes]
    entries = {name: line for lines, names in handles for line, name in zip(lines, names, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 5))
    return figure


def _line(ax: Axes, history: pd.DataFrame, column: str, name: str, colour: str) -> None:
    known = history.dropna(subset=[column])
    ax.plot(
        known["epoch"], known[column], label=name, color=colour, linewidth=1.2,
        marker="o" if len(known) < 3 else "",
    )  # fmt: skip


def _band(ax: Axes, group: Sequence[pd.DataFrame], column: str, name: str, colour: str) -> None:
    """Mean and range over seeds; runs on a time budget differ in epochs, so all are read at 100 shares of them."""
    share = np.linspace(0, 1, 101)[1:]
    known = [history.dropna(subset=[column]) for history in group]
    values = np.stack([np.interp(share, h["epoch"] / h["epoch"].iloc[-1], h[column]) for h in known])
    with_band(ax, share, values.mean(0), values.min(0), values.max(0), name, colour)


@plt.rc_context(STYLE)
def psnr_per_frame(
    curves: Mapping[str, ArrayLike],
    baselines: Mapping[str, ArrayLike],
    horizon: int | None = None,
    title: str = "",
    mark: str = "trained unroll",
    smooth: int = 15,
) -> Figure:
    """PSNR in dB of frames 1, 2, ...: curves averaged over `smooth` frames, and raw where there are one or two.

    The first `horizon` frames are shaded and called `mark`. The legend gives the mean of the frame PSNRs.
    Infinite values (perfect frames) are left out.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    for (name, values), dashes in zip(baselines.items(), cycle(("--", ":", "-.")), strict=False):
        values, look = _finite(values), {"color": GREY, "linewidth": 1, "antialiased": False}
        ax.plot(_frames(values), values, dashes, label=_with_mean(name, values), **look)
    for i, (name, values) in enumerate(curves.items()):
        values = _finite(values)
        look = {"color": _colour(i), "linewidth": 0.6, "alpha": 0.4, "antialiased": False}
        if len(curves) <= 2:  # more raw lines than that hide each other
            ax.plot(_frames(values), values, **look)
        ax.plot(_frames(values), _smoothed(values, smooth), color=_colour(i), label=_with_mean(name, values))
    handles, _ = ax.get_legend_handles_labels()
    if horizon:
        ax.axvspan(0.5, horizon + 0.5, color=PALETTE[4], alpha=0.25, linewidth=0)
        handles.append(Patch(color=PALETTE[4], alpha=0.25, label=f"{mark}, {horizon} frames"))
    quiet(ax).set(xlabel="frame", ylabel="PSNR, dB", title=title)
    if curves and smooth > 1:
        ax.set_ylabel(f"PSNR, dB ({smooth}-frame means)")
    ax.margins(x=0.01)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
    return figure


@plt.rc_context(STYLE)
def strategy_bars(table: pd.DataFrame, baseline: int | float) -> Figure:
    """Mean PSNR of every strategy, the best on top, against a static baseline.

    `table` has the columns `variant`, `psnr_mean` and perhaps `psnr_std`, drawn as one standard deviation.
    """
    table = table.sort_values("psnr_mean")
    names, means = table["variant"].astype(str).tolist(), table["psnr_mean"].to_numpy(float)
    spread = table.get("psnr_std", pd.Series(0.0, table.index)).fillna(0).to_numpy(float)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.3 + 0.42 * len(table)), layout="constrained")
    ax.axvline(
        baseline, color=GREY, linestyle="--", linewidth=1.3, label=f"static baseline, {baseline:.1f} dB"
    )
    ax.hlines(names, baseline, means, color="#d0d0d0", linewidth=2)
    ax.errorbar(means, names, xerr=spread, fmt="o", color=PALETTE[0], markersize=8, linewidth=1.6, capsize=3)
    for y, (mean, std) in enumerate(zip(means, spread, strict=True)):
        text = f"{mean:.2f} ± {std:.2f}" if std else f"{mean:.2f}"
        ax.annotate(text, (mean, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    quiet(ax).set(xlabel="mean PSNR, dB", ylim=(-0.6, len(means) - 0.3))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _mosaic(grid: UInt8[np.ndarray, "rows columns h w 3"], gap: int) -> UInt8[np.ndarray, "high wide 3"]:
    """All pictures on one sheet, `gap` pixels apart."""
    rows, columns, height, width, _ = grid.shape
    padded = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=GUTTER)
    sheet = padded.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 3)
    return sheet[:-gap, :-gap]


def _legend_right(ax: Axes) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def _frames(values: np.ndarray) -> np.ndarray:
    return np.arange(1, len(values) + 1)


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over `window` frames, fewer at the ends."""
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()


def _with_mean(name: str, values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{name}, mean {known.mean():.1f} dB" if len(known) else name
