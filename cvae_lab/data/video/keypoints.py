"""Read keypoints of other programs (OpenPose folders, COCO JSON, CSV, npz), and convert them to the joints of labels.

Positions are columns and rows in pixels of the whole upright picture before any crop. The origin is the upper left
corner. Frames are numbered from 0 as in the video file. Left and right are the left and right side of the person.

| joint            | BODY_25      | COCO-18      | COCO-17      | mediapipe-33 |
|------------------|--------------|--------------|--------------|--------------|
| nose             | 0            | 0            | 0            | 0            |
| neck             | 1            | 1            | shoulders    | shoulders    |
| pelvis           | 8            | hips         | hips         | hips         |
| ear l, r         | 18, 17       | 17, 16       | 3, 4         | 7, 8         |
| shoulder l, r    | 5, 2         | 5, 2         | 5, 6         | 11, 12       |
| elbow l, r       | 6, 3         | 6, 3         | 7, 8         | 13, 14       |
| wrist l, r       | 7, 4         | 7, 4         | 9, 10        | 15, 16       |
| hip l, r         | 12, 9        | 11, 8        | 11, 12       | 23, 24       |
| knee l, r        | 13, 10       | 12, 9        | 13, 14       | 25, 26       |
| ankle l, r       | 14, 11       | 13, 10       | 15, 16       | 27, 28       |
| toe l, r         | 19, 22       | none         | none         | 31, 32       |

"shoulders" and "hips" are the middle between left and right. If a format does not have a joint, the joint is missing,
and limbs that end at this joint are not drawn.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64

from cvae_lab.data.pixels import DataError

PAIRED = ("ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "toe")
JOINTS = ("nose", "neck", "pelvis", *(f"{part}_{side}" for part in PAIRED for side in "lr"))
FORMATS: dict[str, tuple[int, dict[str, int]]] = {
    name: (count, {joint: int(i) for joint, i in zip(JOINTS, places.split(), strict=True) if i != "-"})
    for name, count, places in (
        ("BODY_25", 25, "0 1 8  18 17  5 2  6 3  7 4  12 9  13 10  14 11  19 22"),
        ("COCO-18", 18, "0 1 -  17 16  5 2  6 3  7 4  11 8  12 9  13 10  - -"),
        ("COCO-17", 17, "0 - -  3 4  5 6  7 8  9 10  11 12  13 14  15 16  - -"),
        ("mediapipe-33", 33, "0 - -  7 8  11 12  13 14  15 16  23 24  25 26  27 28  31 32"),
    )
}
"""Number of keypoints of each format, and the index of each joint in this format."""

Keypoints = Float[np.ndarray, "*n joints 3"]
"""Column, row and confidence in [0, 1] per joint; all three are NaN if the joint is missing."""
People = dict[int, list[Float[np.ndarray, "joints 3"]]]
"""Dict from frame number to the persons in the frame."""


def read_keypoints(source: str | Path, numbers: Int64[np.ndarray, " n"]) -> tuple[Keypoints, int]:
    """Read one person's `JOINTS` in the frames `numbers`. Also return how many of these frames show several persons.

    The format depends on the kind of `source`. A folder contains OpenPose output. A .json file contains COCO-17 results
    or annotations. A .csv file is a table with the columns frame, joint, x, y and optionally confidence. A .npz file
    contains the array `keypoints` (frames, joints, 2 or 3) and optionally the array `joints` (names).

    If a frame has several persons, the person nearest to that of the previous frame is selected. In the first frame,
    the largest person is selected.
    """
    source = Path(source)
    readers: dict[str, Callable[[Path], People]] = {".json": _coco, ".csv": _csv, ".npz": _npz}
    if not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder of keypoints; correct the name, or use 'mediapipe'"
        )
    if not source.is_dir() and source.suffix.lower() not in readers:
        raise DataError(
            f"{source}: the format of these keypoints is unknown; give an OpenPose folder or a .json, .csv or .npz file"
        )
    try:
        people = _openpose(source) if source.is_dir() else readers[source.suffix.lower()](source)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(
            f"{source}: these keypoints cannot be read ({error}); see the formats in README"
        ) from error
    wanted = [people.get(int(number), []) for number in numbers]
    if not any(wanted):
        raise DataError(f"{source}: no selected frame of the video has keypoints; check the frame numbers")
    _check_pixels(source, wanted)
    return _follow(wanted), sum(len(persons) > 1 for persons in wanted)


def to_joints(points: Float[np.ndarray, "*n k 3"], name: str) -> Keypoints:
    """Convert keypoints from one of `FORMATS` to `JOINTS`. A missing neck or pelvis is computed."""
    joints = np.full((*points.shape[:-2], len(JOINTS), 3), np.nan)
    for joint, index in FORMATS[name][1].items():
        joints[..., JOINTS.index(joint), :] = points[..., index, :]
    return _with_middles(joints)


def _with_middles(joints: Keypoints) -> Keypoints:
    """Mark joints of confidence 0 as missing, and set a missing neck or pelvis to the middle between left and right."""
    joints = np.where(joints[..., 2:] > 0, joints, np.nan)
    for middle, part in (("neck", "shoulder"), ("pelvis", "hip")):
        left, right = (joints[..., JOINTS.index(f"{part}_{side}"), :] for side in "lr")
        between = (left + right) / 2
        between[..., 2] = np.minimum(left[..., 2], right[..., 2])
        own = joints[..., JOINTS.index(middle), :]
        joints[..., JOINTS.index(middle), :] = np.where(np.isnan(own), between, own)
    return joints


def _openpose(folder: Path) -> People:
    """Read one JSON file per frame, `NAME_000000000012_keypoints.json`, with every person's pose_keypoints_2d."""
    people: People = {}
    for file in sorted(folder.glob("*.json")):
        match = re.search(r"([0-9]+)_keypoints$", file.stem)
        if not match:
            raise DataError(
                f"{file}: the name must end in a frame number and _keypoints.json; rename the file"
            )
        for person in json.loads(file.read_text())["people"]:
            values = np.array(person["pose_keypoints_2d"], float)
            names = [name for name in ("BODY_25", "COCO-18") if values.size == 3 * FORMATS[name][0]]
            if not names:
                raise DataError(
                    f"{file}: {values.size} numbers per person, but BODY_25 has 75 and COCO-18 has 54; convert the file"
                )
            people.setdefault(int(match[1]), []).append(to_joints(values.reshape(-1, 3), names[0]))
    return people


def _coco(file: Path) -> People:
    """Read a list of {"image_id": number or name, "keypoints": 51 numbers}, alone or under the key "annotations"."""
    entries = json.loads(file.read_text())
    entries = entries["annotations"] if isinstance(entries, dict) else entries
    people: People = {}
    for entry in entries:
        digits = re.findall("[0-9]+", Path(str(entry["image_id"])).stem)
        values = np.array(entry["keypoints"], float)
        if values.size != 51 or not digits:
            raise DataError(
                f"{file}: image_id {entry['image_id']!r} with {values.size} numbers, but COCO-17 has 51 per person, "
                f"and image_id must be the frame number; convert the file"
            )
        people.setdefault(int(digits[-1]), []).append(to_joints(values.reshape(17, 3), "COCO-17"))
    return people


def _csv(file: Path) -> People:
    table = pd.read_csv(file)
    if lacking := {"frame", "joint", "x", "y"} - set(table.columns):
        raise DataError(
            f"{file}: no column {sorted(lacking)[0]!r}; the columns are frame, joint, x, y, confidence"
        )
    if unknown := set(table["joint"]) - set(JOINTS):
        raise DataError(
            f"{file}: unknown joint {sorted(map(str, unknown))[0]!r}; choose from {', '.join(JOINTS)}"
        )
    confidence = table["confidence"] if "confidence" in table else np.ones(len(table))
    people: People = {}
    rows = zip(table["frame"], table["joint"], table["x"], table["y"], confidence, strict=True)
    for frame, joint, *values in rows:
        person = people.setdefault(int(frame), [np.full((len(JOINTS), 3), np.nan)])[0]
        person[JOINTS.index(joint)] = values
    return {frame: [_with_middles(person)] for frame, (person,) in people.items()}


def _npz(file: Path) -> People:
    with np.load(file, allow_pickle=False) as arrays:
        points = np.asarray(arrays["keypoints"], float)
        names = [str(name) for name in arrays["joints"]] if "joints" in arrays else None
    if points.ndim != 3 or points.shape[2] not in (2, 3):
        raise DataError(
            f"{file}: the array keypoints has shape {points.shape}; give an array of shape (frames, "
            f"joints, 2 or 3)"
        )
    if points.shape[2] == 2:
        points = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    if names is None:
        kinds = [name for name, (count, _) in FORMATS.items() if count == points.shape[1]]
        if not kinds:
            raise DataError(
                f"{file}: no known format has {points.shape[1]} keypoints; add the array joints with the names of the "
                f"joints"
            )
        joints = to_joints(points, kinds[0])
    else:
        if len(names) != points.shape[1] or not set(names) <= set(JOINTS):
            raise DataError(
                f"{file}: the array joints must contain one name for every joint of keypoints; choose from "
                f"{', '.join(JOINTS)}"
            )
        joints = np.full((len(points), len(JOINTS), 3), np.nan)
        joints[:, [JOINTS.index(name) for name in names]] = points
        joints = _with_middles(joints)
    return {i: [person] for i, person in enumerate(joints) if not np.isnan(person).all()}


def _check_pixels(source: Path, wanted: list[list[np.ndarray]]) -> None:
    largest = max(np.nanmax(np.abs(person[:, :2]), initial=0) for persons in wanted for person in persons)
    if largest <= 1.5:
        raise DataError(
            f"{source}: no position is larger than 1.5, so the positions seem to be fractions of the picture; give "
            f"positions in pixels"
        )


def _follow(wanted: list[list[Float[np.ndarray, "joints 3"]]]) -> Keypoints:
    followed = np.full((len(wanted), len(JOINTS), 3), np.nan)
    last = None
    for i, persons in enumerate(wanted):
        persons = [person for person in persons if not np.isnan(person).all()]
        if persons:
            cost = _extent if last is None else lambda person, last=last: _distance(person, last)
            last = followed[i] = min(persons, key=cost)
    return followed


def _extent(person: Float[np.ndarray, "joints 3"]) -> float:
    """Return the negative area of the box around the joints, so that the largest person has the smallest value."""
    return -float(np.prod(np.nanmax(person[:, :2], axis=0) - np.nanmin(person[:, :2], axis=0)))


def _distance(person: Float[np.ndarray, "joints 3"], other: Float[np.ndarray, "joints 3"]) -> float:
    """Return the mean distance in pixels over the joints that both persons have, or infinity without such joints."""
    apart = np.hypot(*(person - other)[:, :2].T)
    return float(np.nanmean(apart)) if not np.isnan(apart).all() else np.inf
