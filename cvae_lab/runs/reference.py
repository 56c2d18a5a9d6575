"""Committed records: copies of finished runs without checkpoints, pictures, and functions that reproduce them."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from cvae_lab.evaluation import metrics
from cvae_lab.evaluation.samples import samples
from cvae_lab.models.device import pick_device, reduced_precision
from cvae_lab.runs import tables
from cvae_lab.runs.folder import RunFolder, best_run, find_runs
from cvae_lab.runs.result import RunError
from cvae_lab.runs.studies import STUDIES, Job, Study, plan
from cvae_lab.runs.sweep import sweep
from cvae_lab.training import checkpoint
from cvae_lab.views import figures

DRAWS = 8  # number of predictions of one clip, each with another z
KEPT = ("config.json", "history.csv", "psnr_per_frame.csv")
COLUMNS = 16  # number of frames per row of excerpt.png


def export(run: RunFolder, out: Path, pictures: bool = False) -> Path:
    """Copy the small files of a run to a folder of the same name in `out`; return that folder.

    Args:
        pictures: also write `draws.csv` (see `draws`) and predicted frames. `excerpt.png` contains the frames with
            lossless compression, and `excerpt.csv` gives the clip and frame number of each. These are every
            sixth frame of the first test clip, and the four best, four worst and every 64th frame of every test clip.

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
    data = load(run.config.data, progress=False)
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
    clip = load(run.config.data, progress=False).tests[0]
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
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=100)
    return [out / name for name in drawn]


PRETRAINED = {
    "minutes": 25.0,
    "threads": 1,
}  # pretraining on the synthetic data set `full`, for the study `course`
TABLES = ("ablation", "minutes", "course")  # studies whose tables figures/README.md shows
RUN_OVERHEAD = 0.5  # minutes per run for loading data, evaluation and writing files


@dataclass(frozen=True)
class Step:
    """A study, and the runs from which its committed record is made."""

    name: str
    jobs: list[Job]
    workers: int
    minutes: float  # expected minutes of one run

    @property
    def to_do(self) -> list[Job]:
        """The jobs that are not finished."""
        return [job for job in self.jobs if not RunFolder(Path(job.run_dir)).done]

    @property
    def minutes_left(self) -> float:
        """Expected minutes until the last job ends."""
        return len(self.to_do) * (self.minutes + RUN_OVERHEAD) / self.workers


def steps(
    root: Path,
    out: Path,
    workers: int,
    only: Sequence[str] = (),
    course: str = "",
    **changes: Any,  # noqa: ANN401
) -> list[Step]:
    """Return the studies to run, in order.

    Args:
        root: the repository. Its committed tables are used to estimate how long a run takes.
        out: folder of the runs, one folder per study.
        only: names of studies; empty: all.
        course: folder of the course's data; empty: leave out the studies that need it.
        changes: parameters, `data` and `seeds` that replace those of every run, for a trial run.
    """
    data, seeds = changes.pop("data", ""), changes.pop("seeds", ())
    studies = dict(STUDIES)
    if course:
        start = out / "pretrained" / "full-seed0"
        studies["pretrained"] = Study("", PRETRAINED, {"full": {}}, seeds=(0,), data="full")
        studies["course"] = Study(
            "", {"threads": 1},
            {"random-weights-10-minutes": {"minutes": 10.0}, "random-weights-35-minutes": {"minutes": 35.0},
             "pretrained-10-minutes": {"minutes": 10.0, "init_from": str(start)}}, data=course,
        )  # fmt: skip
    if unknown := set(only) - set(studies):
        raise RunError(f"There is no record {min(unknown)!r}; choose from {', '.join(studies)}.")
    found = []
    for name, study in studies.items():
        if not only or name in only:
            variants = {key: {**variant, **changes} for key, variant in study.variants.items()}
            jobs = plan(data or study.data, out / name, variants, seeds or study.seeds, study.base)
            timed = name in ("minutes", "course", "pretrained")  # no other run may be active at the same time
            found.append(Step(name, jobs, 1 if timed else max(1, workers), _minutes(root, name, study)))
    return found


def _minutes(root: Path, name: str, study: Study) -> float:
    """Expected minutes of a run of a study: its time limit, or the mean in the committed record."""
    budgets = [(study.base | changes).get("minutes", 0.0) for changes in study.variants.values()]
    table = root / "figures" / "studies" / f"{name}.csv"
    if all(budgets):
        return sum(budgets) / len(budgets)
    if name == "reference":
        return float(np.mean([run.result["minutes"] for run in find_runs(root / "figures" / "reference")]))
    recorded = pd.read_csv(table) if table.exists() else pd.DataFrame()
    return float(recorded["minutes"].mean()) if "minutes" in recorded else study.base["epochs"] * 0.3


def reproduce(todo: Sequence[Step], root: Path, log: Callable[[str], None] = print) -> None:
    """Run every step and write its record below `root`/figures.

    Finished runs are skipped, so this function can be interrupted and called again. Raises RunError if a run fails.
    The records of earlier steps are kept.
    """
    for step in todo:
        log(f"{step.name}: {len(step.to_do)} of {len(step.jobs)} runs to do")
        for outcome in sweep(None, step.jobs, step.workers, log=log):
            if not outcome.ok:
                raise RunError(f"{outcome.run_dir} failed: {outcome.message}")
            log(f"  {Path(outcome.run_dir).name}: {outcome.message} ({outcome.minutes:.1f} min)")
        runs = [RunFolder(Path(job.run_dir)) for job in step.jobs]
        for record in _write_record(step.name, runs, root / "figures"):
            log(f"  wrote {record}")


def _write_record(name: str, runs: Sequence[RunFolder], figures_dir: Path) -> list[Path]:
    if name == "pretrained":
        return []
    if name == "reference":
        new, best = figures_dir / ".reference", best_run(runs[0].path.parent)
        shutil.rmtree(new, ignore_errors=True)
        for run in runs:
            export(run, new, pictures=run == best)
        shutil.rmtree(figures_dir / "reference", ignore_errors=True)
        return [new.rename(figures_dir / "reference")]
    table = figures_dir / "studies" / f"{name}.csv"
    rows = (
        [row for _, _, row in tables.latent_rows(runs)]
        if name == "latent"
        else [tables.run_row(run) for run in runs]
    )
    tables.write_csv(table, rows)
    return [table]


def write_tables(root: Path) -> list[Path]:
    """Write the tables and pictures of README.md and figures/README.md from the committed records; return the files."""
    runs = find_runs(root / "figures" / "reference")
    readme, more = root / "README.md", root / "figures" / "README.md"
    tables.into_markdown(readme, "results", tables.markdown(tables.runs_table(runs), tables.RESULTS))
    for name in TABLES:
        table = pd.read_csv(root / "figures" / "studies" / f"{name}.csv")
        tables.into_markdown(more, name, tables.markdown(table, tables.STUDY))
    return [readme, more, *write_pictures(root / "figures", best_run(root / "figures" / "reference"))]
