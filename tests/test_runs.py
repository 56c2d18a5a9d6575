"""Run folders, sweeps and tables, tested with papermill runs of the training notebook on the data set `tiny`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from cvae_lab.config import ConfigError, RunConfig
from cvae_lab.data import load
from cvae_lab.evaluation.metrics import grade
from cvae_lab.rollout.reference import reference_predict
from cvae_lab.runs import reference, reproduce, result
from cvae_lab.runs.folder import RunFolder, best_run, find_runs
from cvae_lab.runs.reference import DRAWS, draws, excerpt, export
from cvae_lab.runs.result import RunError
from cvae_lab.runs.studies import STUDIES, Study, plan
from cvae_lab.runs.sweep import (
    Outcome,
    execute,
    injected_parameters,
    notebook_parameters,
    notebook_run,
    sweep,
)
from cvae_lab.runs.tables import (
    END,
    RESULTS,
    SHOWN,
    START,
    STUDY,
    by_variant,
    different_origins,
    into_markdown,
    markdown,
    run_row,
    runs_table,
    terminal,
    write_csv,
    write_pictures,
)  # fmt: skip
from cvae_lab.training.checkpoint import load_model

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "notebooks/03_training.ipynb"
STRATEGIES = ["cyclical", "monotonic", "none", "constant"]
TINY = {"epochs": 1, "width": 8, "clips_per_epoch": 24}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Train one short run per strategy with Dask and papermill, two at a time. The folder has braces in its name."""
    out = tmp_path_factory.mktemp("runs") / "runs{1}"
    jobs = plan("tiny", out, {name: {"kl_strategy": name} for name in STRATEGIES}, [0], TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CVAE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return out, list(sweep(TEMPLATE, jobs, workers=2))


@pytest.mark.xdist_group("sweep")
def test_a_sweep_makes_one_run_per_strategy(swept):
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
        # Predictions are stored as bytes, with an error of at most half a level. If all pixels of a frame have this
        # error, the PSNR has this error in dB.
        rounding = 20 / np.log(10) * (0.5 / 255) / np.sqrt(error.mean(axis=(1, 2, 3)))
        assert (np.abs(stored - psnr) <= 1.1 * rounding + 1e-3).all()
        means.append(psnr.mean())
    assert run.result["psnr_mean"] == pytest.approx(np.mean(means), abs=0.15)
    assert run.result["grade"] == grade(run.result["psnr_mean"])


@pytest.mark.xdist_group("sweep")
def test_finished_runs_are_skipped(swept):
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
@pytest.mark.parametrize("damage", ["", "{", "{}"])
def test_a_run_with_a_damaged_result_is_not_done(swept, tmp_path, damage):
    copy = shutil.copytree(swept[0] / "none-seed0", tmp_path / "none-seed0")
    whole = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(damage)
    assert not RunFolder(copy).done
    (job,) = plan("tiny", tmp_path, {"none": {"kl_strategy": "none"}}, [0], TINY)
    outcome = execute(None, job)
    assert (outcome.ok, outcome.message) == (True, "done")
    again = RunFolder(copy).result
    assert {k: v for k, v in again.items() if k != "commit"} == {
        k: v for k, v in whole.items() if k != "commit"
    }


@pytest.mark.xdist_group("sweep")
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_failing_run_is_reported_with_its_reason_and_the_others_continue(template, tmp_path):
    jobs = plan("tiny", tmp_path, {"none": {}, "constant": {}}, [0], TINY)
    jobs[0] = replace(jobs[0], data=str(tmp_path / "nowhere"))
    outcomes = {Path(o.run_dir).name: o for o in sweep(template, jobs, workers=1)}
    assert not outcomes["none-seed0"].ok
    assert "nowhere" in outcomes["none-seed0"].message
    assert outcomes["constant-seed0"].ok
    assert not RunFolder(tmp_path / "none-seed0").done


@pytest.mark.xdist_group("sweep")
def test_a_notebook_that_fails_is_kept_under_another_name(tmp_path):
    """Only result.json shows that a run is finished, because papermill marks interrupted cells as completed."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel)
    parameters = nbformat.v4.new_code_cell(
        "data = run_dir = ''\nextra = {}", metadata={"tags": ["parameters"]}
    )
    notebook.cells = [parameters, nbformat.v4.new_code_cell("raise SystemExit('stopped')")]
    nbformat.write(notebook, tmp_path / "template.ipynb")
    (job,) = plan("tiny", tmp_path, {"none": {}}, [0], TINY)
    outcome = execute(str(tmp_path / "template.ipynb"), job)
    assert not outcome.ok
    assert {file.name for file in (tmp_path / "none-seed0").iterdir()} == {"failed.ipynb"}


def test_names_and_values_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean epochs"):
        plan("tiny", tmp_path, {"none": {"epoch": 3}}, [0], {})
    with pytest.raises(ConfigError, match="lr = -1"):
        plan("tiny", tmp_path, {"none": {}}, [0], {"lr": -1})
    for value in (float("nan"), float("inf")):  # a notebook with such a parameter is not valid JSON
        with pytest.raises(ConfigError, match=r"stages = .* is not a finite number"):
            plan("tiny", tmp_path, {"none": {"stages": [["monotonic", value, 1]]}}, [0], {})
    (job,) = plan("tiny", tmp_path, {"none": {"lr": 0.5}}, [7], {"epochs": 3, "lr": 0.1})
    params = notebook_parameters(str(TEMPLATE), job)
    assert params["epochs"] == 3
    assert params["extra"] == {"lr": 0.5}  # the notebook's parameters cell has no lr
    assert params["seed"] == 7
    assert not (tmp_path / "none-seed7").exists()
    (job,) = plan("tiny", tmp_path, {"none": {}}, [0], {"init_from": "runs/other"})
    assert (
        Path(job.params["init_from"]) == Path("runs/other").resolve()
    )  # paths are absolute, because a notebook has its own working directory


def test_parameters_that_papermill_injects_are_used_or_refused():
    own = "epochs = 25\nextra = {}"
    namespace = {
        "In": ["", own, "# Parameters\nepochs = 3\nlr = 0.001\n"],
        "epochs": 3,
        "lr": 0.001,
        "sigma": 9,
    }
    assert injected_parameters(namespace) == {"lr": 0.001}
    assert (
        injected_parameters({"In": ["", own, "sigma = 2"], "sigma": 2}) == {}
    )  # the notebook is not run by papermill
    with pytest.raises(
        ConfigError, match=r"'epoch' in the notebook, but this is not a parameter\. Did you mean epochs"
    ):
        injected_parameters({"In": ["", own, "# Parameters\nepoch = 3\n"], "epoch": 3})


def test_the_run_folder_of_a_notebook_is_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebook_run("runs/mine").path == tmp_path / "runs/mine"
    assert notebook_run("").path.is_dir()
    with pytest.raises(RunError, match="run_dir = 20261127 is not text"):
        notebook_run(20261127)


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_can_be_planned(name, tmp_path):
    study = STUDIES[name]
    jobs = plan(study.data, tmp_path, study.variants, study.seeds, study.base)
    assert len({job.run_dir for job in jobs}) == len(study.variants) * len(study.seeds)
    assert len({str(job.params) for job in jobs}) == len(jobs)  # no two runs have equal parameters


@pytest.mark.xdist_group("sweep")
def test_the_table_of_runs_is_sorted_and_complete(swept):
    out, _ = swept
    table = runs_table(find_runs(out))
    assert list(table["psnr_mean"]) == sorted(table["psnr_mean"], reverse=True)
    assert {"strategy", "clip 0", "baseline_static", "kl_nats", "minutes", "grade"} <= set(table)
    assert by_variant(table)["seeds"].tolist() == [1] * 4
    with pytest.raises(RunError, match="no finished run"):
        find_runs(out / "cyclical-seed0" / "test")


@pytest.mark.xdist_group("sweep")
def test_the_printed_table_fits_80_columns_and_has_units(swept):
    text = terminal(runs_table(find_runs(swept[0])).assign(run="a-very-long-name-of-a-run-that-does-not-fit"))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["dB", "dB", "dB", "nats/frame", "min", "%"]
    assert "e-0" not in text


@pytest.mark.xdist_group("sweep")
def test_the_best_run_is_chosen_by_its_held_out_score(swept, tmp_path):
    for name, heldout, test in (("a-seed0", 20.0, 30.0), ("b-seed0", 25.0, 10.0)):
        run = shutil.copytree(swept[0] / "none-seed0", tmp_path / name)
        content = json.loads((run / "result.json").read_text()) | {"heldout_psnr": heldout, "psnr_mean": test}
        (run / "result.json").write_text(json.dumps(content))
    assert best_run(tmp_path).path.name == "b-seed0"
    assert (
        write_pictures(find_runs(tmp_path), runs_table(find_runs(tmp_path)), tmp_path)[-1].parent.name
        == "b-seed0"
    )


@pytest.mark.xdist_group("sweep")
def test_a_reference_copy_has_the_same_numbers_and_no_weights(swept, tmp_path):
    out, _ = swept
    run = RunFolder(out / "constant-seed0")
    copy = RunFolder(export(run, tmp_path, pictures=True))
    assert not list(copy.path.glob("*.pt"))
    for clip, frames in excerpt(copy).items():
        for frame, picture in frames.items():
            np.testing.assert_array_equal(picture, run.predictions()[clip][frame - 1])
    pd.testing.assert_frame_equal(copy.psnr, run.psnr)
    clip, model = load("tiny", progress=False).tests[0], load_model(run.path / "best.pt")
    scores = draws(copy)
    assert scores.index.tolist() == list(range(1, len(clip)))
    assert scores.shape[1] == DRAWS
    # The seed 0 gives the seed of the clip, which gives the seeds of the draws.
    clip_seed = torch.randint(2**62, (), generator=torch.Generator().manual_seed(0))
    seeds = torch.Generator().manual_seed(int(clip_seed))
    for draw in range(DRAWS):
        stream = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        frames = reference_predict(model.eval(), clip.first[None] / 255, clip.labels[None] / 255, [stream])
        error = (frames[0].numpy() - clip.answer[1:].numpy() / 255) ** 2
        np.testing.assert_allclose(scores[str(draw)], -10 * np.log10(error.mean((1, 2, 3))), atol=0.02)
    assert scores.nunique(axis=1).max() == DRAWS  # every draw has its own z
    (copy.path / "draws.csv").unlink()
    with pytest.raises(RunError, match="has neither"):
        draws(copy)
    assert json.loads((copy.path / "result.json").read_text()) == run.result


@pytest.mark.xdist_group("sweep")
def test_a_table_replaces_the_text_between_its_markers(tmp_path, swept):
    file, runs = tmp_path / "README.md", find_runs(swept[0])
    file.write_text(f"before\n{START.format('results')}\nold\n{END.format('results')}\nafter\n")
    into_markdown(file, "results", markdown(runs_table(runs), RESULTS))
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| none | compact | 1 |" in text
    file.write_text("no markers")
    with pytest.raises(RunError, match="has no lines"):
        into_markdown(file, "results", "text")


@pytest.mark.xdist_group("sweep")
def test_runs_of_different_folder_names_are_different_variants(swept, tmp_path):
    for name in ("none-seed0", "none-seed1", "none-wide-seed0"):
        shutil.copytree(swept[0] / "none-seed0", tmp_path / name)
    table = by_variant(runs_table(find_runs(tmp_path)))
    assert sorted(table["variant"]) == ["none", "none-wide"]


@pytest.mark.xdist_group("sweep")
def test_the_table_of_a_study_has_a_row_per_variant(swept, tmp_path):
    rows = [run_row(run) for run in find_runs(swept[0])]
    again = [{**row, "seed": 1, "psnr_mean": row["psnr_mean"] + 2} for row in rows]
    write_csv(tmp_path / "study.csv", rows + again)
    table = by_variant(pd.read_csv(tmp_path / "study.csv"))
    assert set(table["variant"]) == set(STRATEGIES)
    assert table["psnr_std"].tolist() == pytest.approx([2**0.5] * 4, abs=1e-2)  # written to four digits
    text = markdown(pd.read_csv(tmp_path / "study.csv"), STUDY)
    assert "| constant | 2 |" in text
    wanted = "| test PSNR (dB) | PSNR of final weights (dB) | worst clip (dB) | static baseline (dB) |"
    assert wanted in text
    unanswered = [{**row, "scored_on": "validation", "psnr_worst_clip": float("nan")} for row in rows]
    text = markdown(pd.DataFrame(unanswered), STUDY)
    assert "| validation PSNR (dB) |" in text
    assert "worst clip" not in text


def test_a_printed_table_shows_every_difference_in_commit_hardware_or_versions():
    row = {
        "run": "a-seed0", "variant": "a", "seed": 0, "preset": "compact", "strategy": "none", "scored_on": "test",
        "heldout_psnr": 30.0, "psnr_mean": 30.0, "psnr_worst_clip": 29.0, "baseline_static": 18.0, "ssim_mean": 0.9,
        "kl_nats": 1.0, "parameters": 9, "minutes": 1.0, "grade": 100, "commit": "aaa", "hardware": "one CPU",
        "torch": "2.13.0", "python": "3.11",
    }  # fmt: skip
    other = row | {"run": "b-seed0", "variant": "b", "commit": "bbb", "torch": "2.14.0"}
    equal, mixed = (pd.DataFrame(rows) for rows in ([row, row], [row, other]))
    assert different_origins(equal) == []
    assert "commit" not in markdown(equal, STUDY)
    assert "differ" not in terminal(equal)
    assert different_origins(mixed) == ["commit", "torch"]
    head, _, *body = markdown(mixed, STUDY).splitlines()
    assert head.endswith("| commit | torch |")
    assert [line.split(" | ")[-2:] for line in body] == [["aaa", "2.13.0 |"], ["bbb", "2.14.0 |"]]
    assert "differ in commit: aaa, bbb" in terminal(mixed)


@pytest.mark.parametrize(
    "table", sorted((ROOT / "figures/studies").glob("*.csv")), ids=lambda path: path.stem
)
def test_committed_tables_name_the_origin_of_every_row(table):
    rows = pd.read_csv(table)
    assert rows[["commit", "hardware"]].notna().all(axis=None)
    if table.stem != "latent":  # its rows are written by `diagnose`
        head = markdown(rows, STUDY).splitlines()[0]
        assert all(f"| {name} |" in head for name in different_origins(rows))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Copy the committed records, reduce studies to one or two tiny runs, and run sweeps in this process."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "figures/studies", root / "figures/studies")
    shutil.copytree(ROOT / "figures/reference/none-seed0", root / "figures/reference/none-seed0")
    studies = {
        "reference": Study("", TINY, {"none": {"kl_strategy": "none"}}, seeds=(0,), data="tiny"),
        "ablation": Study("", TINY, {"base": {}, "no-flip": {"flip": False}}, seeds=(0,), data="tiny"),
        "latent": Study("", TINY, {"course": {}}, seeds=(0,), data="tiny"),
        "handout": Study("", TINY, {"assignment": {"ema": 0.0}}, seeds=(0,), data="tiny"),
    }
    monkeypatch.setattr(reproduce, "STUDIES", studies)
    monkeypatch.setattr(reproduce, "sweep", lambda _, jobs, *__, **___: (execute(None, job) for job in jobs))
    return root


def test_reproduce_writes_all_records_trains_equal_runs_once_and_skips_finished_runs(repository, tmp_path):
    out = tmp_path / "out"
    todo = reproduce.steps(repository, out, workers=2)
    assert [(step.name, len(step.to_do), step.workers) for step in todo] == [
        ("reference", 1, 2),
        ("ablation", 2, 2),
        ("latent", 0, 2),
    ]
    equal = {str(out / "latent/course-seed0"): str(out / "ablation/base-seed0")}
    assert [step.copies for step in todo] == [{}, {}, equal]
    assert reproduce.reproduce(todo, repository, log=lambda _: None) == []
    rows = pd.read_csv(repository / "figures/studies/ablation.csv")
    assert rows["variant"].tolist() == ["base", "no-flip"]
    assert different_origins(rows) == []
    latent = pd.read_csv(repository / "figures/studies/latent.csv")
    assert latent["run"].tolist() == ["course-seed0"]
    assert latent["psnr_mean"].tolist() == rows["psnr_mean"][:1].tolist()
    (copy,) = find_runs(repository / "figures/reference")
    assert (copy.path.name, copy.config.train.kl_strategy, copy.result["data"]) == (
        "none-seed0",
        "none",
        "tiny",
    )
    assert not list(copy.path.glob("*.pt"))
    again = reproduce.steps(repository, out, workers=2)
    assert [step.to_do for step in again] == [[], [], []]
    assert sum(step.minutes_left for step in again) == 0


def test_reproduce_estimates_a_run_from_the_speed_of_the_reference_runs_or_its_time_limit(
    repository, tmp_path
):
    (run,) = find_runs(repository / "figures/reference")
    frames = run.history["step"].iloc[-1] * run.config.train.batch_size * (run.config.train.n_frames - 1)
    step = reproduce.steps(repository, tmp_path, 2, ["ablation"], epochs=7, clips_per_epoch=20)[0]
    expected = 7 * 20 * 3 * run.result["minutes"] / frames + reproduce.OVERHEAD["compact"]
    assert step.minutes == pytest.approx(expected)
    assert step.minutes_left == pytest.approx(expected)  # two runs, two at a time
    limited = reproduce.steps(repository, tmp_path, 1, ["ablation"], minutes=3.0)[0]
    assert limited.minutes == pytest.approx(3 + reproduce.OVERHEAD["compact"])


def test_reproduce_continues_after_a_failed_run_and_keeps_the_old_record(repository, tmp_path, monkeypatch):
    def failing(_, jobs, *__, **___):
        for job in jobs:
            if "no-flip" in job.run_dir or "none" in job.run_dir:
                yield Outcome(job.run_dir, False, "RuntimeError: no memory", 0.0)
            else:
                yield execute(None, job)

    monkeypatch.setattr(reproduce, "sweep", failing)
    before = {path: path.read_bytes() for path in (repository / "figures").rglob("*") if path.is_file()}
    todo = reproduce.steps(repository, tmp_path / "out", workers=2)
    failures = reproduce.reproduce(todo, repository, log=lambda _: None)
    assert failures == [
        "reference/none-seed0: RuntimeError: no memory",
        "ablation/no-flip-seed0: RuntimeError: no memory",
    ]
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == ["latent.csv"]  # the study without a failed run
    assert len(reproduce.steps(repository, tmp_path / "out", workers=2)[1].to_do) == 1


def test_reproduce_runs_the_gpu_study_on_request_and_draws_its_learning_curve(repository, tmp_path):
    todo = reproduce.steps(repository, tmp_path / "out", 1, ["handout"])
    assert [step.name for step in todo] == ["handout"]
    reproduce.reproduce(todo, repository, log=lambda _: None)
    (run,) = find_runs(repository / "figures/handout")
    curve = reference.learning_curve(run)
    steps = run.history["step"]
    assert curve["frames"].tolist() == (steps * run.config.train.batch_size * 3).tolist()
    assert (curve["mse"] + curve["weighted_kl"]).tolist() == pytest.approx(run.history["loss"].tolist())
    figure = reference.learning_curve_picture([run])
    scores, terms = figure.axes
    assert scores.lines[0].get_ydata().tolist() == run.history["heldout_psnr"].dropna().tolist()
    assert terms.lines[0].get_ydata().tolist() == run.history["mse"].tolist()
    text = reference.learning_summary(run)
    assert f"The test PSNR is {run.result['psnr_final']:.2f} dB" in text
    assert text.startswith("assignment: ")
    assert reference.learning_runs(repository / "figures/handout") == [run]


def test_the_learning_summary_of_a_run_that_stopped_contains_its_last_epoch_and_its_error(tmp_path):
    folder = tmp_path / "assignment-seed0"
    folder.mkdir()
    config = RunConfig.from_params("tiny", protocol="assignment")
    (folder / "config.json").write_text(config.to_json())
    columns = {
        "epoch": 1,
        "step": 7,
        "loss": 0.5,
        "mse": 0.5,
        "kl_nats": 1234.0,
        "kl_weight": 0.0,
        "lr": 1e-3,
        "seconds": 9.0,
    }
    row = pd.DataFrame([{**columns, "heldout_psnr": 8.5, "val_psnr_prior": 8.0}])
    row.to_csv(folder / "history.csv", index=False)
    (folder / "failure.json").write_text('{"message": "Not finite.", "hardware": "GPU, 2 CPU cores"}')
    (run,) = reference.learning_runs(tmp_path)
    text = reference.learning_summary(run)
    frames = 7 * config.train.batch_size * (config.train.n_frames - 1)
    assert text.startswith(
        f"assignment: stopped after epoch 1 of 70 on GPU, after {frames} predicted frames."
    )
    assert "error 0.5000, KL 1,234 nats per frame at a KL weight of 0, held-out PSNR 8.50 dB" in text
    assert text.endswith('"Not finite."')
    scores, _ = reference.learning_curve_picture([run]).axes
    assert [list(line.get_ydata()) for line in scores.lines] == [[8.5]]  # no baseline without a result


def test_reproduce_raises_an_error_for_unknown_records_and_uncommitted_changes(
    repository, tmp_path, monkeypatch
):
    with pytest.raises(RunError, match="no record 'ablaton'"):
        reproduce.steps(repository, tmp_path, 1, ["ablaton"])
    monkeypatch.setattr(
        result, "_git", lambda *words: "abc1234" if words[0] == "rev-parse" else " M config.py"
    )
    assert result.provenance()["commit"] == "abc1234+changes"
    with pytest.raises(RunError, match="has uncommitted changes"):
        result.commit_to_reproduce()


def test_a_copy_without_git_takes_its_commit_from_the_environment(monkeypatch):
    monkeypatch.setattr(result, "_git", lambda *_: "")
    monkeypatch.setenv("CVAE_LAB_COMMIT", "abc1234")
    assert result.provenance()["commit"] == "abc1234"
    monkeypatch.delenv("CVAE_LAB_COMMIT")
    assert result.provenance()["commit"] == ""


@pytest.mark.xdist_group("sweep")
def test_a_thousand_runs_are_compared_in_one_readable_picture(swept, tmp_path):
    source = swept[0] / "none-seed0"
    for variant in range(250):
        for seed in range(4):
            run = tmp_path / f"v{variant}-seed{seed}"
            run.mkdir()
            for name in ("config.json", "history.csv"):
                shutil.copyfile(source / name, run / name)
            content = json.loads((source / "result.json").read_text()) | {
                "heldout_psnr": 20 + variant / 100,
                "seed": seed,
            }
            (run / "result.json").write_text(json.dumps(content))
    runs = find_runs(tmp_path)
    table = runs_table(runs)
    assert len(table) == 1000
    assert by_variant(table)["variant"][0] == "v249"
    strategies, histories = write_pictures(runs, table, tmp_path)
    assert strategies.stat().st_size > 5_000
    assert histories.stat().st_size > 5_000
    from PIL import Image

    with Image.open(strategies) as picture:
        assert picture.height < 100 * (1.3 + 0.5 * (SHOWN + 1))  # height in pixels for SHOWN rows
