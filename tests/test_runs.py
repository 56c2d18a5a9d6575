"""Run folders and sweeps, as a person would use them: papermill runs of the real notebook on the tiny set."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from cvae_lab.config import ConfigError
from cvae_lab.data import load
from cvae_lab.evaluation.metrics import grade
from cvae_lab.rollout import predict
from cvae_lab.runs.folder import RunError, RunFolder, find_runs
from cvae_lab.runs.reference import DRAWS, draws, excerpt, export
from cvae_lab.runs.studies import STUDIES
from cvae_lab.runs.sweep import execute, notebook_parameters, plan, sweep
from cvae_lab.runs.tables import (
    END,
    START,
    by_variant,
    compare,
    into_markdown,
    markdown,
    run_row,
    study_markdown,
    write_csv,
)  # fmt: skip
from cvae_lab.training.checkpoint import load_model

TEMPLATE = Path(__file__).parents[1] / "notebooks/03_training.ipynb"
STRATEGIES = ["cyclical", "monotonic", "none", "constant"]
TINY = {"epochs": 1, "width": 8, "clips_per_epoch": 24}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One short run per strategy, two at a time, through Dask and papermill."""
    out = tmp_path_factory.mktemp("runs")
    jobs = plan("tiny", out, {name: {"kl_strategy": name} for name in STRATEGIES}, [0], TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CVAE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return out, list(sweep(TEMPLATE, jobs, workers=2))


@pytest.mark.xdist_group("sweep")
def test_one_run_per_strategy(swept):
    out, outcomes = swept
    assert [o.message for o in outcomes if not o.ok] == []
    assert {run.result["strategy"] for run in find_runs(out)} == set(STRATEGIES)


@pytest.mark.xdist_group("sweep")
def test_a_run_folder_is_complete(swept):
    out, _ = swept
    run = RunFolder(out / "cyclical-seed0")
    files = {f.name for f in run.path.iterdir()}
    wanted = {"config.json", "history.csv", "psnr_per_frame.csv", "last.pt", "best.pt", "predictions.npz"}
    assert files == wanted | {"predictions.gif", "player.html", "notebook.ipynb", "result.json"}
    assert run.config.train.kl_strategy == "cyclical"
    assert run.config.model.width == 8
    assert len(run.history) == 1
    assert {"epoch", "step", "beta", "tf_ratio", "lr", "loss", "mse", "kl_nats"} <= set(run.history)
    cells = nbformat.read(run.path / "notebook.ipynb", 4).cells
    assert all(c.execution_count for c in cells if c.cell_type == "code")


@pytest.mark.xdist_group("sweep")
def test_scores_are_those_of_the_predictions(swept):
    out, _ = swept
    from cvae_lab.data.synthetic.dataset import render

    run = RunFolder(out / "none-seed0")
    clips = {clip.name: clip for clip in render("tiny").tests}
    means = []
    for name, clip in clips.items():
        error = (run.predictions()[name] / 255.0 - clip.answer[1:].numpy() / 255.0) ** 2
        psnr = -10 * np.log10(error.mean(axis=(1, 2, 3)))
        stored = run.psnr[run.psnr["clip"] == name]["psnr"]
        # Predictions are stored as bytes, half a level off at most; where a whole frame is off alike, that many dB.
        rounding = 20 / np.log(10) * (0.5 / 255) / np.sqrt(error.mean(axis=(1, 2, 3)))
        assert (np.abs(stored - psnr) <= 1.1 * rounding + 1e-3).all()
        means.append(psnr.mean())
    assert run.result["psnr_mean"] == pytest.approx(np.mean(means), abs=0.15)
    assert run.result["grade"] == grade(run.result["psnr_mean"])


@pytest.mark.xdist_group("sweep")
def test_done_runs_are_skipped(swept):
    out, _ = swept
    before = (out / "none-seed0/result.json").stat().st_mtime_ns
    same, other = (
        plan("tiny", out, {"none": {"kl_strategy": name}}, [0], TINY)[0] for name in ("none", "constant")
    )
    assert execute(str(TEMPLATE), same).message == "done before"
    refused = execute(str(TEMPLATE), other)
    assert not refused.ok
    assert "kl_strategy = 'none', not 'constant'" in refused.message
    assert (out / "none-seed0/result.json").stat().st_mtime_ns == before


@pytest.mark.xdist_group("sweep")
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_failing_run_says_why_and_stops_no_other(template, tmp_path):
    jobs = plan("tiny", tmp_path, {"none": {}, "constant": {}}, [0], TINY)
    jobs[0] = replace(jobs[0], data=str(tmp_path / "nowhere"))
    outcomes = {Path(o.run_dir).name: o for o in sweep(template, jobs, workers=1)}
    assert not outcomes["none-seed0"].ok
    assert "nowhere" in outcomes["none-seed0"].message
    assert outcomes["constant-seed0"].ok
    assert not RunFolder(tmp_path / "none-seed0").done


def test_names_and_values_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean epochs"):
        plan("tiny", tmp_path, {"none": {"epoch": 3}}, [0], {})
    with pytest.raises(ConfigError, match="lr = -1"):
        plan("tiny", tmp_path, {"none": {}}, [0], {"lr": -1})
    (job,) = plan("tiny", tmp_path, {"none": {"lr": 0.5}}, [7], {"epochs": 3, "lr": 0.1})
    params = notebook_parameters(str(TEMPLATE), job)
    assert params["epochs"] == 3
    assert params["extra"] == {"lr": 0.5}  # not a name of the notebook's own, so it goes in by `extra`
    assert params["seed"] == 7
    assert not (tmp_path / "none-seed7").exists()
    (job,) = plan("tiny", tmp_path, {"none": {}}, [0], {"start": "runs/other"})
    assert Path(job.params["start"]) == Path("runs/other").resolve()  # a notebook runs in a folder of its own


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_can_be_planned(name, tmp_path):
    study = STUDIES[name]
    jobs = plan(study.data, tmp_path, study.variants, study.seeds, study.base)
    assert len({job.run_dir for job in jobs}) == len(study.variants) * len(study.seeds)
    assert len({str(job.params) for job in jobs}) == len(jobs)  # no two are the same run


@pytest.mark.xdist_group("sweep")
def test_comparison_table(swept):
    out, _ = swept
    table = compare(find_runs(out))
    assert list(table["psnr_mean"]) == sorted(table["psnr_mean"], reverse=True)
    assert {"strategy", "clip 0", "baseline_static", "kl_nats", "minutes", "grade"} <= set(table)
    assert by_variant(table)["seeds"].tolist() == [1] * 4
    with pytest.raises(RunError, match="no finished run"):
        find_runs(out / "cyclical-seed0" / "test")


@pytest.mark.xdist_group("sweep")
def test_reference_copy(swept, tmp_path):
    out, _ = swept
    run = RunFolder(out / "constant-seed0")
    copy = RunFolder(export(run, tmp_path, pictures=True))
    assert not list(copy.path.glob("*.pt"))
    for clip, frames in excerpt(copy).items():
        for frame, picture in frames.items():
            np.testing.assert_array_equal(picture, run.predictions()[clip][frame - 1])
    pd.testing.assert_frame_equal(copy.psnr, run.psnr)
    clip, model = load("tiny", progress=False).tests[0], load_model(run.path / "best.pt")
    films = draws(copy)
    assert films.index.tolist() == list(range(1, len(clip)))
    first, labels = (part[None].expand(DRAWS, *part.shape) / 255 for part in (clip.first, clip.labels))
    frames = predict(model, first, labels, torch.Generator().manual_seed(0)).numpy()
    error = (frames - clip.answer[1:].numpy() / 255) ** 2
    np.testing.assert_allclose(films.to_numpy().T, -10 * np.log10(error.mean((2, 3, 4))), atol=0.03)
    (copy.path / "draws.csv").unlink()
    with pytest.raises(RunError, match="has neither"):
        draws(copy)
    assert json.loads((copy.path / "result.json").read_text()) == run.result


def test_table_goes_between_the_markers(tmp_path, swept):
    file, runs = tmp_path / "README.md", find_runs(swept[0])
    file.write_text(f"before\n{START.format('results')}\nold\n{END.format('results')}\nafter\n")
    into_markdown(file, "results", markdown(compare(runs)))
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| compact | none |" in text
    file.write_text("no markers")
    with pytest.raises(RunError, match="has no lines"):
        into_markdown(file, "results", "text")


@pytest.mark.xdist_group("sweep")
def test_runs_that_differ_in_more_than_their_seed_are_no_repeats(swept, tmp_path):
    shutil.copytree(swept[0] / "none-seed0", tmp_path / "none-seed0")
    other = shutil.copytree(swept[0] / "none-seed0", tmp_path / "none-wide-seed0")
    assert list(compare(find_runs(tmp_path))["strategy"]) == ["none", "none"]
    config = RunFolder(other).config
    (other / "config.json").write_text(config.with_training(lr=config.train.lr / 2).to_json())
    assert set(compare(find_runs(tmp_path))["strategy"]) == {"none", "none-wide"}


@pytest.mark.xdist_group("sweep")
def test_a_studys_table_has_a_row_per_variant(swept, tmp_path):
    rows = [run_row(run) for run in find_runs(swept[0])]
    again = [{**row, "seed": 1, "psnr_mean": row["psnr_mean"] + 2} for row in rows]
    write_csv(tmp_path / "study.csv", rows + again)
    table = by_variant(pd.read_csv(tmp_path / "study.csv"))
    assert set(table["variant"]) == set(STRATEGIES)
    assert table["psnr_std"].tolist() == pytest.approx([2**0.5] * 4, abs=1e-2)  # written to four digits
    text = study_markdown(pd.read_csv(tmp_path / "study.csv"))
    assert "| constant | 2 |" in text
    assert "| test (dB) | worst clip (dB) | still picture (dB) |" in text
    unanswered = [{**row, "scored_on": "validation", "psnr_worst_clip": float("nan")} for row in rows]
    assert "| validation (dB) | still picture (dB) |" in study_markdown(pd.DataFrame(unanswered))
