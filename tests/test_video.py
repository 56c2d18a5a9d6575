"""Data sets made from a video: decoding, keypoints, tracks, camera, estimator, splits, errors for faulty files."""

import json
import os
import struct
import subprocess
import sys
import sysconfig
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cvae_lab.__main__ import main
from cvae_lab.data import DataError, read_folder
from cvae_lab.data.synthetic import drawing, skeleton
from cvae_lab.data.synthetic import motion as moves
from cvae_lab.data.video import decode, estimator, make_data_set, read_report, split
from cvae_lab.data.video.keypoints import FORMATS, JOINTS, read_keypoints, to_joints
from cvae_lab.data.video.sample import exchange_sides, sample_joints, write_sample_video
from cvae_lab.data.video.tracks import Tracks, boxes, clean
from cvae_lab.teaching.check import CHECKS

HEIGHT, WIDTH, COUNT = 120, 160, 200
# The names of the keypoints, in the order of each format's documentation.
DOCUMENTED = {
    "BODY_25": (
        "nose neck shoulder_r elbow_r wrist_r shoulder_l elbow_l wrist_l pelvis hip_r knee_r ankle_r hip_l knee_l "
        "ankle_l eye_r eye_l ear_r ear_l toe_l smalltoe_l heel_l toe_r smalltoe_r heel_r"
    ),
    "COCO-18": (
        "nose neck shoulder_r elbow_r wrist_r shoulder_l elbow_l wrist_l hip_r knee_r ankle_r hip_l knee_l ankle_l "
        "eye_r eye_l ear_r ear_l"
    ),
    "COCO-17": (
        "nose eye_l eye_r ear_l ear_r shoulder_l shoulder_r elbow_l elbow_r wrist_l wrist_r hip_l hip_r knee_l "
        "knee_r ankle_l ankle_r"
    ),
    "mediapipe-33": (
        "nose eyein_l eye_l eyeout_l eyein_r eye_r eyeout_r ear_l ear_r mouth_l mouth_r shoulder_l shoulder_r "
        "elbow_l elbow_r wrist_l wrist_r pinky_l pinky_r index_l index_r thumb_l thumb_r hip_l hip_r knee_l knee_r "
        "ankle_l ankle_r heel_l heel_r toe_l toe_r"
    ),
}
NAMES = {name: text.split() for name, text in DOCUMENTED.items()}


@pytest.fixture(autouse=True)
def _no_estimator(monkeypatch):
    """Hide an estimator that the user has installed, so that tests do not depend on it."""
    monkeypatch.delenv("CVAE_LAB_MEDIAPIPE", raising=False)


def write_video(file, frames, times=None, rate=25, **options):
    """Encode RGB frames with H.264 (FFV1 for .mkv). `times` are the time stamps of the frames in seconds."""
    with av.open(str(file), "w", options={k: str(v) for k, v in options.items()}) as container:
        stream = container.add_stream("ffv1" if Path(file).suffix == ".mkv" else "libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (i / rate if times is None else times[i]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def plain(level, height=48, width=64):
    return np.full((height, width, 3), level, np.uint8)


def person(count=COUNT, seed=0):
    """Return positions (column, row) of the `JOINTS` of the moving figure in the synthetic data set."""
    poses = moves.routine(count, np.random.default_rng(seed))
    poses[:, :2] = [0, 5]  # in the middle of the picture, at one distance
    seen = drawing.project(skeleton.joints(poses))[..., :2]
    order = [skeleton.JOINTS.index(joint) for joint in JOINTS]
    return seen[:, order] * 2.5 + [0, 25]


def background(seed=0, height=HEIGHT, width=WIDTH):
    """Return a picture with texture everywhere."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 200, (height // 4, width // 4, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BILINEAR))


def scene(points):
    """Draw frames of a person as thick red lines on a fixed background."""
    frames = []
    for pose in points:
        picture = Image.fromarray(background())
        draw = ImageDraw.Draw(picture)
        for a, b, _ in drawing.LIMBS:
            draw.line([tuple(pose[JOINTS.index(joint)]) for joint in (a, b)], (230, 0, 0), width=5)
        frames.append(np.array(picture))
    return frames


def save_npz(file, points):
    np.savez(file, keypoints=points, joints=np.array(JOINTS))
    return file


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Write a video of one person and its keypoints."""
    folder = tmp_path_factory.mktemp("clip")
    points = person()
    return write_video(folder / "clip.mp4", scene(points)), save_npz(folder / "clip.npz", points), points


def read(file, tmp_path, **options):
    return decode.read_video(file, tmp_path, progress=False, **options)


# --- decoding ---


def test_every_frame_of_a_variable_rate_video_is_read_once_with_its_time(tmp_path):
    times = np.cumsum([0.067 if i % 3 == 1 else 0.033 for i in range(90)]) - 0.033
    file = write_video(tmp_path / "variable.mp4", [plain(2 * i) for i in range(90)], times, rate=30)
    video = read(file, tmp_path)
    assert len(video.frames) == 90
    np.testing.assert_allclose(video.times, times, atol=1.1e-3)
    # Every frame is brighter than the one before, so no frame is repeated.
    assert (np.diff(video.frames[:, 20, 20, 0].astype(int)) > 0).all()


def test_fps_selects_frames_by_time_and_no_frame_twice(tmp_path):
    times = [*np.arange(30) / 30, *(2 + np.arange(30) / 30)]  # a pause of one second in the middle
    file = write_video(tmp_path / "pause.mp4", [plain(4 * i) for i in range(60)], times, rate=30)
    assert read(file, tmp_path, fps=10).numbers.tolist() == [*range(0, 30, 3), *range(30, 60, 3)]
    assert read(file, tmp_path, fps=100).numbers.tolist() == list(range(60))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_the_rotation_flag_is_applied(tmp_path, degrees):
    frames = [plain(0) for _ in range(8)]
    for frame in frames:
        frame[:24, :32] = 255  # the upper left quarter is white
    file = write_video(tmp_path / "turned.mp4", frames)
    # The rotation is the matrix in the track header: a, b, u, c, d, v, x, y, w in 16.16 fixed point (w: 2.30).
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value * 0x10000 for value in matrix)
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    file.write_bytes(content)
    video = read(file, tmp_path)
    # Players turn the picture clockwise by this angle. The white quarter is then at the upper right (90 degrees), the
    # lower right (180) or the lower left (270).
    corner = {90: (0, -1), 180: (-1, -1), 270: (-1, 0)}[degrees]
    white = {(i, j) for i in (0, -1) for j in (0, -1) if video.frames[0][i, j].mean() > 128}
    assert white == {corner}
    assert video.size == ((64, 48) if degrees == 180 else (48, 64))
    assert abs(video.rotation) in (90, 180)


def test_seconds_and_crop_are_exact_and_positions_are_converted(tmp_path):
    frames = [plain(0) for _ in range(50)]
    for frame in frames:
        frame[20:24, 40:44] = 255
    video = read(write_video(tmp_path / "a.mp4", frames), tmp_path, seconds=1.0, crop=(30, 10, 20, 30))
    assert video.frames.shape == (25, 30, 20, 3)
    assert video.frames[0][10:14, 10:14].mean() > 240
    np.testing.assert_array_equal(video.from_source(np.array([42.0, 22.0])), [12, 12])


def test_large_frames_are_scaled_down_and_positions_are_converted(tmp_path):
    video = read(write_video(tmp_path / "large.mp4", [plain(9, 720, 1280)] * 3), tmp_path)
    assert video.frames.shape == (3, 360, 640, 3)
    np.testing.assert_array_equal(video.from_source(np.array([1280.0, 720.0])), [640, 360])


def test_a_crop_outside_the_picture_is_refused(tmp_path):
    file = write_video(tmp_path / "a.mp4", [plain(0)] * 3)
    with pytest.raises(
        DataError, match=r"crop 40 x 30 at \(30, 10\) is not inside the upright picture of 64 x 48"
    ):
        read(file, tmp_path, crop=(30, 10, 40, 30))


def test_files_that_are_not_videos_are_refused_with_the_reason(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.mp4", tmp_path)
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    with pytest.raises(DataError, match="not a video"):
        read(tmp_path / "text.mp4", tmp_path)
    with pytest.raises(DataError, match="not a video"):
        read(tmp_path, tmp_path)


def test_a_file_with_sound_only_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(DataError, match=r"no video stream \(it contains audio\)"):
        read(tmp_path / "sound.wav", tmp_path)


def test_a_video_without_frames_is_refused(tmp_path):
    with av.open(str(tmp_path / "empty.mp4"), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match="no frame could be decoded"):
        read(tmp_path / "empty.mp4", tmp_path)


@pytest.mark.parametrize(("name", "options"), [("start.mp4", {"movflags": "faststart"}), ("end.mkv", {})])
def test_a_truncated_video_is_refused_but_its_beginning_is_readable(tmp_path, name, options):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
    file = write_video(tmp_path / name, frames, **options)
    assert len(read(file, tmp_path).frames) == 100
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(DataError, match=r"truncated or damaged after [0-9]+ frames, [0-9.]+ s of 4.0 s"):
        read(file, tmp_path)
    assert len(read(file, tmp_path, seconds=1.0).frames) == 25


def test_a_truncated_video_with_its_index_at_the_end_is_refused(tmp_path):
    file = write_video(
        tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    )
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(DataError, match="header or the end of the file is missing"):
        read(file, tmp_path)


# --- sizes ---


@pytest.mark.parametrize("shape", [(154, 250), (640, 360), (100, 200), (333, 640)])
@pytest.mark.parametrize("size", [(32, 64), (64, 128), (128, 256)])
def test_letterbox_and_crop_do_not_distort_the_picture(shape, size):
    picture = Image.new("RGB", shape[::-1])
    h, w = shape
    radius = min(shape) // 5
    ImageDraw.Draw(picture).ellipse(
        (w // 2 - radius, h // 2 - radius, w // 2 + radius, h // 2 + radius), "white"
    )
    frames = np.array(picture)[None]
    middle = np.array([[w / 2, h / 2]])
    for box in (decode.letterbox(shape, size), decode.crop_around(shape, size, middle)):
        disc = decode.fit(frames, box, size)[0, 0] / 255
        assert disc.sum(0).max() == pytest.approx(disc.sum(1).max(), abs=0.5)  # as high as wide, in pixels
        assert disc.sum(0).max() == pytest.approx((2 * radius + 1) * size[1] / box[2], abs=0.5)


def test_letterbox_shows_the_whole_picture_and_crop_has_no_bars():
    frames = np.full((1, 60, 60, 3), 200, np.uint8)
    bars = decode.fit(frames, decode.letterbox((60, 60), (32, 64)), (32, 64))[0, 0]
    assert (bars[:, 17:47] == 200).all()
    assert (bars[:, :15] == 0).all()
    assert (bars[:, 49:] == 0).all()
    box = decode.crop_around((60, 60), (32, 64), np.array([[10.0, 5.0], [50.0, 9.0]]))
    assert box == (0, 0, 60, 30)  # around the person at the top
    assert (decode.fit(frames, box, (32, 64)) == 200).all()


def test_a_crop_leaves_room_for_the_head_above_the_joints():
    joints = np.stack([np.full(1001, 50.0), np.linspace(20, 40, 1001)], axis=1)
    left, top, wide, high = decode.crop_around((100, 100), (32, 64), joints)
    assert (left, wide, high) == (0, 100, 50)
    # The percentiles are 19.2 pixels apart, around row 30. The centre is moved up by half of 15 % of this distance.
    assert top == pytest.approx(30 - 0.075 * 19.2 - 25)


# --- keypoints ---


def in_format(points, names):
    """Return one person in the format of a pose estimator.

    Joints are copied from `points` (joints, 2); other keypoints have confidence 0.
    """
    values = np.zeros((len(names), 3))
    for i, name in enumerate(names):
        if name in JOINTS:
            values[i] = [*points[JOINTS.index(name)], 0.9]
    return values


def write_keypoints(folder, kind, points):
    if kind in ("BODY_25", "COCO-18"):
        (folder / kind).mkdir()
        for i, pose in enumerate(points):
            people = [{"pose_keypoints_2d": in_format(pose, NAMES[kind]).ravel().tolist()}]
            file = folder / kind / f"clip_{i:012d}_keypoints.json"
            file.write_text(json.dumps({"version": 1.3, "people": people}))
        return folder / kind
    if kind == "COCO-17":
        entries = [
            {
                "image_id": f"{i}.jpg",
                "category_id": 1,
                "keypoints": in_format(p, NAMES[kind]).ravel().tolist(),
            }
            for i, p in enumerate(points)
        ]
        (folder / "coco.json").write_text(json.dumps(entries))
        return folder / "coco.json"
    if kind == "CSV":
        rows = [(i, joint, *pose[k], 0.9) for i, pose in enumerate(points) for k, joint in enumerate(JOINTS)]
        table = pd.DataFrame(rows, columns=["frame", "joint", "x", "y", "confidence"])
        table.to_csv(folder / "k.csv", index=False)
        return folder / "k.csv"
    if kind == "mediapipe-33":
        np.savez(folder / "k.npz", keypoints=[in_format(pose, NAMES[kind]) for pose in points])
        return folder / "k.npz"
    return save_npz(folder / "named.npz", points)


@pytest.mark.parametrize("kind", ["BODY_25", "COCO-18", "COCO-17", "CSV", "mediapipe-33", "npz"])
def test_every_format_gives_the_same_joints(tmp_path, kind):
    points = person(6)
    # In formats without neck and pelvis, these joints are computed as means of the left and right joints.
    for middle, part in (("neck", "shoulder"), ("pelvis", "hip")):
        sides = [points[:, JOINTS.index(f"{part}_{side}")] for side in "lr"]
        points[:, JOINTS.index(middle)] = sum(sides) / 2
    keypoints, crowded = read_keypoints(write_keypoints(tmp_path, kind, points), np.array([1, 4]))
    absent = ["toe_l", "toe_r"] if kind.startswith("COCO") else []
    known = [i for i, joint in enumerate(JOINTS) if joint not in absent]
    np.testing.assert_allclose(keypoints[:, known, :2], points[[1, 4]][:, known], atol=1e-9)
    assert np.isnan(keypoints[:, [JOINTS.index(joint) for joint in absent]]).all()
    assert crowded == 0


def test_the_indices_of_joints_agree_with_the_documentation_of_the_formats():
    for name, (count, places) in FORMATS.items():
        names = NAMES[name]
        assert count == len(names)
        assert {joint: names.index(joint) for joint in JOINTS if joint in names} == places


def test_the_same_person_is_followed_among_several(tmp_path):
    small, large = person(8) * 0.3 + [100, 0], person(8)
    (tmp_path / "people").mkdir()
    for i in range(8):
        people = [in_format(p[i], NAMES["BODY_25"]).ravel().tolist() for p in (small, large)]
        people = [{"pose_keypoints_2d": values} for values in (people[::-1] if i % 2 else people)]
        (tmp_path / f"people/a_{i:012d}_keypoints.json").write_text(json.dumps({"people": people}))
    keypoints, crowded = read_keypoints(tmp_path / "people", np.arange(8))
    np.testing.assert_allclose(keypoints[..., :2], large, atol=1e-9)
    assert crowded == 8


def test_a_joint_of_confidence_zero_is_missing():
    joints = to_joints(
        in_format(person(1)[0], [n if n != "wrist_l" else "x" for n in NAMES["COCO-17"]])[None], "COCO-17"
    )
    assert np.isnan(joints[0, JOINTS.index("wrist_l")]).all()
    assert not np.isnan(joints[0, JOINTS.index("wrist_r")]).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{", "cannot be read"),
        ("a.json", '[{"image_id": 0, "keypoints": [1, 2, 3]}]', "COCO-17 has 51"),
        ("a.json", '[{"keypoints": []}]', "cannot be read"),
        ("a.csv", "frame,joint,x\n0,nose,1\n", "no column 'y'"),
        ("a.csv", "frame,joint,x,y\n0,elbow,1,1\n", "unknown joint 'elbow'"),
        ("a.csv", "frame,joint,x,y\n0,nose,0.4,0.2\n", "fractions of the picture; give positions in pixels"),
        ("a.csv", "frame,joint,x,y\n99,nose,40,20\n", "no selected frame of the video has keypoints"),
        ("a.npz", "no archive", "cannot be read"),
        ("a.txt", "", "format of these keypoints is unknown"),
        ("people/clip_keypoints.json", "{}", "must end in a frame number"),
        ("people/clip_0_keypoints.json", '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "BODY_25 has 75"),
    ],
)
def test_faulty_keypoints_are_refused_with_the_reason(tmp_path, name, content, message):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    source = file if file.parent == tmp_path else file.parent
    with pytest.raises(DataError, match=message) as error:
        read_keypoints(source, np.arange(3))
    assert str(source) in str(error.value)


def test_missing_keypoints_and_unnamed_columns_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file or folder of keypoints"):
        read_keypoints(tmp_path / "none.json", np.arange(3))
    np.savez(tmp_path / "a.npz", keypoints=np.zeros((3, 20, 2)))
    with pytest.raises(DataError, match="no known format has 20 keypoints"):
        read_keypoints(tmp_path / "a.npz", np.arange(3))


# --- tracks ---


def sure(points):
    """Return keypoints at the given points with confidence 1."""
    return np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)


def seconds(count):
    return np.arange(count) / 25


def exchanged(points, frames, parts):
    """Return a copy of the points with left and right of `parts` exchanged in `frames`."""
    points = points.copy()
    left, right = ([JOINTS.index(f"{part}_{side}") for part in parts] for side in "lr")
    for i in frames:
        points[i, left + right] = points[i, right + left]
    return points


@pytest.mark.parametrize(
    "parts", [("hip", "knee", "ankle", "toe"), ("shoulder", "elbow", "wrist", "ear")], ids=["legs", "arms"]
)
def test_exchanged_sides_are_corrected(parts):
    true = np.repeat(person(1), 60, axis=0) + np.linspace(0, 20, 60)[:, None, None]
    faulty = exchanged(true, [*range(10, 14), 30, *range(50, 60)], parts)
    tracks = clean(sure(faulty), seconds(60), smooth=0)
    np.testing.assert_allclose(tracks.points, true)
    assert tracks.exchanged == 15


def test_most_exchanged_sides_of_a_walking_person_are_corrected_despite_noise():
    rng = np.random.default_rng(0)
    remaining = injected = 0
    for seed in range(6):
        true = person(200, seed) * 3
        noisy = true + rng.normal(0, 0.01 * np.ptp(true[0, :, 1]), true.shape)  # 1 % of the body's height
        parts = ("hip", "knee", "ankle", "toe")
        faulty = exchanged(noisy, [*range(40, 48), 90, *range(150, 153)], parts)
        far = np.abs(faulty - noisy).max((1, 2)) > 0.05 * np.ptp(true[0, :, 1])
        left = np.abs(clean(sure(faulty), seconds(200), smooth=0).points - noisy).max((1, 2))
        injected += far.sum()
        remaining += (left > 0.05 * np.ptp(true[0, :, 1])).sum()
    assert injected > 40
    assert remaining < 0.25 * injected


def test_exchanged_sides_in_the_first_frames_are_corrected_from_later_frames():
    true = np.repeat(person(1), 60, axis=0)
    tracks = clean(sure(exchanged(true, range(10), ("hip", "knee", "ankle", "toe"))), seconds(60), smooth=0)
    np.testing.assert_allclose(tracks.points, true)


def test_correct_keypoints_are_not_changed():
    true = person(200)
    tracks = clean(sure(true), seconds(200), smooth=0)
    np.testing.assert_array_equal(tracks.points, true)
    assert (tracks.exchanged, tracks.jumps, tracks.filled) == (0, 0, 0)
    assert tracks.recordings == ((0, 200),)
    assert tracks.lost_limbs() == {}


def test_an_outlier_is_replaced_by_interpolation():
    true = np.repeat(person(1), 40, axis=0)
    faulty = true.copy()
    faulty[20, JOINTS.index("wrist_l")] += 60
    tracks = clean(sure(faulty), seconds(40), smooth=0)
    np.testing.assert_allclose(tracks.points, true)
    assert (tracks.jumps, tracks.filled) == (1, 1)


def test_short_gaps_are_interpolated_and_long_gaps_are_missing_limbs():
    true = np.repeat(person(1), 40, axis=0) + np.arange(40.0)[:, None, None]
    faulty, wrist, knee = sure(true), JOINTS.index("wrist_r"), JOINTS.index("knee_l")
    faulty[10:15, wrist] = np.nan
    faulty[20:28, knee, 2] = 0.1  # confidence too low
    tracks = clean(faulty, seconds(40), max_gap=5, smooth=0)
    np.testing.assert_allclose(tracks.points[:, wrist], true[:, wrist])
    assert np.isnan(tracks.points[20:28, knee]).all()
    assert tracks.filled == 5
    assert tracks.lost_limbs() == {"hip_l to knee_l": 0.2, "knee_l to ankle_l": 0.2}


def test_frames_without_a_person_separate_recordings_and_short_recordings_are_not_used():
    keypoints = sure(person(120))
    keypoints[30:50] = np.nan  # longer than max_gap
    keypoints[70:74] = np.nan  # a short gap, which is filled
    keypoints[100:110] = np.nan  # leaves 10 frames at the end, too few for a clip
    tracks = clean(keypoints, seconds(120))
    assert tracks.recordings == ((0, 30), (50, 100))
    assert tracks.found.sum() == 120 - 20 - 4 - 10


def test_boundaries_and_pauses_in_the_video_separate_recordings():
    times = seconds(120)
    times[80:] += 3
    keypoints = sure(person(120))
    keypoints[39:41] = np.nan  # a gap across a boundary is not filled
    tracks = clean(keypoints, times, boundaries=(40,))
    assert tracks.recordings == ((0, 39), (41, 80), (80, 120))
    assert tracks.filled == 0


def test_smoothing_keeps_parabolas_and_reduces_noise():
    t = np.arange(60.0)
    true = np.repeat(person(1), 60, axis=0) + (0.01 * (t - 30) ** 2)[:, None, None]
    np.testing.assert_allclose(clean(sure(true), seconds(60), smooth=7).points, true)
    noisy = true + np.random.default_rng(0).normal(0, 0.5, true.shape)
    error = clean(sure(noisy), seconds(60), smooth=7).points - true
    # The filter of order 2 and window 7 reduces the variance of white noise to 1/3.
    assert error[5:-5].var() == pytest.approx(0.25 / 3, rel=0.1)
    np.testing.assert_array_equal(clean(sure(noisy), seconds(60), smooth=0).points, noisy)


@pytest.mark.parametrize("smooth", [1, 3, 6])
def test_a_window_that_is_even_or_too_short_is_refused(smooth):
    with pytest.raises(ValueError, match="odd number of frames from 5"):
        clean(sure(person(20)), seconds(20), smooth=smooth)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.floats(0, 1))
def test_any_keypoints_give_ordered_recordings_with_a_pose_in_every_frame(seed, count, missing):
    rng = np.random.default_rng(seed)
    keypoints = sure(rng.normal(80, 30, (count, len(JOINTS), 2)))
    keypoints[rng.random(keypoints.shape[:2]) < missing] = np.nan
    keypoints[rng.random(count) < missing / 4] = np.nan
    tracks = clean(keypoints, seconds(count))
    edges = [edge for recording in tracks.recordings for edge in recording]
    assert edges == sorted(edges)
    assert all(a >= 0 and b <= count and b - a >= 16 for a, b in tracks.recordings)
    for a, b in tracks.recordings:
        assert ((~np.isnan(tracks.points[a:b, :, 0])).sum(1) >= 8).all()


# --- camera ---


def test_the_shift_of_a_fixed_camera_is_zero_while_the_person_moves(clip):
    frames, points = np.array(scene(clip[2][:40])), clip[2][:40]
    path = decode.camera_path(frames, boxes(points, 0.1))
    np.testing.assert_array_equal(path, np.zeros((40, 2)))


def test_the_shift_of_a_panning_camera_is_measured():
    wide = background(width=WIDTH + 120)
    frames = np.array([wide[:, 3 * i : 3 * i + WIDTH] for i in range(40)])
    path = decode.camera_path(frames, np.full((40, 4), np.nan))
    np.testing.assert_allclose(path, np.stack([-3.0 * np.arange(40), np.zeros(40)], axis=1), atol=1)


def test_the_shift_is_not_known_if_the_background_has_no_texture():
    path = decode.camera_path(np.full((5, 120, 160, 3), 90, np.uint8), np.full((5, 4), np.nan))
    assert np.isnan(path[1:]).all()


# --- the sample video of notebook 10 ---


def test_the_sample_video_has_its_joints_and_one_fixed_camera(tmp_path):
    file, keypoints = write_sample_video(tmp_path, frames=120)
    points = np.load(keypoints)["keypoints"]
    video = read(file, tmp_path)
    assert video.frames.shape == (120, 256, 512, 3)
    assert points.shape == (120, len(JOINTS), 3)
    inside = points[~np.isnan(points[..., 0])]
    assert ((inside[:, :2] >= 0) & (inside[:, :2] <= [512, 256])).all()
    top = points[0, JOINTS.index("neck"), :2] * 0.4 + points[0, JOINTS.index("pelvis"), :2] * 0.6
    red, green, _ = video.frames[0][int(top[1]), int(top[0])].astype(int)
    assert red > green + 60  # the figure's top is red


def test_exchanging_sides_twice_gives_the_original_joints():
    joints = sample_joints(30)
    once = exchange_sides(joints, 5, 9)
    assert not np.array_equal(once, joints, equal_nan=True)
    np.testing.assert_array_equal(once[5, JOINTS.index("knee_l")], joints[5, JOINTS.index("knee_r")])
    np.testing.assert_array_equal(exchange_sides(once, 5, 9), joints)


# --- labels ---


def test_labels_of_the_synthetic_set_are_drawn_by_the_same_function():
    places = skeleton.joints(moves.routine(5, np.random.default_rng(1)))
    lost = np.random.default_rng(2).random(places.shape[:2]) < 0.1
    drawn = drawing.draw_limbs(drawing.project(places)[..., :2], lost)
    np.testing.assert_array_equal(drawn, drawing.labels(places, lost))


@pytest.mark.parametrize("times", [2, 4])
def test_larger_labels_show_the_same_picture(times):
    points = person(10) * 0.2
    lost = np.zeros(points.shape[:2], bool)
    small = drawing.draw_limbs(points, lost, JOINTS)
    large = drawing.draw_limbs(points * times, lost, JOINTS, (32 * times, 64 * times))
    reduced = large.reshape(10, 3, 32, times, 64, times).mean((3, 5))
    assert large.shape == (10, 3, 32 * times, 64 * times)
    # The bound is in grey levels from 0 to 255. The differences are due to rounding and to the edges of lines.
    assert np.abs(reduced - small).mean() < 0.5


# --- the estimator ---


def fake_environment(folder, estimator_code):
    """Create an environment with a stub of mediapipe and the numpy of the current environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "numpy.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (packages / "mediapipe.py").write_text(estimator_code)
    (folder / estimator.COMPLETE).write_text("stub\n")


STUB = """
from types import SimpleNamespace as N
class Pose:
    def __init__(self, model_complexity, smooth_landmarks): assert (model_complexity, smooth_landmarks) == (1, False)
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def process(self, frame):
        level = int(frame[0, 0, 0])  # landmark k at column k / 100 of the width; none in dark frames
        if level < 100: return N(pose_landmarks=None)
        return N(pose_landmarks=N(landmark=[N(x=k / 100, y=0.5, visibility=level / 255) for k in range(33)]))
solutions = N(pose=N(Pose=Pose))
"""


@pytest.fixture
def working_video(tmp_path):
    """Return a decoded video of three frames: dark, bright, dark."""
    return read(write_video(tmp_path / "a.mp4", [plain(level) for level in (16, 235, 16)]), tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="the stub environment has the layout of POSIX")
def test_landmarks_of_the_worker_become_joints_in_pixels(tmp_path, monkeypatch, working_video):
    monkeypatch.setenv("CVAE_LAB_MEDIAPIPE", str(tmp_path / "env"))
    fake_environment(tmp_path / "env", STUB)
    keypoints = estimator.estimate(working_video, tmp_path, progress=False)
    assert np.isnan(keypoints[[0, 2]]).all()
    ankle = keypoints[1, JOINTS.index("ankle_r")]
    np.testing.assert_allclose(ankle, [0.28 * 64, 24, 235 / 255], atol=0.01)


@pytest.mark.skipif(os.name == "nt", reason="the stub environment has the layout of POSIX")
def test_a_failing_worker_is_reported_with_its_reason(tmp_path, monkeypatch, working_video):
    monkeypatch.setenv("CVAE_LAB_MEDIAPIPE", str(tmp_path / "env"))
    fake_environment(tmp_path / "env", "raise ImportError('libGL is missing')")
    with pytest.raises(DataError, match=r"exit code 1 \(ImportError: libGL is missing\)"):
        estimator.estimate(working_video, tmp_path, progress=False)


def test_without_the_estimator_the_error_contains_the_install_command_and_nothing_is_decoded(
    tmp_path, clip, monkeypatch
):
    monkeypatch.setattr(decode, "read_video", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="video-setup"):
        make_data_set(clip[0], tmp_path / "out", progress=False)


@pytest.mark.slow
def test_the_real_estimator_finds_a_real_person(tmp_path, monkeypatch):
    """This test needs the real recording and, in CVAE_LAB_TEST_MEDIAPIPE, an environment made by `video-setup`."""
    file = Path(__file__).parents[2] / "shared/data/own-video/person.mp4"
    environment = os.environ.get("CVAE_LAB_TEST_MEDIAPIPE")
    if not environment or not file.is_file():
        pytest.skip("no estimator (CVAE_LAB_TEST_MEDIAPIPE) or no recording (../shared/data/own-video)")
    monkeypatch.setenv("CVAE_LAB_MEDIAPIPE", environment)
    report = make_data_set(file, tmp_path / "out", seconds=8, progress=False)
    assert report.measured["frames"] == 200
    assert report.measured["frames_with_pose"] >= 190


# --- the data set ---


@pytest.mark.parametrize(
    ("size", "fit"),
    [((32, 64), "letterbox"), ((32, 64), "crop"), ((64, 128), "crop"), ((128, 256), "letterbox")],
)
def test_a_data_set_is_made_whose_labels_match_the_person(tmp_path, clip, size, fit):
    file, keypoints, _ = clip
    out = tmp_path / "out"
    report = make_data_set(file, out, keypoints, size=size, fit=fit, progress=False)
    dataset = read_folder(out, size=size, progress=False)
    assert dataset.train.frames.shape == (140, 3, *size)
    assert (len(dataset.val), [len(test) for test in dataset.tests]) == (20, [20, 20])
    with Image.open(out / "train/train_img/0.png") as picture:
        assert picture.size == size[::-1]  # written at this size, not resized by read_folder
    frames, labels = dataset.train.frames.float(), dataset.train.labels
    limbs = (labels < 150).any(1)
    red = frames[:, 0] - frames[:, 1:].amax(1)
    assert red[limbs].mean() > red[~limbs].mean() + 60  # the person is drawn in red
    assert report.measured["camera"]["seconds"] is None
    assert report.measured["joints_outside"] < 0.2
    assert ("black bars" in " ".join(report.lines)) == (fit == "letterbox")


def test_splits_are_whole_segments_that_do_not_overlap(tmp_path, clip):
    report = make_data_set(clip[0], tmp_path / "out", clip[1], progress=False)
    parts = report.measured["parts"]
    assert parts == {"train": [[0, 139]], "val": [[140, 159]], "test 0": [[160, 179]], "test 1": [[180, 199]]}
    dataset = read_folder(tmp_path / "out", progress=False)
    every = torch.cat([dataset.train.labels, dataset.val.labels, *(test.labels for test in dataset.tests)])
    points = clean(sure(clip[2]), seconds(COUNT)).points
    left, top, wide, high = decode.letterbox((HEIGHT, WIDTH), (32, 64))
    seen = (points - [left, top]) * [64 / wide, 32 / high]
    expected = drawing.draw_limbs(seen, np.zeros(seen.shape[:2], bool), JOINTS)
    np.testing.assert_array_equal(every.numpy(), expected)
    assert all(torch.equal(test.answer[0], test.first) for test in dataset.tests)


def tracks_of(*recordings):
    count = recordings[-1][1]
    return Tracks(np.zeros((count, len(JOINTS), 2)), np.ones(count, bool), recordings, 0, 0, 0)


@pytest.mark.parametrize("lengths", [[80], [200, 40, 30], [16] * 6, [9000, 500], [17, 18, 200]])
def test_splits_use_every_frame_once_and_leave_no_short_recording(lengths):
    edges = np.cumsum([0, *(n + 5 for n in lengths)])
    recordings = tuple((int(a), int(a) + n) for a, n in zip(edges, lengths, strict=False))
    parts = split("clip.mp4", tracks_of(*recordings))
    segments = sorted(segment for part in parts.values() for segment in part)
    assert all(stop - start >= 16 for start, stop in segments)
    assert all(stop - start <= 645 for part in ("val", "test 0", "test 1") for start, stop in parts[part])
    used = [i for start, stop in segments for i in range(start, stop)]
    assert used == [i for start, stop in recordings for i in range(start, stop)]


def test_the_report_is_written_to_the_data_folder_and_printed_by_check(tmp_path, clip, capsys):
    out = tmp_path / "out"
    assert main(["video", str(clip[0]), "--out", str(out), "--pose", str(clip[1]), "--seconds", "6"]) == 0
    printed = capsys.readouterr().out
    assert "Pose: found in 150 frames (100.0%) by clip.npz." in printed
    assert "Camera: fixed" in printed
    report = read_report(out)
    assert report.measured["part_frames"] == {"test 0": 16, "test 1": 16, "train": 102, "val": 16}
    assert report.settings["seconds"] == 6
    assert main(["check", str(out)]) == 0
    assert "Camera: fixed" in capsys.readouterr().out
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size[0] == 4 * (320 + 6)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("data:image", "")  # the page loads no other file


def test_check_of_another_data_set_prints_nothing_about_a_video(handout, capsys):
    assert read_report(handout) is None
    assert main(["check", str(handout)]) == 0
    assert "video" not in capsys.readouterr().out


def test_a_moving_camera_several_recordings_and_missing_limbs_are_reported(tmp_path):
    points = person(120)
    wide = background(width=WIDTH + 120)
    file = write_video(tmp_path / "pan.mp4", [wide[:, i : i + WIDTH] for i in range(120)])
    points[50:60] = np.nan
    points[:, JOINTS.index("toe_l")] = np.nan
    report = make_data_set(file, tmp_path / "out", save_npz(tmp_path / "k.npz", points), progress=False)
    text = "\n".join(report.lines)
    assert "Warning: the camera moves" in text
    assert "Pose: found in 110 frames (91.7%) by k.npz." in text
    assert "a person: 2, with 110 frames; 10 frames are not used" in text
    assert "ankle_l to toe_l 100.0%" in text


def test_uneven_frame_times_are_reported_with_the_option_that_helps(tmp_path, clip):
    frames, points = scene(clip[2][:100]), clip[2][:100]
    times = np.arange(100) / 25 + 0.2 * (np.arange(100) >= 50)
    file = write_video(tmp_path / "uneven.mp4", frames, times)
    keypoints = save_npz(tmp_path / "k.npz", points)
    text = make_data_set(file, tmp_path / "out", keypoints, progress=False).lines[2]
    assert (
        text
        == "Warning: the time between frames varies and is up to 0.24 s; the option fps selects evenly spaced frames."
    )


def test_a_video_without_a_person_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    file = write_video(tmp_path / "empty.mp4", [background()] * 90)
    nobody = np.full((90, len(JOINTS), 3), np.nan)
    monkeypatch.setattr(estimator, "check_installed", lambda: None)
    monkeypatch.setattr(estimator, "estimate", lambda *_: nobody)
    with pytest.raises(DataError, match="0 of 90 frames show a person"):
        make_data_set(file, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_content_is_refused_before_decoding(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(decode, "read_video", lambda *_: pytest.fail("decoded"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("mine")
    with pytest.raises(DataError, match="already exists and is not empty"):
        make_data_set(clip[0], tmp_path / "out", clip[1], progress=False)


def test_the_command_refuses_a_faulty_video_with_one_line(tmp_path, clip, capsys):
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    arguments = ["video", str(tmp_path / "text.mp4"), "--out", str(tmp_path / "out"), "--pose", str(clip[1])]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "text.mp4" in error


# --- exercises of notebook 10 ---


def test_exercise_1_accepts_the_rule_of_read_video_and_refuses_similar_rules():
    from cvae_lab.teaching import exercises_10  # noqa: F401  # registers its checks

    def right(times, fps):
        kept, instant = [], 0
        for index, time in enumerate(times):
            if time * fps >= instant - 1e-6:
                kept.append(index)
                instant = int(time * fps + 1e-6) + 1
        return kept

    check = CHECKS["check_10_1"]
    assert check(right).right
    assert not check(lambda times, fps: None).right
    assert not check(lambda times, fps: list(range(len(times)))).right
    instants = lambda times, fps: np.arange(0, times[-1] + 1e-6, 1 / fps)  # noqa: E731
    doubled = check(lambda times, fps: [int(np.searchsorted(times, t - 1e-6)) for t in instants(times, fps)])
    assert doubled.line.endswith("a frame is chosen twice.")


def test_exercise_2_accepts_the_area_and_explains_known_mistakes():
    from cvae_lab.teaching import exercises_10  # noqa: F401

    def right(height, width, target_height, target_width):
        scale = min(target_height / height, target_width / width)
        return 1 - scale**2 * height * width / (target_height * target_width)

    check = CHECKS["check_10_2"]
    assert check(right).right
    assert "covers" in check(lambda *a: 1 - right(*a)).line
    assert not check(lambda *a: None).right
    assert not check(lambda *a: 0.0).right
