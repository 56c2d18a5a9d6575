"""Test parts, time limit and checks of `bench --gpu`, and the whole command with tiny sizes on a CPU."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from cvae_lab.__main__ import main
from cvae_lab.bench import gpu, table
from cvae_lab.bench.gpu import checks as gpu_checks
from cvae_lab.bench.gpu import report as gpu_report
from cvae_lab.bench.gpu import sizes as gpu_sizes
from cvae_lab.bench.gpu.checks import Check
from cvae_lab.bench.measure import Work
from cvae_lab.config import ConfigError, ModelConfig
from cvae_lab.runs.commands.benchmark import GPU_PARTS

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = ModelConfig(width=8, latents=2)
LIMITS = {"matmul_float32_gflops": 1.0, "matmul_bfloat16_gflops": 1.0, "copy_gb_per_s": 1.0}

WITHOUT_PACKAGES = """
import sys
from importlib.machinery import PathFinder

MISSING = {"jupyterlab", "papermill", "dask", "distributed", "playwright", "pandas", "matplotlib", "IPython",
           "ipywidgets", "anywidget", "imageio", "av", "sklearn", "filelock"}


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_without_the_packages_of_notebooks_and_sweeps(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PACKAGES)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    out = tmp_path / "gpu.json"
    words = [
        "bench",
        "--gpu",
        str(out),
        "--device",
        "cpu",
        "--tiny",
        "--budget",
        "2400",
    ]  # seconds; enough even on a busy machine
    done = subprocess.run(
        [sys.executable, "-m", "cvae_lab", *words],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    rows = {part: [row for row in written["rows"] if row["part"] == part] for part in GPU_PARTS}
    assert not [row for row in written["rows"] if any("error" in key or key == "skipped" for key in row)]
    assert [row["passed"] for row in rows["checks"]].count(None) == 4  # synchronisations and graphs need CUDA
    assert all(row["passed"] in (True, None) for row in rows["checks"])
    assert len(rows["training"]) == 2 * 3
    assert len(rows["rollout"]) == 2 * 2
    assert all(
        row["ratio"] > 0 and row["of_copy"] > 0 for part in ("training", "rollout") for row in rows[part]
    )
    assert len(rows["score"]) == 3
    assert all(5 < row["psnr_db"] < 40 for row in rows["score"])
    for text in ("passed", "compact, training, batch 2, forcing 0.5", "0.02 min on tiny", f"Wrote {out}."):
        assert text in done.stdout


def test_without_a_gpu_the_command_is_refused_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--gpu", str(tmp_path / "gpu.json")]) == 1
    error = capsys.readouterr().err
    assert "no CUDA GPU" in error
    assert "--device cpu --tiny" in error
    assert error.count("\n") == 1


def test_the_command_line_names_the_parts_of_the_budget():
    assert list(gpu_sizes.FRACTIONS) == GPU_PARTS
    assert sum(gpu_sizes.FRACTIONS.values()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="'x'"):
        gpu.gpu(Path("unused"), "cpu", only=["x"])


@pytest.fixture
def parts(monkeypatch):
    """Replace the processes that run the parts. Return the list of calls: part and time limit in seconds."""
    calls = []

    def run(function, part, device, tiny, ends, graphs, seconds):
        calls.append((part, ends - time.time()))
        yield {"error": "it crashed"} if part == "checks" else {"model": "compact"}

    monkeypatch.setattr(gpu, "rows_of_process", run)
    return calls


def test_a_part_that_fails_does_not_stop_the_others_and_leaves_its_time_to_them(parts, tmp_path):
    log = []
    rows = gpu.gpu(
        tmp_path / "gpu.json", "cpu", budget=100, only=GPU_PARTS[:4], about={"commit": "abc"}, log=log.append
    )
    assert [row["part"] for row in rows] == GPU_PARTS[:4]
    assert any("it crashed" in line for line in log)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rows"] == rows
    assert written["commit"] == "abc"
    total = sum(gpu_sizes.MINIMUM[part] for part in GPU_PARTS[:4])
    assert total > 100
    assert parts[0][1] == pytest.approx(100 * gpu_sizes.MINIMUM["machine"] / total, abs=2)
    assert parts[-1][1] == pytest.approx(100, abs=2)  # the earlier parts took no time


def test_every_part_gets_its_minimum_and_a_fraction_of_the_rest():
    parts = ["training", "rollout"]
    needed = sum(gpu_sizes.MINIMUM[part] for part in parts)
    assert gpu.allowance(needed, parts) == gpu_sizes.MINIMUM["training"]
    extra = gpu.allowance(needed + 32, parts) - gpu_sizes.MINIMUM["training"]
    assert extra == pytest.approx(
        32
        * gpu_sizes.FRACTIONS["training"]
        / (gpu_sizes.FRACTIONS["training"] + gpu_sizes.FRACTIONS["rollout"])
    )
    assert gpu.allowance(5, ["rollout"]) == pytest.approx(5)


@pytest.mark.parametrize("fails", [True, False])
def test_training_is_repeated_without_graphs_after_a_cuda_error(monkeypatch, tmp_path, fails):
    calls = []

    def run(function, part, device, tiny, ends, graphs, seconds):
        calls.append((part, graphs))
        yield {"ours_error": "CUDA error: an illegal memory access"} if fails and graphs else {"ours": 1.0}

    monkeypatch.setattr(gpu, "rows_of_process", run)
    rows = gpu.gpu(
        tmp_path / "gpu.json", "cpu", only=["training", "rollout"], budget=200, log=lambda text: None
    )
    repeated = [("training", False)] if fails else []
    assert calls == [("training", True), *repeated, ("rollout", True)]
    assert [row["part"] for row in rows].count("training") == 1 + fails


def test_batches_grow_until_one_does_not_fit_and_half_of_it_is_tried(monkeypatch):
    tried = []

    def compare(make, counted, device, repeats, ends, limits):
        batch = make.func.__self__.clips
        tried.append(batch)
        return {"ours_error": "out of memory"} if batch > 300 else {"ours": 1.0}

    monkeypatch.setattr(gpu, "compare", compare)
    monkeypatch.setattr(gpu, "machine", lambda device, tiny: LIMITS)
    sizes = gpu.NORMAL._replace(timed=("compact",))
    rows = list(gpu.training(CPU, sizes, time.time() + 100))
    assert tried == [2, 2, 2, 128, 128, 128, 512, 256, 256, 256, 32, 32, 32, 8, 8, 8]
    assert [row["forcing"] for row in rows[:3]] == [0.0, 1.0, 0.5]


def test_the_time_of_a_part_ends_its_measurements(monkeypatch):
    monkeypatch.setattr(gpu, "machine", lambda device, tiny: LIMITS)
    (row,) = gpu.training(CPU, gpu.TINY, time.time())
    assert "no time" in row["skipped"]


def test_runs_that_would_end_too_late_are_not_started(monkeypatch):
    started = []
    monkeypatch.setattr(gpu, "load", lambda data, progress: None)
    monkeypatch.setattr(
        gpu, "_score", lambda run, data: started.append(run.train.minutes) or {"psnr_db": 30.0}
    )
    rows = list(gpu.score(CPU, gpu.NORMAL, time.time() + 100))
    assert started == [1.0] * 3  # the runs take no time here
    assert [row["minutes"] for row in rows if "skipped" in row] == [2] * 3 + [4] * 3


def work(action, frames=4):
    return lambda fast: Work(lambda: action(fast), frames)


def test_one_side_that_fails_leaves_the_speed_of_the_other():
    def only_ours(fast):
        if not fast:
            raise torch.cuda.OutOfMemoryError("no room")
        torch.rand(3).add_(1)

    row = table.compare(work(only_ours), work(only_ours), CPU, 2, time.time() + 60, LIMITS)
    assert row["ours"] > 0
    assert row["reference_error"] == "out of memory"
    assert "ratio" not in row


def test_operations_and_bytes_are_counted_on_the_smaller_work():
    layer, few, many = torch.nn.Linear(5, 7, bias=False), torch.rand(2, 5), torch.rand(200, 5)
    with torch.no_grad():
        row = table.compare(
            work(lambda fast: layer(many), 200), work(lambda fast: layer(few), 2), CPU, 1, time.time() + 60, LIMITS
        )  # fmt: skip
    assert row["of_matmul"] == pytest.approx(2 * 5 * 7 * row["ours"] / 1e9)
    assert row["of_copy"] == pytest.approx(4 * (2 * 5 + 5 * 7 + 2 * 7) / 2 * row["ours"] / 1e9)


def test_targets_are_computed_from_the_rows():
    handout = {"model": "handout", "what": "training"}
    rows = [
        {**handout, "batch": 2, "forcing": 0.0, "ours": 1000.0, "ratio": 8.0},
        {**handout, "batch": 2, "forcing": 1.0, "ours": 3000.0, "ratio": 12.0},
        {**handout, "batch": 32, "forcing": 0.0, "ours": 2341.0},
        {"model": "handout", "what": "rollout", "streams": 6, "ours": 2000.0, "ours_s": 1.9},
    ]
    free, forced, epoch, rollout = gpu_report.targets(rows)
    assert "8.0 times as fast as the reference loop (batch size 2, teacher-forcing ratio 0)" in free
    assert free.endswith("The target of 10 times is not reached.")
    assert "12.0 times as fast" in forced
    assert forced.endswith("The target of 10 times is reached.")
    assert "takes 10.0 s (batch size 32, teacher-forcing ratio 0). The target of 10 s is reached." in epoch
    assert "takes 1.9 s (629 frames per clip). The target of 2 s is reached." in rollout
    assert gpu_report.targets([]) == []


def test_synchronising_operations_are_counted_by_line(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def action():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    places = gpu_checks.synchronising_lines(action)
    assert len(places) == 2
    assert places[0] == places[1]
    assert places[0].startswith("test_bench_gpu.py:")
    assert modes == ["warn", "default"]


def test_checks_pass_on_a_cpu():
    results = [gpu_checks.rollout(CPU, SMALL), gpu_checks.gradients(CPU, SMALL), gpu_checks.resumed(CPU)]
    assert all(result.passed for result in results), results
    assert gpu_checks.synchronisations(CPU).passed is None


def test_checks_find_a_wrong_fast_path(monkeypatch):
    predict, unroll, resume = gpu_checks.predict, gpu_checks.unroll, gpu_checks.checkpoint.resume
    monkeypatch.setattr(gpu_checks, "predict", lambda *inputs: predict(*inputs).roll(1, dims=1))
    assert not gpu_checks.rollout(CPU, SMALL).passed

    def without_feedback(model, x, p, eps, feedback):
        return unroll(
            model, x, p, eps, feedback._replace(teacher_forced=torch.ones_like(feedback.teacher_forced))
        )

    monkeypatch.setattr(gpu_checks, "unroll", without_feedback)
    assert not gpu_checks.gradients(CPU, SMALL).passed

    def with_other_noise(path, run):
        state = resume(path, run)
        state.generators["clips"].manual_seed(7)
        return state

    monkeypatch.setattr(gpu_checks.checkpoint, "resume", with_other_noise)
    assert not gpu_checks.resumed(CPU).passed


def test_a_check_that_raises_an_error_has_failed_and_the_next_one_runs(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access\nmore lines")

    for name in ("rollout", "gradients", "captured", "resumed", "in_own_process"):
        monkeypatch.setattr(gpu_checks, name, broken)
    monkeypatch.setattr(gpu_checks, "synchronisations", lambda device: Check(True, "1 synchronisations"))
    results = dict(gpu_checks.checks(CPU, {"compact": SMALL}))
    assert [result.passed for result in results.values()] == [False] * 3 + [True] + [False] * 4
    assert (
        results["DDP on one rank equals no DDP"].detail
        == "RuntimeError: CUDA error: an illegal memory access"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_check_passes_on_a_gpu():
    models = {"handout": ModelConfig.preset("handout"), "compact": ModelConfig()}
    results = dict(gpu_checks.checks(torch.device("cuda"), models))
    assert all(result.passed for result in results.values()), results


def test_the_markdown_report_contains_every_row_target_and_missing_measurement():
    rows = [
        {"part": "checks", "check": "a", "passed": True},
        {"part": "checks", "check": "b", "passed": False},
        {"part": "training", "model": "handout", "what": "training", "batch": 2, "forcing": 0.0, "ours": 1000.0,
         "reference": 80.0, "ratio": 12.5, "ours_mib": 50.0},
        {"part": "training", "model": "handout", "what": "training", "batch": 128, "forcing": 0.0, "ours": 2000.0,
         "ours_mib": 60.0, "skipped": "no time left for it"},
        {"part": "rollout", "error": "stopped after 64 s"},
    ]  # fmt: skip
    text = gpu_report.gpu_markdown({"hardware": "GPU", "torch": "2", "commit": "abc", "rows": rows})
    assert "GPU, torch 2, commit abc. 1 of 2 checks passed." in text
    assert (
        "| handout | training, batch size 2, teacher-forcing ratio 0 | 80.0 | 1,000.0 | 12.5 | 50 |" in text
    )
    assert "| handout | training, batch size 128, teacher-forcing ratio 0 | - | 2,000.0 | - | 60 |" in text
    assert "12.5 times as fast as the reference loop" in text
    assert "an epoch of 23,410 frames takes 11.7 s (batch size 128, teacher-forcing ratio 0)" in text
    missing = ["handout, training, batch size 128, teacher-forcing ratio 0, reference loop: no time left for it",
               "rollout: stopped after 64 s"]  # fmt: skip
    assert text.endswith("\n".join(f"- {line}" for line in missing))
