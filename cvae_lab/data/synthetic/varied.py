"""Recordings for pretraining: each has its own figure, room, light, camera and rapidly changing poses."""

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from cvae_lab.data.synthetic import appearances, drawing, motion, skeleton
from cvae_lab.data.synthetic.skeleton import DOF, Pose, Poses

MIN_FRAMES, MAX_FRAMES = 60, 150  # length of a recording


def lengths(key: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the random lengths of `count` recordings, in frames. The first lengths do not depend on `count`."""
    return tuple(map(int, default_rng(SeedSequence(key)).integers(MIN_FRAMES, MAX_FRAMES + 1, count)))


def random_pose(at: Pose, rng: Generator) -> Pose:
    """Return a pose with random joint angles at the position of `at`. Half of the poses stand on straight legs."""
    legs, reach = rng.random() < 0.5, rng.uniform(0.3, 1.0)
    bow = rng.uniform(-10, 85) if rng.random() < 0.35 else rng.normal(3, 4)
    changes = {"bow": bow, "lean": rng.normal(0, 10), "nod": rng.normal(0, 10), "look": rng.normal(0, 15)}
    for s in "lr":
        leg = reach * rng.uniform(-35, 95) if legs else rng.normal(0, 4)
        changes |= {
            f"arm_{s}": rng.uniform(-45, 160), f"out_{s}": rng.choice([8.0, rng.uniform(0, 150)]),
            f"elbow_{s}": rng.uniform(0, 130), f"curl_{s}": rng.choice([0.0, rng.uniform(-20, 100)]),
            f"leg_{s}": leg, f"side_{s}": reach * rng.uniform(0, 30) if legs else rng.uniform(0, 12),
            f"knee_{s}": max(0.0, leg) * rng.uniform(0.3, 2.0) + reach * legs * rng.uniform(0, 70),
        }  # fmt: skip
    changes["lift"] = rng.uniform(0, 0.3) if rng.random() < 0.08 else 0.0
    new = motion.pose(at, **changes)
    new[:2] += rng.normal(0, 0.12, 2)
    new[2] += rng.normal(0, 30)
    return new


def random_poses(at: Pose, rng: Generator) -> Poses:
    """Move through one to four random poses."""
    keys = [random_pose(at, rng) for _ in range(rng.integers(1, 5))]
    return motion.through(at, 1.0, *((key, int(rng.integers(6, 24))) for key in keys))


def random_motion(n: int, rng: Generator) -> Poses:
    """Return n poses of random moves. The motion is 0.7 to 3 times as fast as in the other data sets."""
    speed = float(np.exp(rng.uniform(np.log(0.7), np.log(3.0))))
    start = motion.pose(x=rng.uniform(-1.7, 1.7), z=rng.uniform(4.4, 5.8), yaw=rng.uniform(-180, 180))
    parts = [(random_pose(start, rng) if rng.random() < 0.3 else start)[None]]
    total = int(np.ceil(n * speed)) + 2
    length = 1
    while length < total:
        at, kind = parts[-1][-1], rng.random()
        if kind < 0.45:
            move = random_poses
        elif kind < 0.65:
            move = motion.GESTURES[rng.choice(list(motion.GESTURES))]
        elif kind < 0.8:
            move = motion.turn
        else:
            move = motion.TRAVELS[rng.choice(list(motion.TRAVELS), p=[0.6, 0.15, 0.25])]
        parts.append(move(at, rng))
        length += len(parts[-1])
    poses = np.concatenate(parts)
    times = np.linspace(0, n * speed, n, endpoint=False)
    return np.stack([np.interp(times, np.arange(len(poses)), column) for column in poses.T], axis=1)


def scaled_to_camera(poses: Poses, camera: drawing.Camera, distance: float) -> Poses:
    """Move poses for distance `appearances.DISTANCE`, so that they cover the same part of this camera's frame."""
    poses = poses.copy()
    poses[:, DOF.index("x")] *= drawing.FOCAL / appearances.DISTANCE * distance / camera.focal
    poses[:, DOF.index("z")] *= distance / appearances.DISTANCE
    return poses


def scene_and_places(
    n: int, appearance: Generator, moves: Generator, height: int
) -> tuple[drawing.Scene, np.ndarray]:
    """Return the scene of a recording, and its joint positions in metres (n, joints, 3)."""
    camera, distance = appearances.random_camera(appearance, height)
    body = appearances.random_body(appearance)
    scene = appearances.random_scene(appearance, camera)
    poses = scaled_to_camera(random_motion(n, moves), camera, distance)
    return scene, appearances.resized(skeleton.joints(poses), body)


def jittered(seen: np.ndarray, rng: Generator, zoom: float) -> np.ndarray:
    """Return joints in pixels with the smooth errors of a pose detector: up to about half a pixel of 32 rows."""
    strength = zoom * rng.choice([0.0, rng.uniform(0, 0.35)])
    n, joints, _ = seen.shape
    noise = rng.normal(0, strength, (n + 4, joints, 2)) if strength else np.zeros((n + 4, joints, 2))
    smooth = sum(noise[k : k + n] for k in range(5)) / np.sqrt(5)
    return seen[..., :2] + smooth
