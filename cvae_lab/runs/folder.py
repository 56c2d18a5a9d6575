"""Folder of a run: training, writing and reading. `result.json` is written last and marks a finished run."""

import contextlib
import io
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from cvae_lab.config import RunConfig
from cvae_lab.data import load
from cvae_lab.data.clips import Clip, Dataset
from cvae_lab.data.files import remove_stale, write_bytes, write_text
from cvae_lab.evaluation.scoring import predict_clips_in_chunks
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import pick_device
from cvae_lab.runs import result as results
from cvae_lab.runs.result import Predicted, RunError, checked, provenance, read_arrays, read_scores
from cvae_lab.training import TrainState, checkpoint, distributed, fit
from cvae_lab.training.progress import reporter
from cvae_lab.views.clip_views import write_clip_player, write_grid_gif

_log = logging.getLogger(__name__)
_locks: dict[Path, FileLock] = {}
"""Run folders that this process has locked. The operating system releases a lock when its process ends."""


class RunInUseError(RunError):
    """Error for a run folder in which another process is training."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    # -- writing ---------------------------------------------------------------------------------------------

    def begin(self, config: RunConfig, resume: bool = True) -> TrainState:
        """Lock the folder, and return the state from which to train.

        The state is read from `last.pt` of an interrupted run with the same configuration, or it is new. If
        `config.train.threads` is set, it becomes the number of CPU threads of this process. If an error is raised, the
        folder is not changed. `finish`, `unlock` or the end of the process unlocks the folder.

        Raises RunInUseError if another process is training this run, and RunError if `resume` is False and the folder
        already contains a run.
        """
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        if distributed.rank() == 0:
            self.lock()
        try:
            last = self.path / "last.pt"
            if not last.exists():
                return checkpoint.create_state(config)
            if not resume:
                raise RunError(f"{self.path} already contains a run; resume it, or choose another folder.")
            state = checkpoint.resume(last, config)
            if distributed.rank() == 0:
                # The last row is missing if the process was killed between last.pt and history.csv.
                write_text(self.path / "history.csv", pd.DataFrame(state.history).to_csv(index=False))
            return state
        except BaseException:
            self.unlock()
            raise

    def lock(self) -> None:
        """Lock the folder for this process. Raises RunInUseError if another process has locked the folder."""
        key = self.path.resolve()
        if key in _locks:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(key / ".lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise RunInUseError(
                f"{self.path} is in use by another training process or notebook; wait until that process ends, or "
                f"choose another folder."
            ) from None
        _locks[key] = lock
        remove_stale(self.path)

    def unlock(self) -> None:
        """Unlock the folder, and remove an empty folder."""
        lock = _locks.pop(self.path.resolve(), None)
        if lock is not None:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def log(self, state: TrainState, config: RunConfig) -> None:
        """Write config, history and `last.pt` after an epoch, and `best.pt` if the held-out score is the highest."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "result.json").unlink(missing_ok=True)  # invalid after further training
        write_text(self.path / "config.json", config.to_json())
        scores = [record["heldout_psnr"] for record in state.history]
        if np.isfinite(scores[-1]) and scores[-1] >= np.nanmax(scores):
            checkpoint.save(self.path / "best.pt", state, config)
        # best.pt is written before last.pt. If the run is interrupted in between, the epoch is repeated.
        checkpoint.save(self.path / "last.pt", state, config)
        write_text(self.path / "history.csv", pd.DataFrame(state.history).to_csv(index=False))

    def finish(
        self, config: RunConfig, data: Dataset, seed: int = 0, pictures: bool = True
    ) -> dict[str, Any]:
        """Predict validation and test clips with `best.pt`, and write predictions, scores and then the result.

        Scores of the result are computed with `best.pt`. Scores whose name ends in `_final` are computed with the
        weights after the last epoch. At the end, the folder is unlocked.

        Args:
            seed: seed of the samples of z.
            pictures: also write a GIF of all test clips and a player of the first clip, which takes most of the time.

        Raises RunError if the run has no checkpoint or a required score is not finite.
        """
        clips = [*data.tests, *data.val.as_clips()[:1]]
        chosen, last = self._last_record("best.pt"), self._last_record("last.pt")
        model, predicted = self._predict("best.pt", clips, config, seed)
        scores = final = results.score(clips, predicted)
        if last["epoch"] != chosen["epoch"]:
            final = results.score(clips, self._predict("last.pt", clips, config, seed, keep=False)[1])
        result = results.summarise(config, chosen, last, scores, final)
        result["parameters"] = sum(weights.numel() for weights in model.parameters())
        result |= {"command": config.command(), **provenance()}
        write_text(self.path / "psnr_per_frame.csv", scores.to_csv(index=False, float_format="%.4f"))
        arrays = {clip.name: one.numpy() for clip, one in zip(clips, predicted.frames, strict=True)}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_bytes(self.path / "predictions.npz", content.getbuffer())
        if pictures and clips:
            shown = slice(len(data.tests) or None)
            write_grid_gif(self.path / "predictions.gif", clips[shown], predicted.frames[shown])
            write_clip_player(self.path / "player.html", clips[0], predicted.frames[0], predicted.psnr[0])
        write_text(self.path / "result.json", json.dumps(result, indent=2, allow_nan=False))
        self.unlock()
        return result

    def _last_record(self, name: str) -> dict[str, Any]:
        """Return the last record of the history in a checkpoint: the epoch after which the checkpoint was saved."""
        file = self.path / name
        if not file.exists():
            raise RunError(
                f"{self.path} has no {name}, so the run cannot be finished; no epoch had a finite held-out score."
            )
        return checkpoint.read_history(file)[-1]

    def _predict(
        self, name: str, clips: list[Clip], config: RunConfig, seed: int, keep: bool = True
    ) -> tuple[CVAE, Predicted]:
        model = checkpoint.load_model(self.path / name, pick_device(config.train.device))
        chunks = predict_clips_in_chunks(model, clips, config.train, seed) if clips else ()
        return model, results.gather(clips, chunks, keep)

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the run is finished, which means that result.json is complete."""
        file = self.path / "result.json"
        try:
            return file.exists() and bool(checked(file.read_text(encoding="utf-8"), file))
        except (RunError, UnicodeDecodeError):
            return False

    def check(self) -> None:
        """Read result, configuration and history. Raises RunError if a file is missing, truncated or wrong."""
        _ = self.result, self.config, self.history

    def _read(self, name: str) -> str:
        file = self.path / name
        if not file.exists():
            raise RunError(f"{self.path} is not a finished run: it has no {name}; finish the training first.")
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise RunError(f"{file} is damaged: it is not text; train the run again.") from None

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run. Raises RunError if the file is damaged or from another version."""
        text = self._read("config.json")
        try:
            return RunConfig.from_json(text)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(
                f"{self.path}/config.json is damaged or from another version ({cause}); train the run again."
            ) from error

    @cached_property
    def result(self) -> dict[str, Any]:
        """The result of the run, with hardware, versions and commit. The fields are listed in `result.Result`."""
        return checked(self._read("result.json"), self.path / "result.json")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch, with the columns `training.loop.COLUMNS`. Raises RunError if the file is truncated."""
        text, file = self._read("history.csv"), self.path / "history.csv"
        widths = {line.count(",") for line in text.splitlines()}
        try:
            table = pd.read_csv(io.StringIO(text), dtype=float)
        except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError):
            table = pd.DataFrame()
        if missing := {"epoch", "step", "loss", "mse", "kl_nats", "heldout_psnr", "seconds"} - set(table):
            raise RunError(f"{file} is damaged: it has no readable column {min(missing)}.")
        epochs = table["epoch"].tolist()
        if not epochs or not text.endswith("\n") or len(widths) > 1 or epochs != [*range(1, len(epochs) + 1)]:
            raise RunError(
                f"{file} is truncated or has missing rows; run the training command again to restore it."
            )
        return table.astype({"epoch": int, "step": int})

    @cached_property
    def psnr(self) -> pd.DataFrame:
        """Scores per frame: columns clip, frame (from 1), psnr and baseline_static (dB), ssim (nan if not computed)."""
        return read_scores(self._read("psnr_per_frame.csv"), self.path / "psnr_per_frame.csv")

    def predictions(self) -> dict[str, np.ndarray]:
        """Predicted frames 1 to T-1 of each clip, uint8 of shape (t, 3, h, w). Raises RunError for a damaged file."""
        if not (self.path / "predictions.npz").exists():
            raise RunError(f"{self.path} has no predictions.npz; exported runs do not contain this file.")
        return read_arrays(self.path / "predictions.npz")


def find_runs(root: Path | str) -> list[RunFolder]:
    """Return every finished run at or below `root`, sorted by path. Raises RunError if there is none.

    A damaged run is left out, and a warning with the damaged file is logged.
    """
    runs, damaged = [], []
    for file in sorted(Path(root).glob("**/result.json")):
        run = RunFolder(file.parent)
        try:
            run.check()
            runs.append(run)
        except RunError as error:
            damaged.append(str(error))
    if not runs and damaged:
        raise RunError(damaged[0])
    if not runs:
        raise RunError(f"{root} contains no finished run (a folder with a result.json); give another folder.")
    for message in damaged:
        _log.warning("Warning: a run is left out. %s", message)
    return runs


def best_run(root: Path) -> RunFolder:
    """Return the finished run at or below `root` with the highest held-out score. No test clip is used."""
    return max(find_runs(root), key=lambda run: run.result["heldout_psnr"])


def train_run(
    path: Path, config: RunConfig, resume: bool = False, tensorboard: bool = False, pictures: bool = True
) -> None:
    """Train and score a run and write its folder. Under torchrun, every rank trains, and only rank 0 writes and prints.

    Args:
        resume: continue from last.pt.
        pictures: as in `RunFolder.finish`.
    """
    run = RunFolder(path)
    if not resume and (run.done or (path / "last.pt").exists()):
        raise RunError(f"{path} already contains a run; give --resume to continue it, or another folder.")
    if run.done and not run.config.difference(config, ignore=("threads",)):
        raise RunError(
            f"The run in {path} is finished; give more epochs or minutes to continue it, or another folder."
        )
    first = distributed.rank() == 0
    data = load(config.data, progress=first, required=("train",), height=config.model.height)
    state = run.begin(config)
    try:
        if distributed.rank():
            for _ in fit(state, data, config.train):
                pass
            return
        with reporter(path, tensorboard=tensorboard) as report:
            for record in fit(state, data, config.train, report.step):
                run.log(state, config)
                report.epoch(record)
        result = run.finish(config, data, pictures=pictures)
    finally:
        run.unlock()
    report.say(f"{result['psnr_mean']:.2f} dB on {result['scored_on']} clips")
    if result["baseline_static"] is not None:
        report.say(f"{result['baseline_static']:.2f} dB for the static baseline")
    report.say(f"Wrote {path}.")
