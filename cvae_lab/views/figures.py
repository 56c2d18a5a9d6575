"""Matplotlib figures in one style, 9 inches wide. Figures are returned with alternative text, not shown or saved."""

import math
import textwrap
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
from cvae_lab.views.figure_style import (
    COLUMN_LABELS,
    DPI,
    STYLE,
    WIDTH,
    DescribedFigure,
    described,
    legend_below,
    quiet,
    save_vector,
    smoothed,
    with_band,
)

__all__ = [
    "COLUMN_LABELS", "DPI", "GREY", "PALETTE", "STYLE", "WIDTH", "frame_strip", "histories", "psnr_per_frame", "quiet",
    "save_vector", "schedule", "strategy_bars", "with_band",
]  # fmt: skip
GUTTER = 225  # light grey between pictures, so that white labels have an edge
MANY = 12  # for this number of runs or more, `histories` draws their range, the best and the worst run
LOGARITHMIC = ("loss", "mse", "kl_nats", "lr")


@plt.rc_context(STYLE)
def frame_strip(
    rows: Mapping[str, Frames],
    indices: Sequence[int],
    title: str = "",
    pixels: int | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw the frames at `indices`: one row per clip with its name, one column per frame, with `names` or index + 1.

    `pixels` is the number of screen pixels per frame pixel at 100 dpi. By default the strip fills the width. Frames
    that are too large for the width are reduced.
    """
    if not rows or not len(indices):
        raise ValueError("There is nothing to show: give at least one row of frames and one index.")
    grid = np.stack([to_uint8(frames[list(indices)]).permute(0, 2, 3, 1).numpy() for frames in rows.values()])
    gap, left, top, bottom = 2, 16 + 8 * max(map(len, rows)), 34 if title else 8, 26
    height, width = grid.shape[2] + gap, grid.shape[3] + gap
    room = (WIDTH * DPI - left - 8) / (width * len(indices))
    pixels = min(pixels or math.inf, int(room) or room)
    wide, high = pixels * (width * len(indices) - gap), pixels * (height * len(rows) - gap)
    size = np.array([left + wide + 8, top + high + bottom])
    figure = plt.figure(figsize=tuple(size / DPI), FigureClass=DescribedFigure)
    ax = figure.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))
    ax.imshow(_mosaic(grid, gap), interpolation="nearest" if pixels >= 1 else "antialiased", aspect="auto")
    numbers = [str(index + 1) for index in indices]
    columns = names or ["frame " + numbers[0], *numbers[1:]]
    ax.set_xticks(np.arange(len(columns)) * width + (width - gap - 1) / 2, columns)
    ax.set_yticks(np.arange(len(rows)) * height + (height - gap - 1) / 2, rows)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_color(str(GUTTER / 255))
    ax.set_title(title)
    listed = f"Columns: {'; '.join(names)}".replace("\n", ", ") if names else f"Frames: {', '.join(numbers)}"
    return described(figure, f"{title or 'Strip of frames'}. Rows: {', '.join(rows)}. {listed}.")


@plt.rc_context(STYLE)
def schedule(curves: Mapping[str, ArrayLike], ylabel: str, title: str = "") -> Figure:
    """Draw piecewise constant curves, one value per epoch. Later curves are thinner, so equal curves are visible."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained", FigureClass=DescribedFigure)
    for i, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        thickness = 1.3 + 0.9 * (len(curves) - 1 - i)
        ax.stairs(values, np.arange(len(values) + 1) + 0.5, baseline=None, label=name, linewidth=thickness)
        ax.patches[-1].set_edgecolor(PALETTE[i % len(PALETTE)])
    quiet(ax).set(xlabel="epoch", ylabel=ylabel, title=title)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    ends = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items())
    return described(figure, f"{title or 'Schedule'}: {ylabel} per epoch. {ends}.")


@plt.rc_context(STYLE)
def histories(
    histories: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    columns: Sequence[str] = ("mse", "kl_nats", "val_psnr_prior"),
    baseline: int | float | None = None,
) -> Figure:
    """Draw one panel per column of the histories of runs, three panels per row.

    Epochs without a value are skipped. If a name has several histories (seeds), a line shows their mean and a band
    their range, over the fraction of training. For 12 names or more, one band shows the range of all runs, and lines
    show the best and the worst run by the last column (highest PSNR, or lowest value of another column).

    Args:
        histories: by name, one history or a sequence of histories with one per seed.
        columns: columns to draw. Their titles are in `COLUMN_LABELS`.
        baseline: PSNR of the static baseline in dB, drawn in the PSNR panels.
    """
    groups = {name: [h] if isinstance(h, pd.DataFrame) else list(h) for name, h in histories.items()}
    if len(groups) >= MANY:
        groups = _extremes(groups, columns[-1])
    several = any(len(group) > 1 for group in groups.values())
    figure, axes = _panels(len(columns))
    for ax, column in zip(axes.flat, columns, strict=False):
        for i, (name, group) in enumerate(groups.items()):
            number = i - (len(histories) >= MANY)  # without the grey band of all runs
            colour = GREY if number < 0 else PALETTE[number % len(PALETTE)]
            _band(ax, group, column, name, colour) if several else _line(ax, group[0], column, name, colour)
        _scale_axis(ax, column, [h[column] for group in groups.values() for h in group])
        if baseline is not None and "psnr" in column:
            ax.axhline(baseline, color=GREY, linestyle="--", linewidth=1.2, label="static baseline")
        quiet(ax).set(xlabel="fraction of training" if several else "epoch")
        ax.set_title(COLUMN_LABELS.get(column, column))
        ax.xaxis.set_major_locator(MaxNLocator(integer=not several, nbins=4))
    _same_time_axis(figure)
    legend_below(figure, columns=1 if len(histories) >= MANY else 5)
    titles = ", ".join(ax.get_title() for ax in figure.axes)
    return described(figure, f"Training histories of {', '.join(groups)}. Panels: {titles}.")


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    """Create a figure with `count` panels, three per row."""
    rows = math.ceil(count / 3)
    figure, axes = plt.subplots(
        rows, min(3, count), figsize=(WIDTH, 2.4 * rows + 0.3), layout="constrained", squeeze=False,
        FigureClass=DescribedFigure,
    )  # fmt: skip
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, axes


def _same_time_axis(figure: Figure) -> None:
    """Set the same range of epochs in all panels, because some columns have no value in the first epochs."""
    ends = [ax.get_xlim() for ax in figure.axes]
    for ax in figure.axes:
        ax.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))


def _extremes(groups: Mapping[str, list[pd.DataFrame]], column: str) -> dict[str, list[pd.DataFrame]]:
    """Return three groups of histories: all, the best group and the worst group by the last value of `column`."""
    last = {name: np.mean([h[column].dropna().iloc[-1] for h in group]) for name, group in groups.items()}
    ranked = sorted(last, key=last.__getitem__, reverse="psnr" in column)
    everything = [history for group in groups.values() for history in group]
    label = COLUMN_LABELS.get(column, column)
    return {
        f"all {len(groups)} runs, mean and range": everything,
        f"best by {label}: {ranked[0]}": groups[ranked[0]],
        f"worst by {label}: {ranked[-1]}": groups[ranked[-1]],
    }


def _scale_axis(ax: Axes, column: str, values: Sequence[pd.Series]) -> None:
    """Set a logarithmic axis for columns whose values span decades, and the range from 0 to 1 for ratios."""
    if column in LOGARITHMIC and any((series > 0).any() for series in values):
        ax.set_yscale("log", nonpositive="mask")
        low, high = ax.get_ylim()
        ticks = LogLocator(subs=(1, 3)) if high < 1e3 * low else LogLocator(numticks=6)
        ax.yaxis.set(major_locator=ticks, minor_locator=NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
    if column in ("beta", "tf_ratio"):
        ax.set_ylim(-0.05, max(1.05, ax.get_ylim()[1]) if column == "tf_ratio" else None)


def _line(ax: Axes, history: pd.DataFrame, column: str, name: str, colour: str) -> None:
    known = history.dropna(subset=[column])
    ax.plot(
        known["epoch"], known[column], label=name, color=colour, linewidth=1.2,
        marker="o" if len(known) < 3 else "",
    )  # fmt: skip


def _band(ax: Axes, group: Sequence[pd.DataFrame], column: str, name: str, colour: str) -> None:
    """Draw mean and range over seeds at 100 fractions of training, because numbers of epochs may differ."""
    fractions = np.linspace(0, 1, 101)[1:]
    known = [history.dropna(subset=[column]) for history in group]
    known = [history for history in known if len(history)]
    if not known:
        return
    values = np.stack([np.interp(fractions, h["epoch"] / h["epoch"].iloc[-1], h[column]) for h in known])
    with_band(ax, fractions, values.mean(0), values.min(0), values.max(0), name, colour)


@plt.rc_context(STYLE)
def psnr_per_frame(
    curves: Mapping[str, ArrayLike],
    baselines: Mapping[str, ArrayLike],
    horizon: int | None = None,
    title: str = "",
    mark: str = "trained unroll",
    smooth: int = 15,
) -> Figure:
    """Draw the PSNR in dB of frames 1, 2, ... as curves that are averaged over `smooth` frames.

    One or two curves are also drawn without averaging. The first `horizon` frames are shaded, with the name `mark` in
    the legend. The legend also gives the mean of the frame PSNRs. Infinite values (perfect frames) are left out.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained", FigureClass=DescribedFigure)
    for (name, values), dashes in zip(baselines.items(), cycle(("--", ":", "-.")), strict=False):
        values, style = _finite(values), {"color": GREY, "linewidth": 1, "antialiased": False}
        ax.plot(_frames(values), values, dashes, label=_with_mean(name, values), **style)
    for i, (name, values) in enumerate(curves.items()):
        values = _finite(values)
        style = {"color": PALETTE[i % len(PALETTE)], "linewidth": 0.6, "alpha": 0.4, "antialiased": False}
        if len(curves) <= 2:  # more than two curves without averaging would hide each other
            ax.plot(_frames(values), values, **style)
        ax.plot(
            _frames(values),
            smoothed(values, smooth),
            color=PALETTE[i % len(PALETTE)],
            label=_with_mean(name, values),
        )
    handles, _ = ax.get_legend_handles_labels()
    if horizon:
        ax.axvspan(0.5, horizon + 0.5, color=PALETTE[4], alpha=0.25, linewidth=0)
        handles.append(Patch(color=PALETTE[4], alpha=0.25, label=f"{mark}, {horizon} frames"))
    quiet(ax).set(xlabel="frame", ylabel="PSNR, dB", title=title)
    if curves and smooth > 1:
        ax.set_ylabel(f"PSNR, dB ({smooth}-frame means)")
    ax.margins(x=0.01)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
    means = "; ".join(handle.get_label() for handle in handles)
    return described(figure, f"{title or 'PSNR per frame'}. Curves over frames: {means}.")


@plt.rc_context(STYLE)
def strategy_bars(table: pd.DataFrame, baseline: int | float) -> Figure:
    """Draw the mean PSNR of every variant and of the static baseline, the best on top. The title gives the result.

    `table` has the columns `variant`, `psnr_mean` and optionally `psnr_std`, which is drawn as error bars.
    """
    table = table.sort_values("psnr_mean")
    names, means = table["variant"].astype(str).tolist(), table["psnr_mean"].to_numpy(float)
    spread = table.get("psnr_std", pd.Series(0.0, table.index)).fillna(0).to_numpy(float)
    figure, ax = plt.subplots(
        figsize=(WIDTH, 1.6 + 0.42 * len(table)), layout="constrained", FigureClass=DescribedFigure
    )
    ax.axvline(
        baseline, color=GREY, linestyle="--", linewidth=1.3, label=f"static baseline, {baseline:.1f} dB"
    )
    ax.hlines(names, baseline, means, color="#d0d0d0", linewidth=2)
    ax.errorbar(means, names, xerr=spread, fmt="o", color=PALETTE[0], markersize=8, linewidth=1.6, capsize=3)
    texts = [
        f"{mean:.2f} ± {std:.2f}" if std else f"{mean:.2f}" for mean, std in zip(means, spread, strict=True)
    ]
    for y, (mean, text) in enumerate(zip(means, texts, strict=True)):
        ax.annotate(text, (mean, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    quiet(ax).set(xlabel="mean PSNR, dB", ylim=(-0.6, len(means) - 0.3))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    figure.legend(loc="outside lower center")
    figure.suptitle(title := _result(names, means, spread, baseline), x=0.01, ha="left", fontsize=11)
    listed = "; ".join(f"{name} {text} dB" for name, text in zip(names[::-1], texts[::-1], strict=True))
    return described(figure, f"{title}. Mean PSNR: {listed}; static baseline {baseline:.2f} dB.")


def _result(names: Sequence[str], means: np.ndarray, spread: np.ndarray, baseline: int | float) -> str:
    """Return a sentence: the best variant, the distance to the second, and the standard deviation over seeds."""
    if len(names) == 1:
        return f"{names[0]}: {means[0] - baseline:+.2f} dB against the static baseline"
    sentence = f"Best: {names[-1]}, {means[-1]:.2f} dB; {names[-2]} is {means[-1] - means[-2]:.2f} dB lower"
    deviation = f" (standard deviation over seeds {max(spread[-2:]):.2f} dB)"
    return textwrap.fill(sentence + deviation * bool(spread[-2:].any()), 95)


def _mosaic(grid: UInt8[np.ndarray, "rows columns h w 3"], gap: int) -> UInt8[np.ndarray, "high wide 3"]:
    """Return all pictures in one array, with gaps of `gap` pixels."""
    rows, columns, height, width, _ = grid.shape
    padded = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=GUTTER)
    return padded.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 3)[:-gap, :-gap]


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def _frames(values: np.ndarray) -> np.ndarray:
    return np.arange(1, len(values) + 1)


def _with_mean(name: str, values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{name}, mean {known.mean():.1f} dB" if len(known) else name
