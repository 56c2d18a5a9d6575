"""Repair keypoints (exchanged sides, outliers, short gaps), find the recordings, and smooth the tracks."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from scipy.signal import savgol_filter

from cvae_lab.data.synthetic.drawing import LIMBS
from cvae_lab.data.video.keypoints import JOINTS, Keypoints

MIN_CONFIDENCE = 0.3
MIN_JOINTS = 8  # a frame has a pose if at least this many joints are known
JUMP = 0.25  # fraction of the body's size; a joint further from its median over 5 frames is an outlier
EXCHANGE_COST = 0.005  # fraction of the body's size; penalty per exchanged frame
PAUSE = 0.5  # in seconds; a longer gap between frames separates recordings
MIN_FRAMES = 16  # a shorter recording is not used, because a training clip has 16 frames
SIDES = (("shoulder", "elbow", "wrist", "ear"), ("hip", "knee", "ankle", "toe"))

Points = Float[np.ndarray, "n joints 2"]


@dataclass(frozen=True)
class Tracks:
    """Smooth positions of `JOINTS` in pixels (NaN if missing), the recordings, and the number of repairs.

    `found` is true for frames that had a pose before short gaps were filled. `recordings` contains, for each unbroken
    recording of the person, the index of the first frame and the index after the last frame. `exchanged` is the number
    of frames in which left and right arms or legs were exchanged. `jumps` is the number of joint positions removed as
    outliers, and `filled` is the number of interpolated joint positions.
    """

    points: Points
    found: Bool[np.ndarray, " n"]
    recordings: tuple[tuple[int, int], ...]
    exchanged: int
    jumps: int
    filled: int

    def lost_limbs(self) -> dict[str, float]:
        """Return the fraction of frames in which a limb is missing, for each limb that is missing at least once."""
        missing = np.isnan(self.points[..., 0])
        inside = np.zeros(len(missing), bool)
        for start, stop in self.recordings:
            inside[start:stop] = True
        lost = {
            f"{a} to {b}": float((missing[:, JOINTS.index(a)] | missing[:, JOINTS.index(b)])[inside].mean())
            for a, b, _ in LIMBS
        }
        return {limb: fraction for limb, fraction in lost.items() if fraction > 0}


def clean(
    keypoints: Keypoints,
    times: Float[np.ndarray, " n"],
    boundaries: tuple[int, ...] = (),
    max_gap: int = 5,
    smooth: int = 7,
) -> Tracks:
    """Repair and smooth the keypoints of one person, and find the recordings.

    Args:
        boundaries: index of the first frame after every recording boundary in the video. A gap of more than `PAUSE`
            seconds in `times` is also a boundary.
        max_gap: length in frames of the longest gap that is filled by linear interpolation.
        smooth: window of the Savitzky-Golay filter (order 2), an odd number of frames; 0 means no smoothing.
    """
    if smooth and (smooth < 5 or smooth % 2 == 0):
        raise ValueError(f"smooth is {smooth}; give 0 or an odd number of frames from 5")
    points = np.where(keypoints[..., 2:] >= MIN_CONFIDENCE, keypoints[..., :2], np.nan)
    found = _has_pose(points)
    points[~found] = np.nan
    pauses = np.flatnonzero(np.diff(times) > PAUSE) + 1
    edges = sorted({0, *boundaries, *pauses.tolist(), len(points)})
    exchanged = jumps = filled = 0
    recordings = []
    for start, stop in pairwise(edges):
        piece = points[start:stop]  # a view, so the repairs change `points`
        exchanged += _exchange_sides(piece, max_gap)
        jumps += _remove_jumps(piece)
        filled += _fill_gaps(piece, max_gap)
        inside = _has_pose(piece)
        piece[~inside] = np.nan
        recordings += [(start + a, start + b) for a, b in _runs(inside) if b - a >= MIN_FRAMES]
    if smooth:
        for start, stop in recordings:
            _smooth(points[start:stop], smooth)
    return Tracks(points, found, tuple(recordings), exchanged, jumps, filled)


def boxes(points: Points, margin: float = 0.2) -> Float[np.ndarray, "n 4"]:
    """Return left, top, right and bottom of the person, or NaN without a pose. `margin` is a fraction of the height."""
    result = np.full((len(points), 4), np.nan)
    known = _has_pose(points)
    low, high = np.nanmin(points[known], axis=1), np.nanmax(points[known], axis=1)
    extra = margin * (high - low)[:, 1:]
    result[known] = np.concatenate([low - extra, high + extra], axis=1)
    return result


def _has_pose(points: Points) -> Bool[np.ndarray, " n"]:
    return (~np.isnan(points[..., 0])).sum(1) >= MIN_JOINTS


def _runs(mask: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Return the first index and the index after the last index of every unbroken run of True."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in change.reshape(-1, 2)]


def _body_size(points: Points) -> float:
    """Return the median diagonal of the box around the joints, in pixels, or NaN if no frame has a pose."""
    known = points[_has_pose(points)]
    if not len(known):
        return np.nan
    return float(np.median(np.hypot(*(np.nanmax(known, axis=1) - np.nanmin(known, axis=1)).T)))


def _exchange_sides(points: Points, max_gap: int) -> int:
    """Exchange left and right arms, or legs, in frames where this shortens the tracks.

    Return the number of these frames.

    Dynamic programming finds the frames whose exchange gives the shortest tracks. Each exchanged frame adds a penalty
    of `EXCHANGE_COST` times the body's size. The sides of the estimator are therefore kept if both choices give equally
    short tracks. Tracks on both sides of a gap of more than `max_gap` frames are treated separately.
    """
    cost, changed = EXCHANGE_COST * _body_size(points), np.zeros(len(points), bool)
    for parts in SIDES:
        left, right = ([JOINTS.index(f"{part}_{side}") for part in parts] for side in "lr")
        known = np.flatnonzero(~np.isnan(points[:, left + right, 0]).all(1))
        for run in np.split(known, np.flatnonzero(np.diff(known) > max_gap + 1) + 1):
            own = points[run][:, left + right]
            exchanged = run[_shortest(own, points[run][:, right + left], cost)]
            points[np.ix_(exchanged, left + right)] = points[np.ix_(exchanged, right + left)]
            changed[exchanged] = True
    return int(changed.sum())


def _shortest(
    own: Float[np.ndarray, "n k 2"], other: Float[np.ndarray, "n k 2"], cost: float
) -> Bool[np.ndarray, " n"]:
    """Return the frames in which `other` must replace `own` for the shortest tracks.

    Each such frame adds `cost` to the length.
    """
    own_or_other = np.array([0.0, cost])
    total, origins = own_or_other, []
    for k in range(1, len(own)):
        same, crossed = _step_lengths(own[k - 1], own[k], other[k])
        steps = total[:, None] + [[same, crossed], [crossed, same]]
        origins.append(steps.argmin(0))
        total = steps.min(0) + own_or_other
    state = [int(total.argmin())]
    for origin in reversed(origins):
        state.append(int(origin[state[-1]]))
    return np.array(state[::-1][: len(own)], bool)


def _step_lengths(
    before: Float[np.ndarray, "k 2"], own: Float[np.ndarray, "k 2"], other: Float[np.ndarray, "k 2"]
) -> tuple[float, float]:
    """Return the mean distance of joints to the previous frame, without and with exchanged sides.

    The mean is over joints whose left and right positions are known in both frames. Without such joints, both distances
    are 0.
    """
    same, crossed = (np.hypot(*(now - before).T) for now in (own, other))
    known = ~np.isnan(same) & ~np.isnan(crossed)
    return (float(same[known].mean()), float(crossed[known].mean())) if known.any() else (0.0, 0.0)


def _remove_jumps(points: Points) -> int:
    """Mark each joint that is far from its median over 5 frames as missing. Return the number of marked joints."""
    if len(points) < 5:
        return 0
    padded = np.pad(points, ((2, 2), (0, 0), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0)
    known = ~np.isnan(windows).all(-1)
    middle = np.full(points.shape, np.nan)
    middle[known] = np.nanmedian(windows[known], axis=-1)
    with np.errstate(invalid="ignore"):
        far = np.hypot(*np.moveaxis(points - middle, -1, 0)) > JUMP * _body_size(points)
    points[far] = np.nan
    return int(far.sum())


def _fill_gaps(points: Points, max_gap: int) -> int:
    """Interpolate each joint linearly over gaps of at most `max_gap` frames. Return the number of positions."""
    filled = 0
    for joint in range(points.shape[1]):
        track = points[:, joint]
        for a, b in _runs(np.isnan(track[:, 0])):
            if a > 0 and b < len(track) and b - a <= max_gap:
                weight = (np.arange(1, b - a + 1) / (b - a + 1))[:, None]
                track[a:b] = (1 - weight) * track[a - 1] + weight * track[b]
                filled += b - a
    return filled


def _smooth(points: Points, window: int) -> None:
    """Smooth every unbroken run of each joint. Runs shorter than `window` get a shorter window of at least 5 frames."""
    for joint in range(points.shape[1]):
        for a, b in _runs(~np.isnan(points[:, joint, 0])):
            width = min(window, (b - a - 1) // 2 * 2 + 1)
            if width >= 5:
                points[a:b, joint] = savgol_filter(points[a:b, joint], width, 2, axis=0)
