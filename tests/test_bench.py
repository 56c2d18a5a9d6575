"""The quantities of the benchmark are computed correctly. Measured speeds are not asserted."""

import json

import pytest
import torch

from cvae_lab import CVAE, ModelConfig, bench


def test_rows_and_file(tmp_path, monkeypatch):
    limits = {"matmul_float32_gflops": 1.0, "matmul_bfloat16_gflops": 1.0, "copy_gb_per_s": 1.0}
    monkeypatch.setattr(bench, "machine", lambda device: limits)
    rows = list(bench.bench(("compact",), repeats=1, batch=1, frames=3))
    assert [row.what.split(",")[0] for row in rows] == ["training"] * 4 + ["rollout"] * 3
    assert all(
        row.literal > 0 and row.ours > 0 and row.ratio == pytest.approx(row.ours / row.literal)
        for row in rows
    )
    for row in rows:  # with a limit of 1 GFLOP/s, the fractions are rates in GFLOP/s
        assert row.share_of_matmul / row.literal_of_matmul == pytest.approx(row.ratio)
    bench.write(tmp_path / "bench.json", rows, {"commit": "abc"})
    assert json.loads((tmp_path / "bench.json").read_text())["commit"] == "abc"
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 7


def test_memory_traffic_of_a_sum_equals_the_value_by_hand():
    a, b = torch.rand(2, 5, 7)
    work = bench._Work(lambda: a.t() + b.t(), 1)
    assert work.bytes_per_frame() == 3 * 4 * 5 * 7  # two are read, one is written; views have no traffic


def test_operations_of_a_layer_equal_the_value_by_hand():
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.rand(3, 5)
    work = bench._Work(lambda: layer(x).sum().backward(), 3)
    assert (
        work.flops_per_frame() == 2 * 2 * 5 * 7
    )  # forward pass and gradient of the weights; the input has no gradient


def test_exponent_of_a_power_law():
    assert bench.exponent({n: 3.0 * n**0.7 for n in (1, 2, 4, 8)}) == pytest.approx(0.7)


def test_flops_of_a_convolution_equal_the_value_by_hand():
    """The last layer of handout: 1x1, 24 to 3 channels, 2048 pixels, two operations each."""
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
