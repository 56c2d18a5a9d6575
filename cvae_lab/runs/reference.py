"""Committed records: copies of finished runs without checkpoints, and pictures of these runs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cvae_lab.data import load
from cvae_lab.data.pixels import to_float
from cvae_lab.data.synthetic.dataset import moves_gallery
from cvae_lab.evaluation import metrics
from cvae_lab.evaluation.samples import samples
from cvae_lab.models.device import pick_device, reduced_precision
from cvae_lab.runs.folder import RunFolder
from cvae_lab.runs.result import RunError
from cvae_lab.runs.tables import variant
from cvae_lab.training import checkpoint
from cvae_lab.views import figures

DRAWS = 8  # number of predictions of one clip, each with another z
KEPT = ("config.json", "history.csv", "psnr_per_frame.csv")
ENDS = ("result.json", "failure.json")  # files that mark a run that ended, with or without a result
COLUMNS = 16  # number of frames per row of excerpt.png


def export(run: RunFolder, out: Path, pictures: bool = False) -> Path:
    """Copy the small files of a run to a folder of the same name in `out`; return that folder.

    Args:
        pictures: also write `draws.csv` (see `draws`) and predicted frames. `excerpt.png` contains the frames with
            lossless compression, and `excerpt.csv` gives the clip and frame number of each. The frames are every sixth
            frame of the first test clip, and of every test clip the four best, the four worst and every 64th frame.

    Raises RunError if `out` already contains a run of this name.
    """
    folder = out / run.path.name
    if (folder / "result.json").exists():
        raise RunError(
            f"{folder} already contains a run; export to an empty folder, and give runs different names."
        )
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
    """Return the PSNR (dB) of each frame in several predictions of one clip, each with another sample of z.

    The table has one row per frame, from 1, and DRAWS columns. The clip is the first test clip with true frames, or the
    validation clip if no test clip has true frames. The values are computed with best.pt, or read from draws.csv in an
    exported copy. Raises RunError if both files are missing.
    """
    if (run.path / "draws.csv").exists():
        return pd.read_csv(run.path / "draws.csv", index_col="frame")
    if not (run.path / "best.pt").exists():
        raise RunError(f"{run.path} has neither best.pt nor draws.csv; use a run with best.pt.")
    data = load(run.config.data, progress=False, height=run.config.model.height)
    clip = next(clip for clip in (*data.tests, *data.val.as_clips()) if clip.answer is not None)
    model = checkpoint.load_model(run.path / "best.pt", pick_device(run.config.train.device))
    device = next(model.parameters()).device
    first, labels = to_float(clip.first[None].to(device)), to_float(clip.labels[None].to(device))
    with reduced_precision(run.config.train, device):
        videos = samples(model, first, labels, DRAWS, torch.Generator().manual_seed(0))[:, 0].cpu()
    scores = metrics.psnr(videos, to_float(clip.answer[1:]).expand_as(videos))
    frame = pd.RangeIndex(1, len(clip), name="frame")
    return pd.DataFrame(scores.T.numpy(), index=frame, columns=map(str, range(DRAWS)))


def excerpt(run: RunFolder) -> dict[str, dict[int, np.ndarray]]:
    """Return predicted frames by clip and frame number, uint8 of shape (3, h, w).

    For a run, all frames are returned; for an exported copy, the frames in `excerpt.png`.
    """
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
    """Draw every move of the synthetic figure at evenly spaced times, with the pose labels below the frames."""
    rows: dict[str, UInt8[Tensor, "n 3 h w"]] = {}
    for name, (frames, labels) in moves_gallery().items():
        moments = torch.linspace(0, len(frames) - 1, columns).long()
        rows[name], rows[f"{name} label"] = frames[moments], labels[moments]
    figure = figures.frame_strip(rows, range(columns), "Movements of the synthetic figure")
    figure.axes[0].set_yticks(figure.axes[0].get_yticks(), [n if "label" not in n else "" for n in rows])
    figure.axes[0].set_xticks([])
    return figure


def prediction_picture(run: RunFolder, columns: int = 6) -> Figure:
    """Draw label, true frame and prediction of the first test clip at evenly spaced times."""
    predicted = excerpt(run)
    clip = load(run.config.data, progress=False, height=run.config.model.height).tests[0]
    known = sorted(predicted[clip.name])
    moments = [known[int(i)] for i in np.linspace(0, len(known) - 1, columns)]
    rows = {
        "label": clip.labels[moments],
        "truth": clip.labels[moments] if clip.answer is None else clip.answer[moments],
        "prediction": torch.from_numpy(np.stack([predicted[clip.name][t] for t in moments])),
    }
    figure = figures.frame_strip(rows, range(columns))
    figure.axes[0].set_xticks(figure.axes[0].get_xticks(), [f"frame {t}" for t in moments])
    return figure


def write_pictures(out: Path, run: RunFolder | None) -> list[Path]:
    """Write moves.png, and prediction.png if `run` is given; return the files."""
    drawn = {"moves.png": moves_picture()} | ({"prediction.png": prediction_picture(run)} if run else {})
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=100)
    return [out / name for name in drawn]


def learning_curve(run: RunFolder) -> pd.DataFrame:
    """Return one row per epoch of a run: frames, heldout_psnr and val_psnr_prior (dB), mse, weighted_kl and lr.

    `frames` is the number of frames that were predicted in training so far. `weighted_kl` is the second term of the
    loss, so mse + weighted_kl = loss if all frames have equal weights.
    """
    train, history = run.config.train, run.history
    table = history[["heldout_psnr", "val_psnr_prior", "mse", "lr"]].copy()
    table.insert(0, "frames", history["step"] * train.batch_size * (train.n_frames - 1))
    return table.assign(weighted_kl=(history["loss"] - history["mse"]).clip(lower=0.0))


def learning_runs(root: Path) -> list[RunFolder]:
    """Return the runs of a folder whose learning curves are shown: finished ones, and those with a `failure.json`.

    `failure.json` contains the error message of a run that stopped early, with hardware, versions and commit.
    """
    return sorted(
        (RunFolder(f.parent) for f in root.glob("*/*.json") if f.name in ENDS), key=lambda r: r.path
    )


def learning_curve_picture(runs: Sequence[RunFolder]) -> Figure:
    """Draw PSNR (left) and the two terms of the loss (right) against the frames that were predicted in training."""
    with plt.rc_context(figures.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
        for run, colour in zip(runs, figures.PALETTE, strict=False):
            curve, name = learning_curve(run), variant(run)
            thousands, scored = curve["frames"] / 1000, curve["heldout_psnr"].notna()
            name += "" if run.done else " (stopped)"
            left.plot(thousands[scored], curve["heldout_psnr"][scored], "o-", color=colour, label=name)
            form = "" if len(curve) > 1 else "o"  # a line through one point is not visible
            right.plot(thousands, curve["mse"], f"-{form}", color=colour, label=f"{name}: error")
            if (curve["weighted_kl"] > 0).any():
                right.plot(thousands, curve["weighted_kl"].replace(0.0, np.nan), f"--{form}", color=colour,
                           label=f"{name}: KL")  # fmt: skip
        for run in [run for run in runs if run.done][:1]:
            baseline = run.result["baseline_static"]
            left.axhline(baseline, color=figures.GREY, linestyle=":", label="static baseline")
        figures.quiet(left).set(ylabel="held-out PSNR, dB")
        figures.quiet(right).set(ylabel="terms of the loss", yscale="log")
        for panel in (left, right):
            panel.set_xlabel("thousand predicted frames")
            panel.set_xlim(left=0)
            panel.legend(fontsize=9)
    return figure


def learning_summary(run: RunFolder) -> str:
    """Return a few sentences about the length of a run, its scores and its loss, with numbers of the record.

    For a run with `failure.json`, they name the last finished epoch and the error message.
    """
    if not run.done:
        return _failure_summary(run)
    curve, result = learning_curve(run), run.result
    scores = curve["heldout_psnr"].dropna()
    last, early = curve.iloc[-1], scores.iloc[len(scores) // 2]
    fraction = last["weighted_kl"] / (last["mse"] + last["weighted_kl"])
    return (
        f"{variant(run)}: {result['minutes']:.1f} minutes on {result['hardware'].split(',')[0]}, "
        f"{result['epochs']} epochs, {last['frames']:,.0f} predicted frames. The held-out PSNR is "
        f"{scores.iloc[-1]:.2f} dB at the end and was {early:.2f} dB at half of the evaluations. The test PSNR is "
        f"{result['psnr_final']:.2f} dB, and that of the static baseline {result['baseline_static']:.2f} dB. The final "
        f"loss is {last['mse']:.4f} (error) + {last['weighted_kl']:.4g} (weighted KL); {fraction:.1%} of it is KL."
    )


def _failure_summary(run: RunFolder) -> str:
    failure, last = json.loads((run.path / "failure.json").read_text()), run.history.iloc[-1]
    return (
        f"{variant(run)}: stopped after epoch {last['epoch']:.0f} of {run.config.train.epochs} on "
        f"{failure['hardware'].split(',')[0]}, after {learning_curve(run)['frames'].iloc[-1]:,.0f} predicted frames. "
        f"At the end of that epoch: error {last['mse']:.4f}, KL {last['kl_nats']:,.0f} nats per frame at a KL weight "
        f"of {last['kl_weight']:g}, held-out PSNR {last['heldout_psnr']:.2f} dB. The message was: "
        f'"{failure["message"]}"'
    )
