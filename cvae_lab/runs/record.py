"""The run folder: written once, read by every comparison. `result.json` comes last; without it a run is not done."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab import checkpoint, metrics
from cvae_lab.config import RunConfig, TrainConfig
from cvae_lab.cvae import CVAE
from cvae_lab.data.clips import Clip, Dataset
from cvae_lab.device import keep_memory, pick_device, reduced_precision
from cvae_lab.refine import predict_refined
from cvae_lab.rollout import predict
from cvae_lab.state import Record, TrainState
from cvae_lab.views import player, to_uint8


class RunError(ValueError):
    """A run folder that is missing, unfinished or not ours; the message says which."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    # -- writing ---------------------------------------------------------------------------------------------

    def begin(self, config: RunConfig, resume: bool = True) -> TrainState:
        """A fresh state, or that of `last.pt` where an interrupted run of the same config is found.

        A run has its process to itself, so `threads` and what it does with freed memory are set here, for the
        process. Nothing is written: a run that is refused, or fails before its first epoch ends, leaves the folder
        as it was.
        """
        keep_memory()
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        last = self.path / "last.pt"
        if not last.exists():
            return checkpoint.begin(config)
        if not resume:
            raise RunError(f"{self.path} holds a run already; resume it, or choose another folder.")
        return checkpoint.resume(last, config)

    def log(self, state: TrainState, config: RunConfig) -> None:
        """After an epoch: config, history, `last.pt`, and `best.pt` where the held-out score improved."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "result.json").unlink(missing_ok=True)  # that of a run that goes on
        self._write("config.json", config.to_json())
        scores = [record["heldout_psnr"] for record in state.history]
        if np.isfinite(scores[-1]) and scores[-1] >= np.nanmax(scores):
            checkpoint.save(self.path / "best.pt", state, config)
        # Second: interrupted in between, the epoch is run again, and no best one is ever missing.
        checkpoint.save(self.path / "last.pt", state, config)
        self._write("history.csv", pd.DataFrame(state.history).to_csv(index=False))

    def finish(self, config: RunConfig, data: Dataset, seed: int = 0, film: bool = True) -> dict[str, Any]:
        """Predict validation and test clips with `best.pt`; write predictions, scores and, last, the result.

        `film` adds a GIF of all test clips and a player of the first, which take longer than all else.
        """
        model = checkpoint.load_model(self.path / "best.pt", pick_device(config.train.device))
        clips = [*data.val.as_clips()[:1], *data.tests]
        predictions = predict_clips(model, clips, config.train, seed)
        scores = pd.concat([_score(clip, frames) for clip, frames in zip(clips, predictions, strict=True)])
        self._write("psnr_per_frame.csv", scores.to_csv(index=False, float_format="%.4f"))
        arrays = {
            clip.name: to_uint8(frames).numpy() for clip, frames in zip(clips, predictions, strict=True)
        }
        self._write_predictions(arrays)
        if film:
            write_grid_gif(self.path / "predictions.gif", clips[1:] or clips, predictions[1:] or predictions)
            write_player(
                self.path / "player.html", (clips[1:] or clips)[0], (predictions[1:] or predictions)[0]
            )
        result = _result(config, self.history, scores, model, clips)
        self._write("result.json", json.dumps(result, indent=2))
        return result

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(self.path / name)

    def _write_predictions(self, arrays: dict[str, np.ndarray]) -> None:
        temporary = self.path / f".predictions.{os.getpid()}.npz"
        np.savez_compressed(temporary, **arrays)
        temporary.replace(self.path / "predictions.npz")

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the run was finished."""
        return (self.path / "result.json").exists()

    def _read(self, name: str) -> str:
        file = self.path / name
        if not file.exists():
            raise RunError(f"{self.path} is no finished run: it has no {name}.")
        return file.read_text()

    @cached_property
    def config(self) -> RunConfig:
        """What the run was asked to be. RunError where another version wrote it."""
        text = self._read("config.json")
        try:
            return RunConfig.from_json(text)
        except (TypeError, KeyError) as error:
            raise RunError(
                f"{self.path}/config.json is not one of this version ({error}); train it again."
            ) from error

    @cached_property
    def result(self) -> dict[str, Any]:
        """What came out, with hardware, versions and commit."""
        result = json.loads(self._read("result.json"))
        if missing := {"strategy", "preset", "psnr_mean", "psnr_by_clip", "heldout_psnr"} - set(result):
            raise RunError(f"{self.path}/result.json is no result of this lab: it has no {min(missing)}.")
        return result

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per epoch; columns as in `training.fit`."""
        self._read("history.csv")
        return pd.read_csv(self.path / "history.csv")

    @cached_property
    def psnr(self) -> pd.DataFrame:
        """Columns clip, frame (from 1), psnr, baseline_static, in dB."""
        self._read("psnr_per_frame.csv")
        return pd.read_csv(self.path / "psnr_per_frame.csv", dtype={"clip": str})

    def predictions(self) -> dict[str, np.ndarray]:
        """Predicted frames 1 to T-1 of each clip, uint8 (t, 3, h, w)."""
        if not (self.path / "predictions.npz").exists():
            raise RunError(f"{self.path} has no predictions.npz; reference runs keep none.")
        with np.load(self.path / "predictions.npz", allow_pickle=False) as arrays:
            return dict(arrays)


def predict_clips(
    model: CVAE, clips: Sequence[Clip], config: TrainConfig, seed: int = 0, refined: bool = False
) -> list[Float[Tensor, "_ 3 _ _"]]:
    """Predictions of all clips in one batch, z from the prior; shorter ones padded with their last label.

    At the precision of the run's `config`. `refined` takes the second looks of `refine.py`, that at the mirror image
    only for a model trained with flips.
    """
    device = next(model.parameters()).device
    longest = max(len(clip.labels) for clip in clips)
    padding = [clip.labels[-1:].expand(longest - len(clip.labels), -1, -1, -1) for clip in clips]
    labels = [torch.cat([clip.labels, extra]) for clip, extra in zip(clips, padding, strict=True)]
    first = torch.stack([clip.first for clip in clips]).to(device).float() / 255
    generator = torch.Generator().manual_seed(seed)
    with reduced_precision(config, device):
        method = partial(predict_refined, mirror=config.flip) if refined else predict
        frames = method(model, first, torch.stack(labels).to(device).float() / 255, generator).cpu()
    return [row[: len(clip.labels) - 1] for row, clip in zip(frames, clips, strict=True)]


def write_grid_gif(
    path: Path, clips: Sequence[Clip], predictions: Sequence[Float[Tensor, "_ 3 _ _"]], scale: int = 2
) -> None:
    """One GIF, a row per clip: label | truth where known | prediction; every second frame, at full speed."""
    length = min(len(frames) for frames in predictions)
    rows = []
    for clip, frames in zip(clips, predictions, strict=True):
        truth = None if clip.answer is None else clip.answer[1 : length + 1 : 2]
        rows.append(player.panels(clip.labels[1 : length + 1 : 2], truth, frames[:length:2], scale))
    width = max(row.shape[2] for row in rows)
    padded = [np.pad(row, ((0, 0), (1, 1), (0, width - row.shape[2]), (0, 0))) for row in rows]
    player.write_gif(path, np.concatenate(padded, axis=1), fps=10)


def write_player(path: Path, clip: Clip, frames: Float[Tensor, "s 3 h w"]) -> None:
    """The stand-alone player of one clip: label | truth where known | prediction, and the scores where known."""
    known: dict[str, Any] = {}
    if clip.answer is not None:
        truth = clip.answer.float() / 255
        known = {"psnr": metrics.psnr(frames, truth[1:]).numpy(), "truth": clip.answer[1:]}
        known["baseline"] = metrics.static_baseline(truth).numpy()
    player.write_html(path, clip.labels[1:], frames, title=f"Clip {clip.name}", **known)


def _score(clip: Clip, prediction: Float[Tensor, "s 3 h w"]) -> pd.DataFrame:
    columns = ["clip", "frame", "psnr", "baseline_static", "ssim"]
    if clip.answer is None:
        return pd.DataFrame(columns=columns)
    truth = clip.answer.float() / 255
    ssim = np.full(len(prediction), np.nan)
    ssim[::8] = metrics.ssim(prediction[::8], truth[1::8]).numpy()  # of every eighth frame: it is slow
    values = [metrics.psnr(prediction, truth[1:]).numpy(), metrics.static_baseline(truth).numpy(), ssim]
    frame = np.arange(1, len(truth))
    return pd.DataFrame(dict(zip(columns, [clip.name, frame, *values], strict=True)))


def _result(
    config: RunConfig, history: pd.DataFrame, scores: pd.DataFrame, model: CVAE, clips: Sequence[Clip]
) -> dict[str, Any]:
    by_clip = scores.groupby("clip", sort=False)[["psnr", "baseline_static", "ssim"]].mean()
    tests = [clip.name for clip in clips[1:] if clip.answer is not None]
    scored = by_clip.loc[tests or [clips[0].name]]
    best = history.loc[history["heldout_psnr"].idxmax()]
    return {
        "strategy": config.train.kl_strategy, "tf_strategy": config.train.tf_strategy,
        "preset": config.model.name, "seed": config.train.seed, "data": Path(config.data).name,
        "scored_on": "test" if tests else "validation",
        "psnr_mean": scored["psnr"].mean(), "baseline_static": scored["baseline_static"].mean(),
        "ssim_mean": scored["ssim"].mean(), "grade": metrics.grade(scored["psnr"].mean()),
        "psnr_by_clip": by_clip["psnr"].round(3).to_dict(),
        "val_psnr_prior": best["val_psnr_prior"], "val_psnr_posterior": best["val_psnr_posterior"],
        "heldout_psnr": best["heldout_psnr"], "best_epoch": int(best["epoch"]),
        "kl_nats": history["kl_nats"].iloc[-1], "epochs": int(history["epoch"].iloc[-1]),
        "minutes": history["seconds"].iloc[-1] / 60, "parameters": sum(p.numel() for p in model.parameters()),
        "command": config.command(), **environment(),
    }  # fmt: skip


def environment() -> dict[str, str]:
    """Hardware, versions and commit, for a reader who wants to know where a number came from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return {
        "hardware": f"{device}, {os.cpu_count()} CPU cores", "python": platform.python_version(),
        "torch": torch.__version__, "cvae_lab": version("cvae-lab"), "commit": git.stdout.strip(),
    }  # fmt: skip


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_runs(root: Path | str) -> list[RunFolder]:
    """Every finished run at or below `root`, by name. RunError where there is none."""
    runs = [RunFolder(file.parent) for file in sorted(Path(root).glob("**/result.json"))]
    if not runs:
        raise RunError(
            f"{root} holds no finished run (a folder with a result.json); train one, or give another folder."
        )
    return runs


def describe(record: Record) -> str:
    """An epoch in one line."""
    score = "" if np.isnan(record["heldout_psnr"]) else f"  held-out {record['heldout_psnr']:.2f} dB"
    return (
        f"epoch {record['epoch']:>3}  loss {record['loss']:.5f}  mse {record['mse']:.5f}  "
        f"KL {record['kl_nats']:.3g} nats  beta {record['beta']:.3g}  forcing {record['tf_ratio']:.2f}  "
        f"{record['frames_per_s']:.0f} frames/s{score}"
    )
