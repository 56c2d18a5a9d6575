"""Compare scores with numpy and scikit-image, and baselines and grades with values computed by hand."""

import math
import time

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cvae_lab.evaluation.metrics import (
    GRADES,
    average_2023,
    average_later,
    copy_previous_baseline,
    drift,
    frames_at_maximum,
    grade,
    mean_frame_baseline,
    mse,
    pooled_psnr,
    psnr,
    ssim,
    static_baseline,
)
from cvae_lab.evaluation.protocols import markdown, protocols


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def grey(*levels):
    """Return frames of one grey level each."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 6)


def numpy_psnr(a, b):
    return 10 * np.log10(1 / np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


def test_psnr_matches_its_formula():
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
def test_the_grade_at_every_bound_and_just_below(bound, percent, below):
    assert grade(float(bound)) == percent
    assert grade(math.nextafter(bound, 0)) == below


def test_the_grade_outside_the_table():
    assert len(GRADES) == 6
    assert (grade(40.0), grade(0.0), grade(float("nan"))) == (100, 0, 0)


def scikit_ssim(prediction, truth, **options):
    """Return the SSIM of each frame from scikit-image, for frames with channels first."""
    pairs = zip(prediction.double().numpy(), truth.double().numpy(), strict=True)
    return [structural_similarity(*pair, channel_axis=0, **options) for pair in pairs]


@pytest.mark.parametrize("size", [(32, 64), (64, 128), (11, 11)])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_ssim_equals_the_ssim_of_scikit_image(size, noise):
    truth = rand(3, 3, *size)
    truth[1] = truth[1].mean()  # a frame with a single grey level
    prediction = (truth + noise * (rand(3, 3, *size, seed=1) - 0.5)).clamp(0, 1)
    wanted = scikit_ssim(
        prediction, truth, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
    )
    assert ssim(prediction, truth).tolist() == pytest.approx(wanted, abs=1e-4)


def test_ssim_rejects_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 x 11 pixels or more, not 8 x 16"):
        ssim(rand(1, 3, 8, 16), rand(1, 3, 8, 16))


def test_ssim_scores_every_frame_of_a_clip_quickly():
    truth = rand(629, 3, 32, 64)
    started = time.process_time()
    ssim(truth, truth)
    assert time.process_time() - started < 2  # about 0.1 s on one core


def test_ssim_clamps_predictions():
    truth = rand(2, 3, 32, 64)
    assert torch.equal(ssim(truth * 3 - 1, truth), ssim((truth * 3 - 1).clamp(0, 1), truth))


def test_drift_is_the_slope_of_a_straight_line():
    line = 30 - 0.02 * torch.arange(629)
    assert drift(line) == pytest.approx(-2.0, abs=1e-4)
    bent = torch.cat([torch.full((100,), 80.0), line[100:]])
    assert drift(bent) == pytest.approx(-2.0, abs=1e-4)
    assert drift(line, start=0) == pytest.approx(-2.0, abs=1e-4)
    assert drift(torch.tensor([1.0, 2.0]), start=0) == pytest.approx(100)
    assert math.isnan(drift(line[:101]))


def test_frames_at_the_maximum_are_counted():
    truth = rand(4, 3, 8, 16)
    prediction = truth.clone()
    prediction[1] += 0.1
    prediction[2] += 1e-6  # 120 dB, but the maximum is 100 dB
    assert frames_at_maximum(psnr(prediction, truth)) == 3


def test_the_averages_of_the_course():
    scores = torch.linspace(20, 30, 629)
    assert average_2023(scores) == pytest.approx(25 * 629 / 628, rel=1e-5)
    assert average_later(scores) == pytest.approx(float(scores[:600].mean()))


@pytest.fixture
def drawn():
    """Return 3 predictions of 2 clips of 4 frames, and the true frames; prediction 0 has a colour cast."""
    truth = rand(2, 4, 3, 32, 64)
    noise = rand(3, 2, 4, 3, 32, 64, seed=1) - 0.5
    samples = (truth + torch.tensor([0.1, 0.4, 0.2])[:, None, None, None, None, None] * noise).clamp(0, 1)
    samples[0, :, :, 0] = (samples[0, :, :, 0] + 0.2).clamp(0, 1)
    return samples, truth


def test_protocols_match_scikit_image(drawn):
    samples, truth = drawn
    ours, pooled, course, svg, srvp = protocols(samples, truth)
    frames = [
        (samples[0, c, t].double().numpy(), truth[c, t].double().numpy()) for c in range(2) for t in range(4)
    ]
    by_frame = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in frames]
    assert ours.psnr == pytest.approx(np.mean(by_frame), abs=1e-3)
    assert course.psnr == pytest.approx(np.mean(by_frame) * 4 / 3, abs=1e-3)
    errors = [np.mean([(p - t) ** 2 for p, t in frames[4 * c : 4 * c + 4]]) for c in range(2)]
    assert pooled.psnr == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-3)
    by_channel = [peak_signal_noise_ratio(t[k], p[k], data_range=1) for p, t in frames for k in range(3)]
    assert svg.psnr == pytest.approx(np.mean(by_channel), abs=1e-3)
    by_channel = [structural_similarity(t[k], p[k], data_range=2) for p, t in frames for k in range(3)]
    assert svg.ssim == pytest.approx(np.mean(by_channel), abs=1e-4)
    assert srvp.name == "SRVP, best of 3"
    assert srvp.psnr == pytest.approx(float(psnr(samples, truth.expand_as(samples)).mean(-1).amax(0).mean()))


def test_protocols_differ_on_the_same_prediction(drawn):
    ours, pooled, course, svg, srvp = protocols(*drawn)
    assert pooled.psnr < ours.psnr < course.psnr
    assert svg.psnr > ours.psnr + 1  # the colour cast is in one channel
    assert svg.ssim > ours.ssim
    assert srvp.psnr >= ours.psnr
    assert srvp.ssim >= ours.ssim
    table = markdown([ours, pooled])
    assert f"| this project | {ours.psnr:.2f} | {ours.ssim:.3f} | 0 |" in table
    assert f"| pooled | {pooled.psnr:.2f} | - | 0 |" in table
