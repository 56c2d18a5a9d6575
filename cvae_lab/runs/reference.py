"""Small copies of finished runs, fit to be committed: scores, history and a few predicted frames, no checkpoints."""

import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cvae_lab.data import load
from cvae_lab.data.pixels import to_float
from cvae_lab.data.synthetic.dataset import moves_gallery
from cvae_lab.evaluation import metrics, predict_clips
from cvae_lab.models.device import pick_device
from cvae_lab.runs.folder import RunError, RunFolder
from cvae_lab.training import checkpoint
from cvae_lab.views import figures

DRAWS = 8  # videos of one clip, each with z of its own
KEPT = ("config.json", "history.csv", "psnr_per_frame.csv")
COLUMNS = 16  # frames side by side on the sheet


def export(run: RunFolder, out: Path, pictures: bool = False) -> Path:
    """Copy a run's small files to `out`/name; with `pictures`, also a sheet of predicted frames, and its `draws`.

    The sheet (`excerpt.png`, lossless, with `excerpt.csv` naming clip and frame of each picture) holds every
    sixth frame of the first test clip, and the four best, the four worst and every 64th of every clip.
    """
    folder = out / run.path.name
    if (folder / "result.json").exists():
        raise RunError(f"{folder} holds a run already; export to an empty folder, runs of different names.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run.path / name, folder / name)
    if pictures:
        _write_sheet(run, folder)
        draws(run).to_csv(folder / "draws.csv", float_format="%.2f")
    shutil.copyfile(run.path / "result.json", folder / "result.json")
    return folder


def _write_sheet(run: RunFolder, folder: Path) -> None:
    predictions, chosen = run.predictions(), _chosen(run.psnr)
    frames = np.stack([predictions[clip][frame - 1] for clip, frame in chosen]).transpose(0, 2, 3, 1)
    padding = -len(frames) % COLUMNS
    frames = np.concatenate([frames, np.zeros((padding, *frames.shape[1:]), np.uint8)])
    rows = frames.reshape(-1, COLUMNS, *frames.shape[1:]).swapaxes(1, 2)
    iio.imwrite(folder / "excerpt.png", rows.reshape(-1, COLUMNS * frames.shape[2], 3))
    pd.DataFrame(chosen, columns=["clip", "frame"]).to_csv(folder / "excerpt.csv", index=False)


def _chosen(psnr: pd.DataFrame) -> list[tuple[str, int]]:
    keys: set[tuple[str, int]] = set()
    tests = [clip for clip in psnr["clip"].unique() if not clip.startswith("val")] or list(
        psnr["clip"].unique()
    )
    for clip in tests:
        scores = psnr[psnr["clip"] == clip].sort_values("psnr")
        extremes = [*scores["frame"][:4], *scores["frame"][-4:]]
        regular = scores["frame"][scores["frame"] % (6 if clip == tests[0] else 64) == 0]
        keys |= {(clip, int(frame)) for frame in (*extremes, *regular)}
    return sorted(keys)


def draws(run: RunFolder) -> pd.DataFrame:
    """PSNR (dB) of the first answered clip's frames (rows, from 1) in DRAWS videos (columns), z of each drawn anew.

    The first test clip with an answer; the validation clip where there is none.

    By the run's weights, or, in a copy made with pictures, as found then. RunError where there is neither.
    """
    if (run.path / "draws.csv").exists():
        return pd.read_csv(run.path / "draws.csv", index_col="frame")
    if not (run.path / "best.pt").exists():
        raise RunError(
            f"{run.path} has neither best.pt nor draws.csv; show a run of your own, with its weights."
        )
    data = load(run.config.data, progress=False)
    clip = next(clip for clip in (*data.tests, *data.val.as_clips()) if clip.answer is not None)
    model = checkpoint.load_model(run.path / "best.pt", pick_device(run.config.train.device))
    videos = torch.stack(predict_clips(model, [clip] * DRAWS, run.config.train))
    scores = metrics.psnr(videos, to_float(clip.answer[1:]).expand_as(videos))
    frame = pd.RangeIndex(1, len(clip), name="frame")
    return pd.DataFrame(scores.T.numpy(), index=frame, columns=map(str, range(DRAWS)))


def excerpt(run: RunFolder) -> dict[str, dict[int, np.ndarray]]:
    """Predicted frames by clip and frame number, (3, h, w) uint8: all of them, or a reference run's sheet."""
    if (run.path / "predictions.npz").exists():
        return {clip: dict(enumerate(frames, 1)) for clip, frames in run.predictions().items()}
    table = pd.read_csv(run.path / "excerpt.csv", dtype={"clip": str})
    sheet = iio.imread(run.path / "excerpt.png")
    width, height = sheet.shape[1] // COLUMNS, sheet.shape[0] // -(-len(table) // COLUMNS)
    frames: dict[str, dict[int, np.ndarray]] = {}
    for index, row in enumerate(table.itertuples()):
        top, left = height * (index // COLUMNS), width * (index % COLUMNS)
        picture = sheet[top : top + height, left : left + width].transpose(2, 0, 1)
        frames.setdefault(row.clip, {})[int(row.frame)] = picture
    return frames


def moves_picture(columns: int = 6) -> Figure:
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


def prediction_picture(run: RunFolder, columns: int = 6) -> Figure:
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


def write_pictures(out: Path, run: RunFolder | None) -> list[Path]:
    """moves.png, and prediction.png where there is a run."""
    drawn = {"moves.png": moves_picture()} | ({"prediction.png": prediction_picture(run)} if run else {})
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=100)
    return [out / name for name in drawn]
