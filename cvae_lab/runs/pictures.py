"""The pictures that README shows, drawn from the embedded figure's moves and from the best reference run."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cvae_lab.data import load
from cvae_lab.data.stage import moves_gallery
from cvae_lab.runs.record import RunFolder
from cvae_lab.runs.reference import excerpt
from cvae_lab.views import figures


def moves(columns: int = 6) -> Figure:
    """Every move of the embedded figure at evenly spaced moments, labels below frames."""
    rows: dict[str, UInt8[Tensor, "n 3 h w"]] = {}
    for name, (frames, labels) in moves_gallery().items():
        at = torch.linspace(0, len(frames) - 1, columns).long()
        rows[name], rows[f"{name} label"] = frames[at], labels[at]
    figure = figures.film_strip(
        rows, range(columns), "The moves of the embedded figure, with their pose labels"
    )
    figure.axes[0].set_yticks(figure.axes[0].get_yticks(), [n if "label" not in n else "" for n in rows])
    figure.axes[0].set_xticks([])
    return figure


def prediction(run: RunFolder, columns: int = 6) -> Figure:
    """Label, truth and prediction of the first test clip at evenly spaced moments."""
    predicted = excerpt(run)
    clip = load(run.config.data, progress=False).tests[0]
    known = sorted(predicted[clip.name])
    at = [known[int(i)] for i in np.linspace(0, len(known) - 1, columns)]
    rows = {
        "label": clip.labels[at],
        "truth": clip.labels[at] if clip.answer is None else clip.answer[at],
        "prediction": torch.from_numpy(np.stack([predicted[clip.name][t] for t in at])),
    }
    figure = figures.film_strip(rows, range(columns))
    figure.axes[0].set_xticks(figure.axes[0].get_xticks(), [f"frame {t}" for t in at])
    return figure


def write(out: Path, run: RunFolder | None) -> list[Path]:
    """moves.png, and prediction.png where there is a run."""
    drawn = {"moves.png": moves()} | ({"prediction.png": prediction(run)} if run else {})
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=100)
    return [out / name for name in drawn]
