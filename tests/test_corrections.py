"""Test the two test-time corrections: averaging with the mirrored prediction, and first-frame correction."""

import math
import subprocess
import sys

import pytest
import torch

from cvae_lab.config import ModelConfig
from cvae_lab.data.palette import mirror_labels
from cvae_lab.evaluation.corrections import (
    LABEL_DISTANCE,
    correction_weights,
    predict_corrected,
    predict_with_mirror,
)
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import clip_streams, predict

BATCH, SIZE = 2, (8, 16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    """Return a model with random weights. Its prior has almost no variance: equal labels give equal frames."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CVAE(ModelConfig.preset("compact", width=8, latents=2)).eval()
        with torch.no_grad():
            for value in model.parameters():
                value += 0.03 * torch.randn_like(value)
    model.Prior_Predictor = torch.nn.Identity()  # marks the prior as learned
    model.prior = lambda previous, label: (
        torch.zeros(len(label), 2, 1, 2),
        torch.full((len(label), 2, 1, 2), -200.0),
    )
    return model


@pytest.fixture
def first():
    return torch.rand(BATCH, 3, *SIZE, generator=seeded(1))


def labels(frames=9):
    """Return labels with the same right arm in every frame."""
    p = torch.ones(BATCH, frames, 3, *SIZE)
    p[..., 2:5, 3:6] = torch.tensor([92, 160, 255])[:, None, None] / 255
    return p


def test_mirroring_the_clip_mirrors_the_averaged_prediction(model, first):
    once = predict_with_mirror(model, first, labels(), seeded())
    assert not torch.allclose(once, predict(model, first, labels(), seeded()), atol=1e-3)
    again = predict_with_mirror(model, first.flip(-1), mirror_labels(labels()), seeded())
    torch.testing.assert_close(again.flip(-1), once)


def test_correction_weights_match_a_loop_over_pixels():
    p = torch.rand(3, 3, 6, 7, generator=seeded(2)) * 0.01
    for t in (1, 2):
        total = 0.0
        for y in range(6):
            for x in range(7):
                window = (..., slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3))
                means = (p[t][window] - p[0][window]).mean((-2, -1))
                total += float(means.abs().max())
        assert float(correction_weights(p)[t - 1]) == pytest.approx(
            math.exp(-total / 42 / LABEL_DISTANCE), rel=1e-4
        )


def test_correction_weights_are_1_for_label_0_and_0_for_a_distant_label():
    p = torch.stack([torch.ones(3, 8, 16), torch.ones(3, 8, 16), torch.zeros(3, 8, 16)])
    assert correction_weights(p).tolist() == [1, 0]


@pytest.mark.parametrize("mirror", [False, True])
def test_the_corrected_prediction_is_the_first_frame_if_labels_equal_label_0(model, first, mirror):
    """The uncorrected prediction has an error for this label, and the correction removes the error."""
    plain = predict(model, first, labels(), seeded())
    assert (plain[:, 3] - first).abs().mean() > 0.1
    corrected = predict_corrected(model, first, labels(), seeded(), mirror)
    torch.testing.assert_close(corrected[:, 3], first)


@pytest.mark.parametrize(("mirror", "method"), [(False, predict), (True, predict_with_mirror)])
def test_no_correction_if_labels_differ_much_from_label_0(model, first, mirror, method):
    p = labels()
    p[:, 1:, :, :, 8:] = 0.0
    corrected = predict_corrected(model, first, p, seeded(), mirror)
    torch.testing.assert_close(corrected, method(model, first, p, seeded()))


def test_the_correction_of_a_clip_does_not_depend_on_the_batch(model, first):
    p = labels()
    p[1, 4:, :, 5:] = 0.99
    both = predict_corrected(model, first, p, clip_streams(seeded(), 2), mirror=True)
    alone = predict_corrected(model, first[1:], p[1:], clip_streams(seeded(), 2)[1:], mirror=True)
    torch.testing.assert_close(both[1:], alone)
    assert 0 < float(correction_weights(p[1])[-1]) < 1


def test_a_long_clip_is_corrected_in_bounded_memory():
    """3,000 labels of 32 x 64 pixels: as float32, labels, their mirror images and frames take 74 MB each."""
    code = """
import resource, torch
from cvae_lab import CVAE, ModelConfig
from cvae_lab.evaluation.corrections import predict_corrected
model = CVAE(ModelConfig.preset("compact", width=8, latents=2))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
labels = torch.zeros(1, 3_000, 3, 32, 64, dtype=torch.uint8)
before = peak()
print(predict_corrected(model, torch.zeros(1, 3, 32, 64), labels, mirror=True).shape[1], peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frames, growth = map(float, done.stdout.split())
    assert frames == 2_999
    assert growth < 130  # MiB: the frames, and working memory
