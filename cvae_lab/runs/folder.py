"""The run folder: writing and reading. `result.json` is written last; without it a run is not done."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cvae_lab.config import RunConfig
from cvae_lab.data.clips import Clip, Dataset
from cvae_lab.data.files import replacing, write_text
from cvae_lab.data.pixels import to_float, to_uint8
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.metrics import grade, psnr, ssim, static_baseline
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import pick_device
from cvae_lab.runs.provenance import provenance
from cvae_lab.training import TrainState, checkpoint
from cvae_lab.views.clip_views import write_clip_player, write_grid_gif

SSIM_EVERY = 1  # SSIM of every frame


class RunError(ValueError):
    """A run folder that is missing, unfinished or not of this project; the message says which."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    # -- writing ---------------------------------------------------------------------------------------------

    def begin(self, config: RunConfig, resume: bool = True) -> TrainState:
        """Return a new state, or the state in `last.pt` where an interrupted run of the same config exists.

        Sets the number of CPU threads of this process where `config.train.threads` gives one. Writes nothing, so a
        run that is refused, or that fails in its first epoch, leaves the folder unchanged.
        """
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        last = self.path / "last.pt"
        if not last.exists():
            return checkpoint.create_state(config)
        if not resume:
            raise RunError(f"{self.path} already holds a run; resume it, or choose another folder.")
        return checkpoint.resume(last, config)

    def log(self, state: TrainState, config: RunConfig) -> None:
        """Write config, history and `last.pt` after an epoch, and `best.pt` where the held-out score improved."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "result.json").unlink(missing_ok=True)  # the result of a run that continues is outdated
        write_text(self.path / "config.json", config.to_json())
        scores = [record["heldout_psnr"] for record in state.history]
        if np.isfinite(scores[-1]) and scores[-1] >= np.nanmax(scores):
            checkpoint.save(self.path / "best.pt", state, config)
        # best.pt comes first: a run interrupted between the two repeats the epoch and loses no best checkpoint.
        checkpoint.save(self.path / "last.pt", state, config)
        write_text(self.path / "history.csv", pd.DataFrame(state.history).to_csv(index=False))

    def finish(
        self, config: RunConfig, data: Dataset, seed: int = 0, pictures: bool = True
    ) -> dict[str, Any]:
        """Predict validation and test clips with `best.pt`; write predictions, scores and, last, the result.

        Args:
            seed: of z.
            pictures: also write a GIF of all test clips and a player of the first one, which take most of the time.
        """
        model = checkpoint.load_model(self.path / "best.pt", pick_device(config.train.device))
        clips = [*data.val.as_clips()[:1], *data.tests]
        predictions = predict_clips(model, clips, config.train, seed)
        scores = pd.concat([_score(clip, frames) for clip, frames in zip(clips, predictions, strict=True)])
        write_text(self.path / "psnr_per_frame.csv", scores.to_csv(index=False, float_format="%.4f"))
        arrays = {
            clip.name: to_uint8(frames).numpy() for clip, frames in zip(clips, predictions, strict=True)
        }
        with replacing(self.path / "predictions.npz") as temporary:
            np.savez_compressed(temporary, **arrays)
        if pictures:
            shown = range(len(data.val.as_clips()[:1]), len(clips)) if data.tests else range(len(clips))
            write_grid_gif(
                self.path / "predictions.gif", [clips[i] for i in shown], [predictions[i] for i in shown]
            )
            write_clip_player(self.path / "player.html", clips[shown[0]], predictions[shown[0]])
        result = _result(config, self.history, scores, model, clips)
        write_text(self.path / "result.json", json.dumps(result, indent=2))
        return result

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return (self.path / "result.json").exists()

    def _read(self, name: str) -> str:
        file = self.path / name
        if not file.exists():
            raise RunError(f"{self.path} is not a finished run: it has no {name}.")
        return file.read_text()

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run. Raises RunError where another version wrote it."""
        text = self._read("config.json")
        try:
            return RunConfig.from_json(text)
        except (TypeError, KeyError) as error:
            raise RunError(
                f"{self.path}/config.json is not of this version ({error}); train the run again."
            ) from error

    @cached_property
    def result(self) -> dict[str, Any]:
        """The result of the run, with hardware, versions and commit."""
        result = json.loads(self._read("result.json"))
        if missing := {"strategy", "preset", "psnr_mean", "psnr_by_clip", "heldout_psnr"} - set(result):
            raise RunError(
                f"{self.path}/result.json is not a result of this project: it has no {min(missing)}."
            )
        return result

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch; columns as in `training.loop.COLUMNS`."""
        self._read("history.csv")
        return pd.read_csv(self.path / "history.csv")

    @cached_property
    def psnr(self) -> pd.DataFrame:
        """Columns clip, frame (from 1), psnr, baseline_static (dB) and ssim (nan where it was not computed)."""
        self._read("psnr_per_frame.csv")
        return pd.read_csv(self.path / "psnr_per_frame.csv", dtype={"clip": str})

    def predictions(self) -> dict[str, np.ndarray]:
        """Predicted frames 1 to T-1 of each clip, uint8 of shape (t, 3, h, w)."""
        if not (self.path / "predictions.npz").exists():
            raise RunError(f"{self.path} has no predictions.npz; reference runs keep none.")
        with np.load(self.path / "predictions.npz", allow_pickle=False) as arrays:
            return dict(arrays)


def find_runs(root: Path | str) -> list[RunFolder]:
    """Return every finished run at or below `root`, by name. Raises RunError where there is none."""
    runs = [RunFolder(file.parent) for file in sorted(Path(root).glob("**/result.json"))]
    if not runs:
        raise RunError(
            f"{root} holds no finished run (a folder with a result.json); train one, or give another folder."
        )
    return runs


def best_run(root: Path) -> RunFolder:
    """Return the finished run at or below `root` with the highest held-out score, which uses no test clip."""
    return max(find_runs(root), key=lambda run: run.result["heldout_psnr"])


def _score(clip: Clip, prediction: torch.Tensor) -> pd.DataFrame:
    """One row per predicted frame of a clip; no rows where the true frames are unknown."""
    columns = ["clip", "frame", "psnr", "baseline_static", "ssim"]
    if clip.answer is None:
        return pd.DataFrame(columns=columns)
    truth = to_float(clip.answer)
    similarity = np.full(len(prediction), np.nan)
    similarity[::SSIM_EVERY] = ssim(prediction[::SSIM_EVERY], truth[1::SSIM_EVERY]).numpy()
    values = [psnr(prediction, truth[1:]).numpy(), static_baseline(truth).numpy(), similarity]
    return pd.DataFrame(dict(zip(columns, [clip.name, np.arange(1, len(truth)), *values], strict=True)))


def _result(
    config: RunConfig, history: pd.DataFrame, scores: pd.DataFrame, model: CVAE, clips: list[Clip]
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
        "ssim_mean": scored["ssim"].mean(), "grade": grade(scored["psnr"].mean()),
        "psnr_by_clip": by_clip["psnr"].round(3).to_dict(),
        "val_psnr_prior": best["val_psnr_prior"], "val_psnr_posterior": best["val_psnr_posterior"],
        "heldout_psnr": best["heldout_psnr"], "best_epoch": int(best["epoch"]),
        "kl_nats": history["kl_nats"].iloc[-1], "epochs": int(history["epoch"].iloc[-1]),
        "minutes": history["seconds"].iloc[-1] / 60, "parameters": sum(p.numel() for p in model.parameters()),
        "command": config.command(), **provenance(),
    }  # fmt: skip
