"""Test the fit of time against size with its interval, the axes, and processes that are timed together."""

import json
import math

import numpy as np
import pytest

from cvae_lab import bench
from cvae_lab.bench import scaling as module
from cvae_lab.bench.scaling import TINY, Efficiency, as_json, efficiencies, fit_exponent, scaling


def test_exponent_of_a_power_law():
    curve = {n: 3.0 * n**0.7 for n in (1, 2, 4, 8)}
    assert bench.exponent(curve) == pytest.approx(0.7)
    fit = fit_exponent("batch", curve)
    assert (fit.low, fit.exponent, fit.high) == pytest.approx((0.7, 0.7, 0.7))


def test_the_interval_covers_the_true_exponent_in_95_of_100_cases():
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        noise = np.exp(0.1 * draws.standard_normal(5))
        fit = fit_exponent("batch", {n: e * n**0.9 for n, e in zip((1, 2, 4, 8, 16), noise, strict=True)})
        covered += fit.low < 0.9 < fit.high
    assert 925 < covered < 975  # expected: 950, with a standard deviation of 7


def test_two_sizes_give_an_exponent_without_an_interval():
    fit = fit_exponent("batch", {1: 1.0, 2: 2.0})
    assert fit.exponent == pytest.approx(1)
    assert math.isnan(fit.low)


def test_time_is_measured_along_every_axis(monkeypatch):
    monkeypatch.setattr(module, "efficiencies", lambda sizes: iter([Efficiency("two processes", 10.0, 18.0)]))
    sizes = TINY._replace(frames=(2, 3), batch=(1, 2), clips=(1, 2), data=(12, 24), height=(32, 64))
    *growths, processes = rows = list(scaling(sizes))
    assert {row.axis: list(row.seconds) for row in growths} == {
        "frames per clip": [2, 3], "batch": [1, 2], "clips": [1, 2], "data size": [12, 24],
        "image size": [2048, 8192],
    }  # fmt: skip
    assert all(min(row.seconds.values()) > 0 for row in growths)
    assert processes.efficiency == pytest.approx(0.9)
    written = json.loads(as_json(rows, {"commit": "abc"}))
    assert [row["axis"] for row in written["growth"]] == [row.axis for row in growths]
    assert written["processes"][0]["efficiency"] == pytest.approx(0.9)


def test_a_way_to_start_processes_that_fails_does_not_stop_the_others(monkeypatch):
    def missing(count, sizes):
        raise ImportError("Dask is not installed")

    monkeypatch.setattr(module, "_processes", lambda count, sizes: 10.0 * count)
    monkeypatch.setattr(module, "_dask_workers", missing)
    monkeypatch.setattr(module, "_ranks", lambda count, sizes: 10.0 + count)
    independent, dask, ranks = efficiencies(TINY)
    assert independent.efficiency == 1
    assert "Dask is not installed" in str(dask)
    assert ranks.efficiency == pytest.approx(12 / 11 / 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["_processes", "_ranks"])
def test_two_processes_train_at_the_same_time(way):
    assert getattr(module, way)(2, TINY) > 0
