"""Random appearance of a recording: body, clothes, room, light and camera (domain randomisation, Tobin et al. 2017)."""

import colorsys
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.random import Generator
from PIL import Image, ImageDraw

from cvae_lab.data.synthetic.drawing import HEIGHT, Camera, Scene
from cvae_lab.data.synthetic.figure import Appearance, Colour, parts
from cvae_lab.data.synthetic.skeleton import JOINTS

DISTANCE = 5.0  # distance of the figure in metres for which `motion` is written
_SUPER = 3  # the room is drawn in _SUPER x _SUPER times as many pixels


class Body(NamedTuple):
    """Lengths of the limbs, relative to `skeleton`."""

    leg: float = 1.0
    trunk: float = 1.0
    arm: float = 1.0
    shoulder: float = 1.0
    hip: float = 1.0
    head: float = 1.0


def random_camera(rng: Generator, height: int = HEIGHT) -> tuple[Camera, float]:
    """Return a camera, and the distance of the figure in metres. A standing figure fills 50 to 88 % of the height."""
    distance, eye = rng.uniform(3.0, 8.0), rng.uniform(0.5, 2.2)
    person, feet = rng.uniform(16.0, 28.0), rng.uniform(23.5, 31.0)  # rows of a frame with 32 rows
    focal = max(person, 0.75 * feet - 4.0) * distance / 1.72
    wall = 1.45 * distance + rng.choice([rng.uniform(0, 3), rng.uniform(3, 30)])
    return Camera(focal, feet - eye * focal / distance, eye, wall, height), distance


def random_body(rng: Generator) -> Body:
    """Return random limb lengths."""
    low = (0.85, 0.88, 0.85, 0.8, 0.8, 0.85)
    return Body(*map(float, rng.uniform(low, (1.12, 1.12, 1.15, 1.25, 1.35, 1.25))))


def resized(places: Float[np.ndarray, "n joints 3"], body: Body) -> Float[np.ndarray, "n joints 3"]:
    """Return joint positions of a figure with other limb lengths. Its lower foot keeps its height above the floor."""
    old = {name: places[:, i] for i, name in enumerate(JOINTS)}
    new = {"pelvis": old["pelvis"]}
    for parent, child, factor in _bones(body):
        new[child] = new[parent] + factor * (old[child] - old[parent])
    placed = np.stack([new[name] for name in JOINTS], axis=1)
    ankles = [JOINTS.index(f"ankle_{side}") for side in "lr"]
    placed[:, :, 1] += (places[:, ankles, 1].min(1) - placed[:, ankles, 1].min(1))[:, None]
    return placed


def _bones(body: Body) -> list[tuple[str, str, float]]:
    bones = [("pelvis", "neck", body.trunk), ("neck", "head", body.head)]
    bones += [("head", name, body.head) for name in ("nose", "nape", "ear_l", "ear_r")]
    for s in "lr":
        bones += [
            ("pelvis", f"hip_{s}", body.hip), (f"hip_{s}", f"knee_{s}", body.leg),
            (f"knee_{s}", f"ankle_{s}", body.leg), (f"ankle_{s}", f"toe_{s}", body.leg),
            ("neck", f"shoulder_{s}", body.shoulder), (f"shoulder_{s}", f"elbow_{s}", body.arm),
            (f"elbow_{s}", f"wrist_{s}", body.arm), (f"wrist_{s}", f"hand_{s}", body.arm),
        ]  # fmt: skip
    return bones


def random_colour(rng: Generator) -> Colour:
    """Return a random colour: dark, light or grey in more than half of the cases, otherwise of any hue."""
    kind, hue = rng.random(), rng.random()
    if kind < 0.22:
        saturation, value = rng.uniform(0, 0.5), rng.uniform(0.05, 0.25)
    elif kind < 0.42:
        saturation, value = rng.uniform(0, 0.15), rng.uniform(0.75, 1.0)
    elif kind < 0.6:
        saturation, value = rng.uniform(0, 0.3), rng.uniform(0.25, 0.75)
    else:
        saturation, value = rng.uniform(0.3, 0.95), rng.uniform(0.25, 1.0)
    return _rgb(hue, saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(factor * value)) for value in colour)
    return red, green, blue


def random_appearance(rng: Generator) -> Appearance:
    """Return random clothes, skin, hair and build."""
    skin = _rgb(rng.uniform(0.02, 0.09), rng.uniform(0.25, 0.6), rng.uniform(0.25, 0.98))
    grey = rng.random() < 0.25
    hair = _rgb(rng.uniform(0.02, 0.13), rng.uniform(0, 0.15) if grey else rng.uniform(0.2, 0.75),
                rng.uniform(0.4, 0.95) if grey else rng.uniform(0.05, 0.6))  # fmt: skip
    top, trousers = random_colour(rng), random_colour(rng)
    sleeve = _shade(top, rng.uniform(0.8, 1.0))
    skirt = random_colour(rng) if rng.random() < 0.3 else _shade(top, rng.uniform(0.7, 1.0))
    return Appearance(
        skin=skin,
        hair=skin if rng.random() < 0.06 else random_colour(rng) if rng.random() < 0.12 else hair,
        top=top,
        upper_sleeve=skin if rng.random() < 0.1 else random_colour(rng) if rng.random() < 0.08 else sleeve,
        lower_sleeve=skin if rng.random() < 0.4 else sleeve,
        thigh=top if rng.random() < 0.12 else trousers,
        shin=skin if rng.random() < 0.2 else top if rng.random() < 0.1 else trousers,
        shoe=random_colour(rng),
        skirt=skirt if rng.random() < 0.3 else None,
        long_hair=bool(rng.random() < 0.35),
        trunk_size=rng.uniform(0.85, 1.7),
        arm_size=rng.uniform(0.8, 1.6),
        leg_size=rng.uniform(0.85, 1.6),
        head_size=rng.uniform(0.85, 1.3),
    )


def random_scene(rng: Generator, camera: Camera) -> Scene:
    """Return a random figure in a random room with random light."""
    fine = {32: 5, 64: 4, 128: 2}[camera.height]
    dark = rng.uniform(0.55, 0.95)
    return Scene(
        camera,
        random_room(rng, camera),
        parts(random_appearance(rng)),
        fine,
        shadow=rng.choice([0.0, rng.uniform(0, 0.6)]),
        cast=(rng.normal(0, 0.25), rng.uniform(-0.1, 0.5)),
        dark=dark,
        bright=dark + rng.uniform(0.05, 0.5),
        lit_from=(rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.1)),
        line=int(rng.choice([3, 4, 4, 4, 5])),
    )


def random_room(rng: Generator, camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Draw a random room or landscape (0 to 255): two areas with light, texture and objects."""
    rows, columns = _SUPER * camera.height, 2 * _SUPER * camera.height
    v, u = (np.mgrid[:rows, :columns] + 0.5) / (_SUPER * camera.zoom)  # in pixels of a frame of 32 x 64
    corner = np.clip(camera.horizon + camera.focal * camera.eye / camera.wall, 2, 30)
    wall_colour, floor_colour = (np.array(random_colour(rng), float) for _ in range(2))
    if rng.random() < 0.35:  # a room in which wall and floor have nearly the same colour, as in a studio
        floor_colour = np.clip(wall_colour * rng.uniform(0.85, 1.15), 0, 255)
    if rng.random() < 0.4:  # most real rooms have little colour
        amount = rng.uniform(0.5, 1.0)
        wall_colour, floor_colour = (c + amount * (c.mean() - c) for c in (wall_colour, floor_colour))
    below = 1 / (1 + np.exp(np.clip((corner - v) / rng.choice([0.1, rng.uniform(0.3, 4)]), -50, 50)))
    wall = _surface(rng, u, v, 14) * wall_colour
    floor = _surface(rng, u, v, 8) * floor_colour
    wall = _with_objects(rng, wall, corner / HEIGHT)
    wall *= 1 - rng.uniform(0, 0.3) * np.exp(-(((v - corner) / rng.uniform(0.5, 3)) ** 2))[..., None]
    room = wall + below[..., None] * (floor - wall)
    if rng.random() < 0.25:
        room = _with_objects(rng, room, 1.0)
    room = np.clip(rng.uniform(0.75, 1.1) * room, 0, 255)
    return room.reshape(camera.height, _SUPER, 2 * camera.height, _SUPER, 3).mean(axis=(1, 3))


def _surface(rng: Generator, u: np.ndarray, v: np.ndarray, lamps_below: float) -> Float[np.ndarray, "h w 3"]:
    """Return the brightness of a surface: a gradient, the light of up to three lamps, and texture."""
    light = 1 + rng.uniform(-0.012, 0.012) * (v - 16) + rng.uniform(-0.006, 0.006) * (u - 32)
    for _ in range(rng.integers(0, 4)):
        across, down = rng.uniform(4, 20), rng.uniform(3, 16)
        centre = rng.uniform(0, 64), rng.uniform(0, lamps_below)
        light += rng.uniform(-0.2, 0.4) * np.exp(
            -(((u - centre[0]) / across) ** 2) - ((v - centre[1]) / down) ** 2
        )
    texture = np.zeros((*u.shape, 3))
    strength = rng.choice([0.0, rng.uniform(0, 0.06), rng.uniform(0, 0.3)])
    for cells in (4, 8, 16, 32) if strength else ():
        texture += rng.uniform(0, 1) * _noise(rng, cells, u.shape)
    return light[..., None] * (1 + strength * texture)


def _noise(rng: Generator, cells: int, shape: tuple[int, ...]) -> Float[np.ndarray, "h w 3"]:
    """Return smooth noise with `cells` random values along the height."""
    grey = rng.normal(0, 0.45, (cells, 2 * cells))
    smooth = Image.fromarray(grey.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC)
    tint = 1 + rng.uniform(-0.3, 0.3, 3)
    return np.asarray(smooth, np.float64)[..., None] * tint


def _with_objects(
    rng: Generator, picture: Float[np.ndarray, "h w 3"], lowest: float
) -> Float[np.ndarray, "h w 3"]:
    """Draw up to eight rectangles or ellipses, such as furniture, pictures, windows and trees, over a picture."""
    count = int(rng.choice([0, 0, rng.integers(1, 9)]))
    height, width, _ = picture.shape
    result = picture
    for _ in range(count):
        mask = Image.new("L", (width, height))
        wide, tall = width * rng.uniform(0.01, 0.3), height * math.exp(rng.uniform(-3, 0))
        left, bottom = rng.uniform(-0.1, 1.0) * width, rng.uniform(0.1, 1.1) * lowest * height
        draw = ImageDraw.Draw(mask)
        shape = draw.rectangle if rng.random() < 0.75 else draw.ellipse
        shape((left, bottom - tall, left + wide, bottom), 255)
        cover = rng.uniform(0.4, 1.0) * np.asarray(mask, np.float64)[..., None] / 255
        result = result + cover * (np.array(random_colour(rng)) * rng.uniform(0.6, 1) - result)
    return result
