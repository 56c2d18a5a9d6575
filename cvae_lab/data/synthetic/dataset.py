"""The synthetic data set: a person in a lit room, rendered together with the pose labels from a seed.

Motion, frames and labels are computed here, so the lab needs no download. Two hidden factors change the frames but not
the labels. A latent variable can therefore learn information that is not in the labels. Sway moves hair and hem
sideways by `SWAY` metres per unit, and flicker scales the brightness by `FLICKER` per unit. A prediction that is exact
except for these two factors has a PSNR of about 36 dB.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate, islice
from multiprocessing import current_process, get_context
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator, SeedSequence, default_rng
from scipy.signal import lfilter
from torch import Tensor
from tqdm import tqdm

from cvae_lab.data.clips import Clip, Dataset, Video
from cvae_lab.data.synthetic import drawing, motion, skeleton, varied

SWAY, FLICKER = 0.07, 0.015  # strength of one unit of each hidden factor: metres; fraction of the brightness
SWAY_FRAMES, FLICKER_FRAMES = 4.0, 12.0  # time constants of the two factors, in frames


class Size(NamedTuple):
    """Number of frames in every recording of a data set."""

    train: tuple[int, ...]
    val: int
    tests: tuple[int, ...]


SIZES = {
    "tiny": Size((96,) * 2, 96, (96,) * 2),
    "small": Size((512,) * 3, 630, (630,) * 6),
    "full": Size((633,) * 26 + (632,) * 11, 630, (630,) * 6),
}


MAX_WORKERS = 16  # more processes need more memory, and their start takes longer than they save
VARIED = {"train": 400, "val": 8, "tests": 6}
"""Number of recordings of the data set `varied`. Validation and test recordings have `varied.MAX_FRAMES` frames."""


class Recording(NamedTuple):
    """Length of a recording, the three numbers that seed its random generators, and its kind."""

    frames: int
    # Seed of the data set; split (0 train, 1 val, 2 test; in `varied`, add 4); number of the recording.
    key: tuple[int, int, int]
    is_varied: bool = False  # own random appearance, and the moves of `varied`

    def generators(self) -> tuple[Generator, ...]:
        """Return independent generators for motion, hidden factors, missed joints, appearance and joint errors."""
        return tuple(default_rng(child) for child in SeedSequence(self.key).spawn(5))


def render(
    size: str = "small",
    seed: int = 0,
    progress: bool = False,
    height: int = drawing.HEIGHT,
    recordings: int | None = None,
) -> Dataset:
    """Render the data set. On one machine, the same seed gives the same bytes with any number of processes.

    `small` and `full` have the same validation video and test clips. A short training recording equals the beginning
    of a longer one with the same number. In `varied`, each recording has its own appearance. Frames of every height
    show the same scene. Raises ValueError for an unknown size.

    Args:
        height: height of the frames in pixels; the width is twice the height.
        recordings: `varied`: number of training recordings. The first recordings do not depend on it.
    """
    splits = _recordings(size, seed, recordings)
    few = {"tiny": 1, "small": 1, "full": 2} if height == drawing.HEIGHT else {}
    workers = few.get(size, min(os.cpu_count() or 1, MAX_WORKERS))
    every = [one for split in splits for one in split]
    rendered = iter(_render_recordings(every, workers, progress, height))
    train, val, tests = (list(islice(rendered, len(split))) for split in splits)
    name = f"synthetic {size}, seed {seed}" + (f", height {height}" if height != drawing.HEIGHT else "")
    clips = tuple(Clip(str(k), x[0].clone(), p, x) for k, (x, p) in enumerate(tests))
    return Dataset(name, _video(train, "train"), _video(val, "val"), clips)


def _video(recordings: list[tuple[Tensor, Tensor]], name: str) -> Video:
    frames, labels = ([one[i] for one in recordings] for i in range(2))
    boundaries = tuple(accumulate(len(part) for part in frames[:-1]))
    return Video(torch.cat(frames), torch.cat(labels), boundaries, name)


def hidden_factors(size: str = "small", seed: int = 0) -> dict[str, Float[np.ndarray, "n 2"]]:
    """Return sway and flicker of every frame in standard deviations; keys "train", "val", "test0" and so on.

    These are the values that `render` uses. No frame is rendered here.
    """
    train, val, tests = ([_factors(one) for one in split] for split in _recordings(size, seed))
    named = {f"test{k}": value for k, value in enumerate(tests)}
    return {"train": np.concatenate(train), "val": np.concatenate(val), **named}


def moves_gallery() -> dict[str, tuple[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n 3 h w"]]]:
    """Return frames and labels of every single move, for figures."""
    every = motion.TRAVELS | {"turn": motion.turn} | motion.GESTURES
    strips = {}
    for number, (name, move) in enumerate(every.items()):
        recording = Recording(0, (0, 3, number))
        # A turn is clearest from the side, every other move from the front.
        start = motion.pose(x=-0.5, z=4.9, yaw=90.0 if name == "turn" else -15.0)
        poses = move(start, recording.generators()[0])
        recording = recording._replace(frames=len(poses))
        strips[name] = _render_poses(recording, poses)
    return strips


def _recordings(size: str, seed: int, count: int | None = None) -> tuple[list[Recording], ...]:
    """Return the recordings of a data set: those of train, of val and of the tests."""
    is_varied = size == "varied"
    if is_varied:
        longest = varied.MAX_FRAMES
        train = varied.lengths((seed, 8), count or VARIED["train"])
        splits = (train, (longest,) * VARIED["val"], (longest,) * VARIED["tests"])
    elif size in SIZES:
        frames = SIZES[size]
        splits = (frames.train, (frames.val,), frames.tests)
    else:
        raise ValueError(
            f"There is no synthetic data set of size {size!r}; choose one of {', '.join(SIZES)}, varied."
        )
    return tuple(
        [Recording(n, (seed, split + 4 * is_varied, k), is_varied) for k, n in enumerate(lengths)]
        for split, lengths in enumerate(splits)
    )


def _render_recordings(
    recordings: list[Recording], workers: int, progress: bool = False, height: int = drawing.HEIGHT
) -> list[tuple[Tensor, Tensor]]:
    """Return frames and labels of each recording, in order. A daemonic process may not start others, so it uses one."""
    bar = partial(
        tqdm, total=len(recordings), desc="rendering recordings", disable=None if progress else True
    )
    if workers == 1 or current_process().daemon:
        return list(bar(map(partial(_render_recording, height=height), recordings)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        function = partial(_render_arrays, height=height)
        rendered = list(bar(pool.map(function, recordings, chunksize=1 + len(recordings) // 500)))
    return [(torch.from_numpy(frames), torch.from_numpy(labels)) for frames, labels in rendered]


def _render_arrays(recording: Recording, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a recording as NumPy arrays. Between processes, each tensor would need an open file, but arrays do not."""
    frames, labels = _render_recording(recording, height=height)
    return frames.numpy(), labels.numpy()


def _render_recording(
    recording: Recording, hidden: bool = True, height: int = drawing.HEIGHT
) -> tuple[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n 3 h w"]]:
    """Return frames and labels of a recording. If `hidden` is false, sway and flicker are zero."""
    generators = recording.generators()
    if recording.is_varied:
        scene, places = varied.scene_and_places(recording.frames, generators[3], generators[0], height)
        return _render_places(recording, places, scene, hidden)
    return _render_poses(recording, motion.routine(recording.frames, generators[0]), hidden, height)


def _render_poses(
    recording: Recording,
    poses: Float[np.ndarray, "n dof"],
    hidden: bool = True,
    height: int = drawing.HEIGHT,
) -> tuple[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n 3 h w"]]:
    return _render_places(recording, skeleton.joints(poses), drawing.plain_scene(height), hidden)


def _render_places(
    recording: Recording, places: Float[np.ndarray, "n joints 3"], scene: drawing.Scene, hidden: bool
) -> tuple[UInt8[Tensor, "n 3 h w"], UInt8[Tensor, "n 3 h w"]]:
    sway, flicker = (_factors(recording) * hidden).T
    _, _, missed, _, errors = recording.generators()
    zoom, seen = scene.camera.zoom, drawing.project(places, scene.camera)
    lost = _lost(seen / zoom, missed)
    frames = drawing.frames(places, SWAY * sway, 1 + FLICKER * flicker, scene=scene)
    points = varied.jittered(seen, errors, zoom) if recording.is_varied else seen[..., :2]
    labels = drawing.draw_limbs(points, lost, size=scene.room.shape[:2], line=scene.line)
    return torch.from_numpy(frames), torch.from_numpy(labels)


def _factors(recording: Recording) -> Float[np.ndarray, "n 2"]:
    """Return sway and flicker of every frame. Each is a slow random process with mean 0 and variance 1."""
    sway, flicker = recording.generators()[1].spawn(2)
    return np.stack(
        [_slow(recording.frames, SWAY_FRAMES, sway), _slow(recording.frames, FLICKER_FRAMES, flicker)], axis=1
    )


def _slow(n: int, frames: float, rng: Generator) -> Float[np.ndarray, " n"]:
    """Return white noise after two equal first-order low-pass filters: smooth, stationary, variance 1."""
    a = np.exp(-1 / frames)
    start = round(12 * frames)  # after so many frames, the filter's initial zeros have no influence
    spread = np.sqrt((1 + a**2) / (1 - a**2) ** 3)
    return lfilter([1 / spread], [1, -2 * a, a**2], rng.standard_normal(start + n))[start:]


def _lost(seen: Float[np.ndarray, "n joints 3"], rng: Generator) -> Bool[np.ndarray, "n joints"]:
    """Draw which joints the simulated pose detector misses. `seen` is the output of `drawing.project`.

    The detector misses all joints outside the frame, many near its border, many in close-ups, and a few elsewhere. The
    same random number is used for five frames in a row.
    """
    n, count, _ = seen.shape
    draw = rng.random((n // 5 + 1, count)).repeat(5, axis=0)[:n]
    u, v, scale = np.moveaxis(seen, -1, 0)
    inside = np.minimum(np.minimum(u, drawing.WIDTH - u), np.minimum(v, drawing.HEIGHT - v))
    chance = 0.01 + 0.3 * (inside < 1.5) + 0.35 * np.clip((scale - 22) / 12, 0, 1) + (inside < 0)
    return draw < chance
