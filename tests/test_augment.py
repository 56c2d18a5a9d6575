"""Augmentation: mirroring, pasted rectangles, shift and brightness."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from cvae_lab.data import ClipBatch, load, palette
from cvae_lab.training import augment

H, W = 8, 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(clips):
    x, p = torch.rand(2, clips, 4, 3, H, W, generator=seeded())
    return ClipBatch(x, p)


PAIRS = [
    (palette.RIGHT_ARM, palette.LEFT_ARM),
    (palette.RIGHT_LEG, palette.LEFT_LEG),
    (palette.RIGHT_FOOT, palette.LEFT_FOOT),
]


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("pair", PAIRS)
def test_mirroring_a_label_exchanges_left_and_right_colours(strength, pair):
    right, left = (strength * (1 - torch.tensor(colour)[:, None, None] / 255) for colour in pair)
    label = torch.ones(3, H, W)
    label[:, :, 1:2], label[:, :, 5:6] = 1 - right, 1 - left
    mirrored = palette.mirror_labels(label)
    wanted = torch.ones(3, H, W)
    wanted[:, :, -2:-1], wanted[:, :, -6:-5] = 1 - left, 1 - right
    torch.testing.assert_close(mirrored, wanted)
    torch.testing.assert_close(palette.mirror_labels(mirrored), label)


def test_mirroring_keeps_the_colour_of_the_trunk():
    label = torch.ones(3, H, W)
    label[:, :, 4] = torch.tensor(palette.TRUNK)[:, None] / 255
    torch.testing.assert_close(palette.mirror_labels(label), label.flip(-1))


def test_skipping_white_pixels_does_not_change_the_result():
    label = load("tiny", progress=False).train.labels[:3].float() / 255
    assert (label == 1).all(1).float().mean() > 0.5  # most pixels are skipped
    without_skipping = 1 - palette.exchange_limbs(1 - label.flip(-1).movedim(-3, -1)).movedim(-1, -3)
    torch.testing.assert_close(palette.mirror_labels(label), without_skipping)


def test_mirroring_labels_twice_restores_them():
    labels = load("tiny", progress=False).train.labels[::8].float() / 255
    twice = palette.mirror_labels(palette.mirror_labels(labels))
    assert (twice - labels).abs().mean() < 1e-3
    assert ((twice - labels).abs().amax(1) > 0.1).float().mean() < 1e-2
    drawn = (1 - labels).amax(1) > 0.2
    moved = (palette.mirror_labels(labels) - labels.flip(-1)).abs().amax(1) > 0.1
    assert 0.02 < moved.sum() / drawn.sum() < 0.9


def test_shift_moves_frames_and_labels_of_a_clip_equally():
    batch, found = batch_of(64), set()
    moved = augment.shift(batch, 2, seeded(3))
    for k in range(64):
        for part, source in zip(moved, batch, strict=True):
            padded = F.pad(source[k], (2, 2, 0, 0), mode="replicate")
            places = [dx for dx in range(5) if torch.equal(part[k], padded[..., dx : dx + W])]
            assert len(places) == 1
            found.add((k, places[0]))
    assert len(found) == 64  # frames and labels are shifted equally
    unmoved = sum(place == 2 for _, place in found)
    assert 24 < unmoved < 56  # half of the clips are not shifted, and some random shifts are 0
    assert {place for _, place in found} == set(range(5))
    assert torch.equal(augment.shift(batch, 0, seeded()).x, batch.x)


def test_a_paste_is_the_same_rectangle_of_another_clip_in_frames_and_labels():
    """Each pixel value encodes a clip and a position, so the source of a pasted pixel is known."""
    count, kept, donors = 64, 0, set()
    names = torch.arange(count, dtype=torch.float)[:, None, None, None, None].expand(-1, 3, 3, H, W)
    places = torch.arange(H * W, dtype=torch.float).view(H, W) / 1000
    batch = ClipBatch(names + places, names + places + 100)
    pasted = augment.paste(batch, 0.5, seeded(7))
    assert torch.equal(pasted.p, pasted.x + 100)  # the same pixels in frames and labels
    for k in range(count):
        source = (pasted.x[k] - places).round()
        assert torch.equal(pasted.x[k], source + places)  # each pixel keeps its position
        assert torch.equal(source, source[0, 0].expand_as(source))  # the same in every frame and channel
        other = source[0, 0] != k
        if not other.any():
            kept += 1
            continue
        donor = source[0, 0][other].unique()
        assert len(donor) == 1
        donors.add(int(donor))
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns)
        for span in (rows, columns):  # the pasted area has no gaps
            first, last = span.nonzero().flatten()[[0, -1]]
            assert int(last - first) + 1 == int(span.sum())
    assert 20 < kept < 44
    assert len(donors) == count - kept  # no clip is the source of two pastes
    assert torch.equal(augment.paste(batch, 0.0, seeded()).x, batch.x)


def test_flip_mirrors_whole_clips_and_undoes_itself():
    batch = batch_of(16)
    once = augment.flip(batch, seeded(5))
    again = augment.flip(once, seeded(5))
    assert torch.equal(again.x, batch.x)
    chosen = [k for k in range(16) if not torch.equal(once.x[k], batch.x[k])]
    assert 0 < len(chosen) < 16
    for k, part in itertools.product(range(16), ("x", "p")):
        before, after = getattr(batch, part)[k], getattr(once, part)[k]
        if k in chosen:
            before = palette.mirror_labels(before) if part == "p" else before.flip(-1)
        assert torch.equal(after, before)


def test_jitter_scales_all_frames_of_a_clip_by_one_factor():
    batch = batch_of(8)
    batch = batch._replace(x=batch.x * 0.5 + 0.1)
    bright = augment.jitter(batch, 0.3, seeded())
    ratio = (bright.x / batch.x).flatten(1)
    assert (ratio.amax(1) - ratio.amin(1)).max() < 1e-5
    assert ratio.min() >= 0.7 - 1e-5
    assert ratio.max() <= 1.3 + 1e-5
    assert torch.equal(bright.p, batch.p)
