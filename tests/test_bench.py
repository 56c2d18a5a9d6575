"""The bench measures what it says; its figures are never asserted."""

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
    for row in rows:  # with limits of one GFLOP/s, shares are rates: of the same operations
        assert row.share_of_matmul / row.literal_of_matmul == pytest.approx(row.ratio)
    bench.write(tmp_path / "bench.json", rows, {"commit": "abc"})
    assert json.loads((tmp_path / "bench.json").read_text())["commit"] == "abc"
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 7


def test_traffic_of_a_sum_by_hand():
    a, b = torch.rand(2, 5, 7)
    work = bench._Work(lambda: a.t() + b.t(), 1)
    assert work.bytes_per_frame() == 3 * 4 * 5 * 7  # two read, one written; the transposes move nothing


def test_operations_of_a_layer_by_hand():
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.rand(3, 5)
    work = bench._Work(lambda: layer(x).sum().backward(), 3)
    assert work.flops_per_frame() == 2 * 2 * 5 * 7  # forward, and the weights' gradient: the input needs none


def test_exponent_of_a_power_law():
    assert bench.exponent({n: 3.0 * n**0.7 for n in (1, 2, 4, 8)}) == pytest.approx(0.7)


def test_flops_of_a_convolution_by_hand():
    """The handout's last layer alone: 1x1, 24 to 3 channels, 2048 places, two operations each."""
    from torch.utils.flop_counter import FlopCounterMode

    model = CVAE(ModelConfig.preset("handout"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.Generator[7](torch.rand(1, 24, 32, 64))
    assert counter.get_total_flops() == 2 * 24 * 3 * 32 * 64
    assert bench.flops_per_frame(model) == pytest.approx(7.25e9, rel=0.01)


def test_time_by_kind_adds_up():
    shares = bench.time_by_kind("compact")
    assert sum(shares.values()) == pytest.approx(1, abs=0.6)
    assert shares["convolution"] > 0
