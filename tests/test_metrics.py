"""Scores against numpy and scipy, baselines and grades by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from cvae_lab.evaluation.metrics import (
    GRADES,
    copy_previous_baseline,
    drift,
    grade,
    mean_frame_baseline,
    mse,
    pooled_psnr,
    psnr,
    ssim,
    static_baseline,
)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def grey(*levels):
    """One plain frame per level."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 6)


def numpy_psnr(a, b):
    return 10 * np.log10(1 / np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


def test_psnr_is_the_formula():
    a, b = rand(2, 4, 3, 8, 16), rand(2, 4, 3, 8, 16, seed=1)
    wanted = [[numpy_psnr(a[i, j], b[i, j]) for j in range(4)] for i in range(2)]
    assert psnr(a, b).numpy() == pytest.approx(np.array(wanted), abs=1e-4)
    assert mse(a, b).numpy() == pytest.approx(10 ** (-np.array(wanted) / 10), rel=1e-5)
    assert psnr(a, a).tolist() == [[100.0] * 4] * 2


def test_predictions_are_clamped_before_scoring():
    truth = rand(3, 3, 8, 16)
    wild = truth + torch.where(rand(3, 3, 8, 16, seed=1) < 0.5, -3.0, 3.0)
    expected = [numpy_psnr(np.clip(wild[i].numpy(), 0, 1), truth[i]) for i in range(3)]
    assert psnr(wild, truth).tolist() == pytest.approx(expected, abs=1e-4)
    assert pooled_psnr(wild, truth) == pytest.approx(numpy_psnr(np.clip(wild.numpy(), 0, 1), truth), abs=1e-4)


def test_pooled_psnr_is_at_most_the_mean_of_frames():
    truth = rand(5, 3, 8, 16)
    even, uneven = truth * 0.9, truth * (1 - 0.2 * torch.arange(5)[:, None, None, None])
    for prediction in (even, uneven):
        assert pooled_psnr(prediction, truth) <= psnr(prediction, truth).mean().item() + 1e-4
    same_error = (truth * 0.5 + 0.25).clamp(0, 1)
    assert pooled_psnr(same_error, same_error - 0.1) == pytest.approx(20.0, abs=1e-3)
    assert pooled_psnr(uneven, truth) < psnr(uneven, truth).mean().item() - 1


def test_baselines_by_hand():
    truth = grey(0.5, 0.6, 0.8, 0.7)
    assert static_baseline(truth).tolist() == pytest.approx(
        [20, -20 * math.log10(0.3), -20 * math.log10(0.2)], abs=1e-3
    )
    assert copy_previous_baseline(truth).tolist() == pytest.approx([20, -20 * math.log10(0.2), 20], abs=1e-3)
    assert mean_frame_baseline(truth, grey(0.7)[0]).tolist() == pytest.approx([20, 20, 100], abs=1e-3)


@pytest.mark.parametrize(
    ("bound", "percent", "below"),
    [(25, 100, 90), (24, 90, 80), (23, 80, 70), (22, 70, 60), (21, 60, 50), (20, 50, 0)],
)
def test_grade_at_every_bound_and_just_below(bound, percent, below):
    assert grade(float(bound)) == percent
    assert grade(math.nextafter(bound, 0)) == below


def test_grade_beyond_the_table():
    assert len(GRADES) == 6
    assert (grade(40.0), grade(0.0), grade(float("nan"))) == (100, 0, 0)


def direct_ssim(a, b):
    """Wang et al. 2004: an 11x11 Gaussian window of sd 1.5 at every pixel, the frame mirrored at its border."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True):
        mx, my, xx, yy, xy = (convolve(v, window, mode="mirror") for v in (x, y, x * x, y * y, x * y))
        c1, c2 = 0.01**2, 0.03**2
        likeness = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
        values.append(likeness / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)))
    return np.mean(values)


@pytest.mark.parametrize("n", [1, 3])
def test_ssim_is_the_direct_one(n):
    truth = rand(n, 3, 32, 64)
    prediction = (truth + 0.3 * rand(n, 3, 32, 64, seed=1)).clamp(0, 1)
    wanted = [direct_ssim(p, t) for p, t in zip(prediction, truth, strict=True)]
    assert ssim(prediction, truth).tolist() == pytest.approx(wanted, abs=1e-4)
    assert ssim(truth, truth).tolist() == pytest.approx([1.0] * n, abs=1e-5)


def test_ssim_clamps_predictions():
    truth = rand(2, 3, 32, 64)
    assert torch.equal(ssim(truth * 3 - 1, truth), ssim((truth * 3 - 1).clamp(0, 1), truth))


def test_drift_of_an_exact_line():
    line = 30 - 0.02 * torch.arange(629)
    assert drift(line) == pytest.approx(-2.0, abs=1e-4)
    bent = torch.cat([torch.full((100,), 80.0), line[100:]])
    assert drift(bent) == pytest.approx(-2.0, abs=1e-4)
    assert drift(line, start=0) == pytest.approx(-2.0, abs=1e-4)
    assert drift(torch.tensor([1.0, 2.0]), start=0) == pytest.approx(100)
    assert math.isnan(drift(line[:101]))
