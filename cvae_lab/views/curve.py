"""The PSNR curve under the players: an SVG drawn once, in the page's own text colour."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cvae_lab.views import GREY, PALETTE

WIDTH, HEIGHT = 784, 130
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 20, 22


def cursor_percent(i: int, n: int) -> float:
    """Where frame index i of n lies, in percent of the drawing's width."""
    return 100 * (LEFT + (WIDTH - LEFT - RIGHT) * i / max(n - 1, 1)) / WIDTH


def curve_svg(
    psnr: ArrayLike | None,
    baseline: ArrayLike | None = None,
    horizon: int | None = None,
    numbers: Sequence[int] | None = None,
) -> str:
    """PSNR in dB against frame number, without frames whose value is not finite; empty if none is left.

    Frames are 1, 2, 3, ... or have the `numbers` given, evenly spaced all the same.
    """
    curves = [
        (name, np.asarray(values, float), style)
        for name, values, style in (
            ("static baseline", baseline, f'stroke="{GREY}" stroke-width="1.2" stroke-dasharray="5 3"'),
            ("prediction", psnr, f'stroke="{PALETTE[0]}" stroke-width="1.6"'),
        )
        if values is not None and np.isfinite(np.asarray(values, float)).any()
    ]
    if not curves:
        return ""
    n = max(len(values) for _, values, _ in curves)
    finite = np.concatenate([values[np.isfinite(values)] for _, values, _ in curves])
    low, high = 5 * np.floor(finite.min() / 5), 5 * np.ceil(finite.max() / 5 + 1e-6)
    drawn = "".join(_polyline(values, n, low, high, style) for _, values, style in curves)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="PSNR of every frame, dB"'
        ' font-family="system-ui, sans-serif" font-size="11" fill="currentColor" style="display:block">'
        f"{_shade(n, horizon)}{_axes(numbers or range(1, n + 1), low, high)}{drawn}{_legend(curves, horizon)}</svg>"
    )


def _x(i: int, n: int) -> float:
    return WIDTH * cursor_percent(i, n) / 100


def _y(value: float, low: int | float, high: int | float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _polyline(values: np.ndarray, n: int, low: int | float, high: int | float, style: str) -> str:
    """The curve, broken wherever a value is not finite."""
    runs, pen = [], "M"
    for i, value in enumerate(values):
        if np.isfinite(value):
            runs.append(f"{pen}{_x(i, n):.1f} {_y(value, low, high):.1f}")
        pen = "L" if np.isfinite(value) else "M"
    return f'<path d="{"".join(runs)}" fill="none" stroke-linejoin="round" {style}/>'


def _shade(n: int, horizon: int | None) -> str:
    if not horizon:
        return ""
    width = _x(min(horizon, n) - 1, n) - LEFT
    return (
        f'<rect x="{LEFT}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        f' fill="{PALETTE[4]}" fill-opacity="0.3"/>'
    )


def _axes(numbers: Sequence[int], low: int | float, high: int | float) -> str:
    """Grid lines every 5 or 10 dB with their numbers, and frame numbers below."""
    n = len(numbers)
    step = 5 if high - low <= 20 else 10
    ticks = np.arange(step * np.ceil(low / step), high + 1e-6, step)
    lines = []
    for value in ticks:
        y = _y(value, low, high)
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        lines.append(f'<line {ends} stroke="currentColor" stroke-opacity="0.15"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    every = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if n / size <= 8)
    for i in [0, *range(every - 1, n, every)] if every > 1 else range(n):
        place = f'x="{_x(i, n):.1f}" y="{HEIGHT - 6}"'
        lines.append(f'<text {place} text-anchor="middle">{"frame " * (i == 0)}{numbers[i]}</text>')
    return "".join(lines)


def _legend(curves: list[tuple[str, np.ndarray, str]], horizon: int | None) -> str:
    """One line above the plot: what each stroke is, and its mean over the frames that have a finite value."""
    parts, x = ['<text x="2" y="12">dB</text>'], float(LEFT)
    for name, values, style in reversed(curves):
        text = f"{name}, mean {values[np.isfinite(values)].mean():.1f} dB"
        parts.append(f'<path d="M{x} 8h18" fill="none" {style}/><text x="{x + 23}" y="12">{text}</text>')
        x += 205
    if horizon:
        swatch = f'<rect x="{x}" y="3" width="18" height="10" fill="{PALETTE[4]}" fill-opacity="0.3"/>'
        parts.append(f'{swatch}<text x="{x + 23}" y="12">trained unroll, {horizon} frames</text>')
    return "".join(parts)
