"""The synthetic data set: reproducibility, motion, labels, and the strength of the hidden factors."""

import math

import numpy as np
import pytest
import torch

from cvae_lab.data.synthetic import appearances, drawing, figure, motion, skeleton, varied
from cvae_lab.data.synthetic import dataset as synthetic

EVERY_MOVE = motion.TRAVELS | {"turn": motion.turn} | motion.GESTURES
FIXED = {
    "frames": [171.048, 165.923, 159.217],
    "labels": [253.098, 253.620, 253.641],
}  # mean red, green, blue
BONES = [
    ("hip", "knee", skeleton.THIGH),
    ("knee", "ankle", skeleton.SHIN),
    ("shoulder", "elbow", skeleton.UPPER_ARM),
    ("elbow", "wrist", skeleton.FOREARM),
]


@pytest.fixture(scope="module")
def tiny():
    return synthetic.render("tiny")


@pytest.fixture(scope="module")
def small_tests():
    """Render the six test clips of `small`, without its training recordings."""
    _, _, recordings = synthetic._recordings("small", 0)
    return synthetic._render_recordings(recordings, workers=1)


def mean_psnr(truth, guess):
    """Return the mean over frames of the PSNR in dB with peak 255. Both arguments have shape (n, 3, h, w)."""
    mse = ((truth.double() - guess.double()) ** 2).flatten(1).mean(1)
    return (10 * torch.log10(255**2 / mse.clamp_min(1e-6))).mean().item()


def standing(**changes):
    return skeleton.joints(motion.pose(x=0.0, z=5.0, **changes)[None])


# --- the data set -----------------------------------------------------------------------------------------


def test_sizes_are_those_documented():
    assert sum(synthetic.SIZES["small"].train) == 1536
    assert sum(synthetic.SIZES["full"].train) == 23410
    for size in ("small", "full"):
        assert synthetic.SIZES[size].val == 630
        assert synthetic.SIZES[size].tests == (630,) * 6


def test_an_unknown_size_is_refused_and_the_choices_are_named():
    for function in (synthetic.render, synthetic.hidden_factors):
        with pytest.raises(ValueError, match=r"'huge'.*tiny, small, full"):
            function("huge")


def test_tiny_has_the_documented_shapes(tiny):
    assert tiny.train.frames.shape == tiny.train.labels.shape == (192, 3, 32, 64)
    assert tiny.train.boundaries == (96,)
    assert tiny.val.frames.shape == tiny.val.labels.shape == (96, 3, 32, 64)
    assert [clip.name for clip in tiny.tests] == ["0", "1"]
    for clip in tiny.tests:
        assert clip.labels.shape == clip.answer.shape == (96, 3, 32, 64)
        assert torch.equal(clip.first, clip.answer[0])
        assert clip.answer.dtype == clip.labels.dtype == torch.uint8


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny):
    again, other = synthetic.render("tiny"), synthetic.render("tiny", seed=1)
    for one, two in ((tiny.train, again.train), (tiny.val, again.val)):
        assert torch.equal(one.frames, two.frames)
        assert torch.equal(one.labels, two.labels)
    assert all(torch.equal(a.answer, b.answer) for a, b in zip(tiny.tests, again.tests, strict=True))
    assert not torch.equal(tiny.train.labels, other.train.labels)


def test_recordings_differ_from_each_other(tiny):
    labels = [
        tiny.train.labels[:96],
        tiny.train.labels[96:],
        tiny.val.labels,
        *(c.labels for c in tiny.tests),
    ]
    assert len({one.numpy().tobytes() for one in labels}) == len(labels)


def test_the_number_of_processes_does_not_change_the_result():
    recordings = [synthetic.Recording(12, (0, 0, k)) for k in range(3)]
    one_process, two_processes = (
        synthetic._render_recordings(recordings, workers=1),
        synthetic._render_recordings(recordings, workers=2),
    )
    for (frames, labels), (frames2, labels2) in zip(one_process, two_processes, strict=True):
        assert torch.equal(frames, frames2)
        assert torch.equal(labels, labels2)


def test_a_short_recording_is_the_beginning_of_a_long_one():
    short, long = (synthetic._render_recording(synthetic.Recording(n, (0, 1, 0))) for n in (33, 60))
    assert torch.equal(short[0], long[0][:33])
    assert torch.equal(short[1], long[1][:33])


# --- recordings with different appearance -------------------------------------------------------------------


@pytest.fixture(scope="module")
def varied_recordings():
    """Render the first four training recordings of `varied`, with 12 frames each."""
    train, _, _ = synthetic._recordings("varied", 0)
    return [one._replace(frames=12) for one in train[:4]]


def test_the_frames_of_the_data_sets_with_a_fixed_appearance_have_not_changed(tiny):
    # Computed before `varied` was added. The tolerance allows for other versions of the drawing library.
    assert tiny.train.frames.double().mean(dim=(0, 2, 3)).tolist() == pytest.approx(FIXED["frames"], abs=0.02)
    assert tiny.train.labels.double().mean(dim=(0, 2, 3)).tolist() == pytest.approx(FIXED["labels"], abs=0.02)


def test_a_seed_determines_the_recordings_of_varied(varied_recordings):
    one = varied_recordings[0]
    first, again = synthetic._render_recording(one), synthetic._render_recording(one)
    other_seed = synthetic._render_recording(one._replace(key=(1, *one.key[1:])))
    for a, b, c in zip(first, again, other_seed, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_more_recordings_of_varied_begin_with_the_same_ones():
    few, many = (synthetic._recordings("varied", 3, count=count)[0] for count in (5, 9))
    assert many[:5] == few
    assert all(varied.MIN_FRAMES <= one.frames <= varied.MAX_FRAMES for one in many)
    keys = [one.key for split in synthetic._recordings("varied", 3) for one in split]
    assert len(set(keys)) == len(keys)


def test_the_appearance_is_equal_within_a_recording_and_differs_between_recordings(varied_recordings):
    # The corner pixels show the empty room. Within a recording, only the slow flicker changes them.
    rooms = []
    for one in varied_recordings:
        frames, _ = synthetic._render_recording(one, hidden=False)
        corners = frames[..., [0, 0, -1, -1], [0, -1, 0, -1]].double()
        assert ((corners == corners[:1]).all(dim=(1, 2))).double().mean() > 0.5
        rooms.append(corners.median(dim=0).values)
    for i, one in enumerate(rooms):
        assert all((one - other).abs().max() > 5 for other in rooms[:i])


def test_appearances_differ_in_every_property():
    rng = np.random.default_rng(0)
    drawn = [appearances.random_appearance(rng) for _ in range(50)]
    for name in figure.Appearance._fields:
        assert len({getattr(one, name) for one in drawn}) > 1, name
    bodies = np.array([appearances.random_body(rng) for _ in range(50)])
    assert (np.ptp(bodies, axis=0) > 0.1).all()
    cameras = np.array([appearances.random_camera(rng)[0][:4] for _ in range(50)])
    assert (np.ptp(cameras, axis=0) > 0.5).all()


def test_other_limb_lengths_scale_every_bone_and_keep_the_foot_on_the_floor():
    body = appearances.Body(leg=0.9, trunk=1.1, arm=1.2, shoulder=0.8, hip=1.3, head=1.1)
    poses = np.stack([motion.pose(x=1.0, z=5.0, yaw=40.0), motion.pose(bow=60.0, leg_l=70.0, knee_l=90.0)])
    old, new = skeleton.joints(poses), appearances.resized(skeleton.joints(poses), body)
    at = {name: i for i, name in enumerate(skeleton.JOINTS)}

    def length(places, a, b):
        return np.linalg.norm(places[:, at[a]] - places[:, at[b]], axis=1)

    for a, b, factor in (("hip_l", "knee_l", 0.9), ("pelvis", "neck", 1.1), ("elbow_r", "wrist_r", 1.2)):
        np.testing.assert_allclose(length(new, a, b), factor * length(old, a, b))
    ankles = [at["ankle_l"], at["ankle_r"]]
    np.testing.assert_allclose(new[:, ankles, 1].min(1), old[:, ankles, 1].min(1))


def test_default_lengths_change_no_joint():
    places = standing(arm_l=30.0)
    np.testing.assert_allclose(appearances.resized(places, appearances.Body()), places, atol=1e-12)


def test_a_larger_frame_of_varied_shows_the_same_scene(varied_recordings):
    small, small_labels = synthetic._render_recording(varied_recordings[1])
    large, large_labels = synthetic._render_recording(varied_recordings[1], height=64)
    reduced = torch.nn.functional.avg_pool2d(large.double(), 2)
    assert mean_psnr(small, reduced) > 25
    assert mean_psnr(small_labels, torch.nn.functional.avg_pool2d(large_labels.double(), 2)) > 20


# --- PSNR of trivial baselines ----------------------------------------------------------------------------


def test_the_static_baseline_has_a_low_psnr_on_every_clip(small_tests):
    assert all(mean_psnr(frames[1:], frames[:1]) < 22 for frames, _ in small_tests)


def test_the_mean_frame_has_a_low_psnr_on_every_clip(small_tests):
    assert all(mean_psnr(frames[1:], frames.double().mean(0, keepdim=True)) < 24 for frames, _ in small_tests)


def test_consecutive_frames_differ_by_a_realistic_amount(small_tests):
    for frames, _ in small_tests:
        assert 28 < mean_psnr(frames[1:], frames[:-1]) < 45
        assert (frames[1:] != frames[:-1]).flatten(1).any(1).all()


# --- the labels -------------------------------------------------------------------------------------------


def test_labels_are_thin_coloured_limbs_on_white(small_tests):
    for _, labels in small_tests:
        assert (labels == 255).all(1).double().mean() > 0.9
    red, green, blue = torch.cat([labels for _, labels in small_tests]).long().unbind(1)
    shown = {
        "violet": (blue > red + 20) & (red > green + 10),
        "light blue": (blue > red + 40) & (green > red + 20),
        "green": (green > red + 40) & (green > blue + 20),
        "orange": (red > green + 20) & (green > blue + 20),
    }
    assert min(mask.flatten(1).any(1).double().mean() for mask in shown.values()) > 0.5


def test_each_side_has_its_colours():
    """From the front, the green right leg is in the left half of the label, the orange left leg in the right half."""
    found = np.zeros((1, len(skeleton.JOINTS)), bool)
    red, green, _ = drawing.labels(standing(side_l=20, side_r=20), found)[0].astype(int)[:, 20:26]
    assert (green - red)[:, :31].max() > 50
    assert (red - green)[:, 33:].max() > 50
    assert (red - green)[:, :31].max() <= 5


def test_a_missed_joint_removes_its_limbs():
    whole, knee = np.zeros((2, len(skeleton.JOINTS)), bool), np.zeros((1, len(skeleton.JOINTS)), bool)
    whole[1] = True
    knee[0, skeleton.JOINTS.index("knee_l")] = True
    place = standing(side_l=20, side_r=20)
    all_there, nothing = drawing.labels(place.repeat(2, axis=0), whole)
    assert (nothing == 255).all()
    gone = (drawing.labels(place, knee)[0] != all_there).any(0)
    assert gone[:, 33:].any()
    assert not gone[:, :31].any()


def test_the_detector_misses_joints_at_the_border_outside_and_in_close_ups():
    rng = np.random.default_rng(0)
    middle, edge, out, near = ((32, 16, 14), (63, 16, 14), (66, 16, 14), (32, 16, 50))
    seen = np.tile(np.array([middle, edge, out, near], float), (5000, 1, 1))
    missed = synthetic._lost(seen, rng).mean(0)
    assert 0.002 < missed[0] < 0.03
    assert 0.2 < missed[1] < 0.4
    assert missed[2] == 1
    assert 0.25 < missed[3] < 0.5


# --- the hidden factors -----------------------------------------------------------------------------------


def test_hidden_factors_cover_every_frame():
    factors = synthetic.hidden_factors("small")
    assert {name: len(value) for name, value in factors.items()} == {
        "train": 1536,
        "val": 630,
        **{f"test{k}": 630 for k in range(6)},
    }
    pooled = np.concatenate(list(synthetic.hidden_factors("full").values()))
    assert np.abs(pooled.mean(0)).max() < 0.15
    assert np.abs(pooled.std(0) - 1).max() < 0.1


def test_brightness_follows_the_recorded_flicker(small_tests):
    """The brightness of an uncovered corner of the wall increases by FLICKER per unit."""
    factors = synthetic.hidden_factors("small")
    slopes = []
    for k, (frames, _) in enumerate(small_tests):
        corner = frames[:, :, 0, :4].double().mean((1, 2)).numpy()
        slopes.append(np.polyfit(factors[f"test{k}"][:, 1], corner / np.median(corner), 1)[0])
    assert np.mean(slopes) == pytest.approx(synthetic.FLICKER, rel=0.15)


def test_the_hem_sways_by_the_documented_number_of_metres():
    """In the image row of the skirt's hem, the centre of the figure's pixels moves with the hem.

    The arms are raised, so they are not in this row.
    """
    row = math.floor(drawing.HORIZON - (0.70 - drawing.EYE) * drawing.FOCAL / 5.0)
    place = standing(out_l=100.0, out_r=100.0).repeat(2, axis=0)
    rows = drawing.frames(place, np.array([0.0, synthetic.SWAY]), np.ones(2))[:, :, row].astype(float)
    cover = np.clip(rows[:, :, :1] - rows[:, :, 20:44], 0, None).sum(1)
    middle = (cover * np.arange(24)).sum(1) / cover.sum(1)
    assert middle[1] - middle[0] == pytest.approx(synthetic.SWAY * drawing.FOCAL / 5.0, rel=0.3)


def test_hidden_factors_change_frames_and_not_labels():
    recording = synthetic.Recording(200, (0, 2, 0))
    (frames, labels), (plain, labels2) = (
        synthetic._render_recording(recording),
        synthetic._render_recording(recording, hidden=False),
    )
    assert torch.equal(labels, labels2)
    assert 33 < mean_psnr(frames, plain) < 42


# --- the figure and its moves -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_MOVE)
def test_moves_are_physically_possible(name):
    """Bones have constant length, feet are on or above the floor, joints move smoothly, the last pose is neutral."""
    start = motion.pose(x=-0.5, z=4.9, yaw=30.0)
    poses = EVERY_MOVE[name](start, np.random.default_rng(3))
    places = skeleton.joints(np.concatenate([start[None], poses]))
    at = {name: places[:, i] for i, name in enumerate(skeleton.JOINTS)}
    for a, b, length in BONES:
        for side in "lr":
            bone = np.linalg.norm(at[f"{a}_{side}"] - at[f"{b}_{side}"], axis=1)
            np.testing.assert_allclose(bone, length, atol=1e-9)
    assert min(at[f"ankle_{side}"][:, 1].min() for side in "lr") >= skeleton.ANKLE - 1e-9
    assert np.linalg.norm(np.diff(places, axis=0), axis=2).max() < 0.3
    np.testing.assert_allclose(poses[-1], motion.pose(poses[-1]), atol=1e-9)


def test_the_gallery_has_every_move():
    gallery = synthetic.moves_gallery()
    assert list(gallery) == list(EVERY_MOVE)
    assert all(15 <= len(frames) == len(labels) for frames, labels in gallery.values())
    _, labels = gallery["walk out"]
    assert (labels == 255).flatten(1).all(1).any()
    room = torch.from_numpy(drawing._room()).permute(2, 0, 1)
    near, _ = gallery["come close"]
    covered = ((near - room).abs().amax(1) > 30).double().mean((1, 2))
    assert covered[0] < 0.1
    assert covered.max() > 0.25


def test_the_small_training_recordings_show_every_gesture(monkeypatch):
    shown = set()
    for name, move in motion.GESTURES.items():
        monkeypatch.setitem(
            motion.GESTURES, name, lambda *arguments, n=name, m=move: (shown.add(n), m(*arguments))[1]
        )
    for recording in synthetic._recordings("small", 0)[0]:
        motion.routine(recording.frames, recording.generators()[0])
    assert shown == set(motion.GESTURES)
