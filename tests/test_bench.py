"""The quantities of the benchmark are computed correctly. Measured speeds are not asserted."""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cvae_lab import CVAE, ModelConfig, bench
from cvae_lab.bench import measure, table
from cvae_lab.bench.measure import Case, Work, in_own_process, last_line, peak_mib, print_row, rows_of_process

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
LIMITS = {"matmul_float32_gflops": 1.0, "matmul_bfloat16_gflops": 1.0, "copy_gb_per_s": 1.0}


def test_rows_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "machine", lambda device: LIMITS)
    monkeypatch.setattr(table, "in_own_process", lambda function, preset, case: 100.0 * case.clips)
    rows = list(bench.bench(("compact",), repeats=1, batch=1, frames=3))
    assert [row.what.split(",")[0] for row in rows] == ["training"] * 4 + ["rollout"] * 3
    for row in rows:
        assert row.literal > 0
        assert row.ours > 0
        assert row.ratio == pytest.approx(row.ours / row.literal)
        # With limits of one GFLOP/s, the fractions are rates of the same operations.
        assert row.share_of_matmul / row.literal_of_matmul == pytest.approx(row.ratio)
    assert [row.peak_mib for row in rows] == [100.0, 100.0, 100.0, 1000.0, 100.0, 600.0, 6000.0]
    bench.write(tmp_path / "bench.json", rows, {"commit": "abc"})
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["commit"] == "abc"
    assert len(written["rows"]) == 7
    assert list(map(str, bench.read(tmp_path / "bench.json"))) == list(map(str, rows))


def test_a_table_of_an_earlier_version_is_read():
    rows = bench.read(ROOT / "figures/bench.json")
    kept = json.loads((ROOT / "figures/bench.json").read_text())["rows"]
    assert [row.ours for row in rows] == [row["ours"] for row in kept]
    assert [row.peak_mib for row in rows] == [row["peak_mib"] for row in kept]


def test_the_peak_of_a_row_excludes_the_process_that_started_it():
    block = np.ones(1 << 27)  # 1 GiB
    here = peak_mib(CPU)
    assert here > 1024
    del block
    alone = in_own_process(table.peak_memory, "compact", Case("", "training", 1, 2), "cpu")
    assert 50 < alone < here - 300


def test_a_row_whose_memory_cannot_be_measured_has_no_peak(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(table, "in_own_process", fail)
    assert math.isnan(table._peak("compact", Case("", "training", 1, 2)))


def fail_with_two_lines():
    raise ValueError("the cause")


def wait_for_a_minute():
    time.sleep(60)


def two_rows_and_a_crash():
    print_row({"row": 1})
    sys.stdout.write("a line that is not a row\n")
    print_row({"row": 2})
    os._exit(9)


def one_row_and_a_slow_end():
    import atexit

    atexit.register(time.sleep, 60)
    print_row({"row": 1})


@pytest.fixture
def importable(monkeypatch):
    """Set PYTHONPATH so that new processes can import this file."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("importable")
def test_a_failure_in_a_process_of_its_own_names_the_cause():
    with pytest.raises(RuntimeError, match="fail_with_two_lines failed: ValueError: the cause"):
        in_own_process(fail_with_two_lines)
    with pytest.raises(RuntimeError, match="did not end within 1 s"):
        in_own_process(wait_for_a_minute, timeout=1)


@pytest.mark.usefixtures("importable")
def test_rows_before_a_crash_or_the_end_of_the_time_are_kept():
    assert list(rows_of_process(two_rows_and_a_crash, seconds=60)) == [
        {"row": 1},
        {"row": 2},
        {"error": "exit status 9: no message"},
    ]
    assert list(rows_of_process(wait_for_a_minute, seconds=1)) == [{"error": "stopped after 1 s"}]


@pytest.mark.usefixtures("importable")
def test_a_process_that_returns_its_result_is_not_waited_for():
    started = time.monotonic()
    assert list(rows_of_process(one_row_and_a_slow_end, seconds=50)) == [{"row": 1}]
    assert time.monotonic() - started < 45


def test_the_last_line_is_the_one_that_names_an_error():
    text = "Traceback\n  File x\nValueError: the cause\nsee above\n=======\n"
    assert last_line(text) == "ValueError: the cause"
    assert last_line("first\nsecond\n----") == "second"
    assert last_line("") == "no message"


def test_memory_traffic_of_a_sum_equals_the_value_by_hand():
    a, b = torch.rand(2, 5, 7)
    work = Work(lambda: a.t() + b.t(), 1)
    # Two tensors are read and one is written. Transposes are not counted.
    assert work.bytes_per_frame() == 3 * 4 * 5 * 7


def test_operations_of_a_layer_equal_the_value_by_hand():
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.rand(3, 5)
    work = Work(lambda: layer(x).sum().backward(), 3)
    # Forward pass and gradient of the weights are counted. The input has no gradient.
    assert work.flops_per_frame() == 2 * 2 * 5 * 7


def test_the_limits_of_a_machine_are_positive_rates():
    limits = measure.machine(CPU, tiny=True)
    assert min(limits["matmul_float32_gflops"], limits["matmul_bfloat16_gflops"], limits["copy_gb_per_s"]) > 0


def test_flops_of_a_convolution_equal_the_value_by_hand():
    """The last layer of `handout` is a 1x1 convolution from 24 to 3 channels, with two operations per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    model = CVAE(ModelConfig.preset("handout"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.Generator[7](torch.rand(1, 24, 32, 64))
    assert counter.get_total_flops() == 2 * 24 * 3 * 32 * 64
    assert bench.flops_per_frame(model) == pytest.approx(7.25e9, rel=0.01)


def test_times_are_summed_by_kind_and_the_rest_is_python_and_waiting():
    times = {
        "aten::mkldnn_convolution": 20.0,
        "aten::convolution_backward": 10.0,
        "aten::native_group_norm": 5.0,
    }
    times |= {"aten::silu": 15.0, "Optimizer.step#Muon.step": 999.0}
    fractions = bench.fractions_by_kind(times, wall=100.0)
    assert fractions == pytest.approx(
        {"convolution": 0.3, "norm": 0.05, "other operations": 0.15, "Python and waiting": 0.5}
    )


@pytest.mark.parametrize("fast", [False, True])
def test_a_training_step_spends_time_in_every_kind(fast):
    fractions = bench.time_by_kind("compact", fast)
    assert min(fractions["convolution"], fractions["norm"], fractions["other operations"]) > 0
    assert sum(fractions.values()) == pytest.approx(1, abs=0.05)  # no operation is counted twice
