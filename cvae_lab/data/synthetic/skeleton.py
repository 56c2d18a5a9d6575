"""The skeleton of the figure in the synthetic data set: compute joint positions from joint angles.

Positions are in metres: x to the right of the frame, y up, z away from the camera. A pose is a vector of the values
named in `DOF`, with angles in degrees. The figure faces the camera at yaw 0 and the right of the frame at yaw 90.
"""

import numpy as np
from jaxtyping import Float

_ARM, _LEG = ("arm", "out", "elbow", "curl"), ("leg", "side", "knee")
DOF = (
    *("x", "z", "yaw", "lift", "bow", "lean", "nod", "look"),
    *(f"{part}_{side}" for side in "lr" for part in _ARM + _LEG),
)
JOINTS = (
    *("pelvis", "neck", "head", "nose", "nape"),
    *(
        f"{part}_{side}"
        for side in "lr"
        for part in ("ear", "shoulder", "elbow", "wrist", "hand", "hip", "knee", "ankle", "toe")
    ),
)
THIGH, SHIN, ANKLE, FOOT = 0.42, 0.42, 0.08, 0.19
TRUNK, NECK, UPPER_ARM, FOREARM, HAND = 0.50, 0.17, 0.28, 0.25, 0.08
SHOULDER, HIP = 0.18, 0.09

Pose = Float[np.ndarray, " dof"]
Poses = Float[np.ndarray, "n dof"]


def joints(poses: Poses) -> Float[np.ndarray, "n joints 3"]:
    """Return the positions of `JOINTS` in metres. The lower foot is `lift` metres above the floor."""
    value = {name: poses[:, i] for i, name in enumerate(DOF)}
    legs = {side: _leg(value, side) for side in "lr"}
    reach = np.maximum(*(-legs[side][f"ankle_{side}"][:, 1] for side in "lr"))
    places = {name: at for side in "lr" for name, at in legs[side].items()} | _upper_body(value)
    for at in places.values():
        at[:, 1] += reach + ANKLE + value["lift"]
    for side in "lr":
        places[f"toe_{side}"] = _toe(places[f"ankle_{side}"])
    local = np.stack([places[name] for name in JOINTS], axis=1)
    return _to_world(local, value["x"], value["z"], value["yaw"])


def _direction(swing: np.ndarray, out: np.ndarray, sign: float) -> Float[np.ndarray, "n 3"]:
    """Return unit vectors (left, up, forward) along a limb. It hangs down at 0; `swing` is forward, `out` outward."""
    s, o = np.radians(swing), np.radians(out)
    return np.stack([sign * np.sin(o), -np.cos(o) * np.cos(s), np.cos(o) * np.sin(s)], axis=1)


def _leg(value: dict, side: str) -> dict:
    sign = 1.0 if side == "l" else -1.0
    swing, out, bend = (value[f"{part}_{side}"] for part in _LEG)
    hip = np.tile([sign * HIP, 0.0, 0.0], (len(swing), 1))
    knee = hip + THIGH * _direction(swing, out, sign)
    ankle = knee + SHIN * _direction(swing - bend, out, sign)
    return {f"hip_{side}": hip, f"knee_{side}": knee, f"ankle_{side}": ankle}


def _toe(ankle: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Return the position of the toe. The foot is flat on the floor and points downward when it is lifted."""
    pitch = np.radians(60) * np.clip((ankle[:, 1] - ANKLE) / 0.25, 0, 1)
    drop = -0.04 * np.cos(pitch) - FOOT * np.sin(pitch)
    return ankle + np.stack([0 * pitch, drop, FOOT * np.cos(pitch)], axis=1)


def _upper_body(value: dict) -> dict:
    bow, lean = np.radians(value["bow"]), np.radians(value["lean"])
    up = np.stack([np.sin(lean), np.cos(lean) * np.cos(bow), np.cos(lean) * np.sin(bow)], axis=1)
    left = np.stack([np.cos(lean), -np.sin(lean), 0 * lean], axis=1)
    neck = TRUNK * up
    tilt, look = np.radians(value["bow"] * 0.8 + value["nod"]), np.radians(value["look"])
    crown = np.stack([np.sin(lean), np.cos(tilt), np.sin(tilt)], axis=1)
    face = np.stack([np.sin(look), -np.sin(tilt), np.cos(tilt) * np.cos(look)], axis=1)
    ear = 0.08 * np.stack([np.cos(look), 0 * look, -np.sin(look)], axis=1)
    head = neck + NECK * crown
    places = {"pelvis": 0 * neck, "neck": neck, "head": head, "nose": head + 0.05 * face}
    places |= {"nape": head - 0.07 * face, "ear_l": head + ear, "ear_r": head - ear}
    for side, sign in (("l", 1.0), ("r", -1.0)):
        swing, out, bend, curl = (value[f"{part}_{side}"] for part in _ARM)
        shoulder = neck - 0.05 * up + sign * SHOULDER * left
        elbow = shoulder + UPPER_ARM * _direction(swing, out, sign)
        fore = _direction(swing + bend, out + curl, sign)
        places |= {f"shoulder_{side}": shoulder, f"elbow_{side}": elbow}
        places |= {f"wrist_{side}": elbow + FOREARM * fore, f"hand_{side}": elbow + (FOREARM + HAND) * fore}
    return places


def _to_world(local: np.ndarray, x: np.ndarray, z: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    sin, cos = np.sin(np.radians(yaw))[:, None], np.cos(np.radians(yaw))[:, None]
    left, up, forward = np.moveaxis(local, -1, 0)
    return np.stack(
        [left * cos + forward * sin + x[:, None], up, left * sin - forward * cos + z[:, None]], axis=-1
    )
