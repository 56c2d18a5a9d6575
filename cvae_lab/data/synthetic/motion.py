"""Moves of the figure in the synthetic data set, and their order in a recording.

A move is a function. Its arguments are the current pose and a random generator, and its result is the following poses.
Every move ends in the neutral standing pose (`pose`).
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from cvae_lab.data.synthetic.skeleton import DOF, Pose, Poses

Move = Callable[[Pose, Generator], Poses]


def pose(at: Pose | None = None, **changes: float | int) -> Pose:
    """Return the neutral standing pose at the position and heading of `at`, with the values in `changes`."""
    new = np.zeros(len(DOF))
    for name in ("out_l", "out_r", "elbow_l", "elbow_r"):
        new[DOF.index(name)] = 8.0
    if at is not None:
        new[:3] = at[:3]
    for name, value in changes.items():
        new[DOF.index(name)] = value
    return new


def _both(**changes: float | int) -> dict[str, float | int]:
    return {f"{name}_{side}": value for name, value in changes.items() for side in "lr"}


def _ease(u: np.ndarray) -> np.ndarray:
    """Return minimum-jerk progress from 0 to 1: speed and acceleration are zero at both ends."""
    u = np.clip(u, 0, 1)
    return u**3 * (10 - 15 * u + 6 * u**2)


def through(start: Pose, tempo: float, *keys: tuple[Pose, int]) -> Poses:
    """Interpolate from pose to pose. A transition lasts the number of frames in `keys`, multiplied by `tempo`."""
    parts = []
    for goal, frames in keys:
        n = max(1, round(frames * tempo))
        parts.append(start + _ease(np.arange(1, n + 1) / n)[:, None] * (goal - start))
        start = goal
    return np.concatenate(parts)


def _gait(phase: np.ndarray, strength: np.ndarray) -> Poses:
    """Return what is added to standing poses to make them walk. One period of `phase` (radians) is two steps."""
    swing, change = np.sin(phase), np.zeros((len(phase), len(DOF)))
    for sign, side, other in ((1, "l", "r"), (-1, "r", "l")):
        knee = 8 + 50 * np.maximum(0, sign * np.cos(phase)) ** 1.5
        for name, angle in (
            (f"leg_{side}", 24 * sign * swing + 0.25 * knee),
            (f"knee_{side}", knee),
            (f"arm_{other}", 24 * sign * swing),
            (f"elbow_{other}", 12 + 12 * sign * swing),
        ):
            change[:, DOF.index(name)] = strength * angle
    change[:, DOF.index("bow")] = 4 * strength
    return change


def walk(at: Pose, x: float, z: float, speed: float, backwards: bool = False) -> Poses:
    """Walk in a straight line to (x, z) at up to `speed` metres per frame. Turn during the first 20 frames."""
    dx, dz = x - at[0], z - at[1]
    distance = np.hypot(dx, dz)
    n = max(16, round(distance / speed) + 10)
    t = np.arange(1, n + 1)
    pace = _ease(np.minimum(t, n - t) / 10)
    progress = np.cumsum(pace) / pace.sum()
    heading = np.degrees(np.arctan2(dx, -dz)) + (180 if backwards else 0)
    poses = np.tile(pose(at), (n, 1))
    poses[:, 0] += dx * progress
    poses[:, 1] += dz * progress
    poses[:, 2] += _shortest(heading - at[2]) * _ease(t / 20)
    phase = 2 * np.pi * distance * progress / 1.3
    return poses + _gait(-phase if backwards else phase, pace)


def _shortest(angle: float) -> float:
    return (angle + 180) % 360 - 180


def _tempo(rng: Generator) -> float:
    return rng.uniform(0.85, 1.25)


def _side(rng: Generator) -> str:
    return "l" if rng.random() < 0.5 else "r"


def _place(at: Pose, rng: Generator) -> tuple[float, float]:
    """Return a visible position that is more than 1 m to the left or right of the current one."""
    x = rng.choice([place for place in np.linspace(-1.7, 1.7, 18) if abs(place - at[0]) > 1.0])
    return float(x), float(rng.uniform(4.4, 5.8))


def walk_across(at: Pose, rng: Generator) -> Poses:
    """Walk to another visible position."""
    return walk(at, *_place(at, rng), rng.uniform(0.028, 0.045))


def walk_out(at: Pose, rng: Generator) -> Poses:
    """Walk out of the frame on the nearer side, wait there, come back. The frame's edge is at 0.46 times the depth."""
    z = float(rng.uniform(4.4, 5.6))
    gone = walk(at, float(np.copysign(0.46 * z + 0.6, at[0])), z, rng.uniform(0.032, 0.045))
    wait = through(gone[-1], 1.0, (pose(gone[-1]), int(rng.integers(4, 16))))
    back = walk(wait[-1], float(np.copysign(rng.uniform(0.3, 1.4), at[0])), z, rng.uniform(0.032, 0.045))
    return np.concatenate([gone, wait, back])


def come_close(at: Pose, rng: Generator) -> Poses:
    """Walk towards the camera until the figure is larger than the frame. Then walk backwards, or turn and walk away."""
    near = walk(at, float(rng.uniform(-0.25, 0.25)), float(rng.uniform(1.5, 2.3)), rng.uniform(0.035, 0.05))
    wait = through(near[-1], 1.0, (pose(near[-1]), int(rng.integers(3, 12))))
    x, z = float(rng.uniform(-1, 1)), float(rng.uniform(4.4, 5.4))
    speed, backwards = rng.uniform(0.035, 0.05), bool(rng.random() < 0.6)
    # Turn before walking: so close to the camera, both together change a frame as much as a recording boundary.
    if not backwards:
        wait = np.concatenate([wait, turn_to(wait[-1], 180 + rng.normal(0, 6))])
    return np.concatenate([near, wait, walk(wait[-1], x, z, speed, backwards)])


def turn(at: Pose, rng: Generator) -> Poses:
    """Turn on the spot to the front, to the back, or to a side (45 or 90 degrees)."""
    return turn_to(at, rng.choice([0, 0, 0, -45, 45, -90, 90, 180]) + rng.normal(0, 6))


def turn_to(at: Pose, yaw: float) -> Poses:
    """Turn on the spot to `yaw`, in the direction of the smaller angle, with two small steps."""
    by = _shortest(yaw - at[2])
    n = round(12 + abs(by) / 8)
    t = np.arange(1, n + 1) / n
    poses = np.tile(pose(at), (n, 1)) + _gait(2 * np.pi * t, 0.45 * np.sin(np.pi * t))
    poses[:, 2] += by * _ease(t)
    return poses


def raise_arms(at: Pose, rng: Generator) -> Poses:
    """Raise both arms to the sides or to the front, and lower them."""
    size = rng.uniform(0.6, 1.0)
    up = _both(out=165 * size) if rng.random() < 0.6 else _both(arm=165 * size, out=4)
    return through(at, _tempo(rng), (pose(at, **up, nod=-8), 20), (pose(at, **up, nod=-8), 5), (pose(at), 20))


def wave(at: Pose, rng: Generator) -> Poses:
    """Wave with one hand, two or three times."""
    s, reach = _side(rng), rng.uniform(75, 110)
    inner, outer = (
        pose(at, **{f"out_{s}": reach, f"curl_{s}": curl, f"elbow_{s}": 0, "lean": 0}) for curl in (110, 40)
    )
    swings = [(key, 9) for _ in range(int(rng.integers(2, 4))) for key in (inner, outer)]
    return through(at, _tempo(rng), (outer, 16), *swings, (pose(at), 16))


def squat(at: Pose, rng: Generator) -> Poses:
    """Squat with the arms forward, and stand up."""
    depth = rng.uniform(50, 72)
    low = pose(at, **_both(leg=depth, knee=2 * depth, arm=rng.uniform(10, 85), side=12), bow=0.55 * depth)
    return through(at, _tempo(rng), (low, 22), (low, 5), (pose(at), 22))


def lunge(at: Pose, rng: Generator) -> Poses:
    """Step far forward, go down, and return."""
    front, depth = _side(rng), rng.uniform(0.75, 1.0)
    back = "r" if front == "l" else "l"
    legs = {f"leg_{front}": 74, f"knee_{front}": 82, f"leg_{back}": -26, f"knee_{back}": 52}
    arms = {f"arm_{back}": 50, f"elbow_{back}": 60, f"arm_{front}": -25, f"elbow_{front}": 30}
    low = pose(at, **{name: angle * depth for name, angle in (legs | arms).items()}, bow=18 * depth)
    low[:2] += 0.3 * depth * np.array([np.sin(np.radians(at[2])), -np.cos(np.radians(at[2]))])
    return through(at, _tempo(rng), (low, 24), (low, 5), (pose(at), 24))


def bow(at: Pose, rng: Generator) -> Poses:
    """Bow, and stand up."""
    low = pose(at, bow=rng.uniform(50, 95), nod=10, **_both(arm=rng.uniform(-20, 15), leg=-4))
    return through(at, _tempo(rng), (low, 20), (low, 6), (pose(at), 20))


def jump(at: Pose, rng: Generator) -> Poses:
    """Crouch, jump up, land."""
    crouch = pose(at, **_both(leg=38, knee=76, arm=-20), bow=24)
    high = pose(at, **_both(arm=rng.uniform(30, 110), leg=6, knee=12), lift=rng.uniform(0.18, 0.32))
    return through(at, 1.0, (crouch, 13), (high, 11), (crouch, 11), (pose(at), 14))


def star(at: Pose, rng: Generator) -> Poses:
    """Jumping jack: open and close arms and legs."""
    wide = pose(at, **_both(out=rng.uniform(105, 150), side=rng.uniform(20, 30), elbow=0), lift=0.02)
    flight = pose(at, **_both(out=60, side=12), lift=0.12)
    return through(at, _tempo(rng), (flight, 11), (wide, 9), (wide, 4), (flight, 9), (pose(at), 11))


def stretch(at: Pose, rng: Generator) -> Poses:
    """Lean to one side with the other arm overhead."""
    s = _side(rng)
    lean = rng.uniform(20, 38) * (-1 if s == "l" else 1)
    over = pose(at, lean=lean, **{f"out_{s}": 165, f"curl_{s}": 25, f"elbow_{s}": 0})
    return through(at, _tempo(rng), (over, 20), (over, 6), (pose(at), 20))


TRAVELS: dict[str, Move] = {"walk across": walk_across, "walk out": walk_out, "come close": come_close}
GESTURES: dict[str, Move] = {
    "raise arms": raise_arms,
    "wave": wave,
    "squat": squat,
    "lunge": lunge,
    "bow": bow,
    "jump": jump,
    "star": star,
    "stretch": stretch,
}


def routine(n: int, rng: Generator) -> Poses:
    """Return the poses of a recording of n frames: walk, turn, make two or three gestures, and repeat.

    Gestures are drawn in random order without replacement, so no gesture is repeated before all were shown. With the
    same generator, a shorter recording is the beginning of a longer one.
    """
    side = 1 if rng.random() < 0.5 else -1
    place = {
        "x": side * rng.uniform(0.7, 1.5),
        "z": rng.uniform(4.4, 5.6),
        "yaw": rng.choice([0.0, -90.0, 90.0]),
    }
    parts, waiting, length = [pose(**place)[None]], [], 1
    while length < n:
        travel = rng.choice(list(TRAVELS), p=[0.6, 0.22, 0.18])
        waiting = waiting or list(rng.permutation(list(GESTURES)))
        gestures, waiting = waiting[:3], waiting[3:]
        for move in (TRAVELS[travel], turn, *(GESTURES[name] for name in gestures)):
            parts.append(move(parts[-1][-1], rng))
            length += len(parts[-1])
    return np.concatenate(parts)[:n]
