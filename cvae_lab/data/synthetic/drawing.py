"""Draw the frames (fixed camera, lit wall and floor, soft shadow) and the labels (thin coloured limbs on white)."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from cvae_lab.data import palette
from cvae_lab.data.synthetic.figure import Colour, Part, parts
from cvae_lab.data.synthetic.skeleton import JOINTS

HEIGHT, WIDTH = 32, 64
# Supersampling: a pixel is the mean of FINE x FINE drawn pixels, and of COARSE x COARSE in the shadow.
FINE, COARSE = 6, 3
LARGE = 8  # frames that are at least this many times as high have 2 x 2 drawn pixels per pixel, to save time


class Camera(NamedTuple):
    """A fixed camera. Lengths in pixels belong to a frame of 32 x 64 pixels; larger frames show the same picture."""

    focal: float = 70.0  # focal length in pixels
    horizon: float = 11.5  # row of the horizon
    eye: float = 1.1  # height in metres
    wall: float = 7.0  # distance of the wall in metres
    height: int = HEIGHT  # of the frame in pixels; the width is twice the height

    @property
    def zoom(self) -> float:
        """Pixels per pixel of a frame of 32 x 64 pixels."""
        return self.height / HEIGHT


CAMERA = Camera()
FOCAL, HORIZON, EYE, WALL = CAMERA[:4]


class Scene(NamedTuple):
    """Everything that is the same in all frames of a recording."""

    camera: Camera
    room: Float[np.ndarray, "h w 3"]  # the empty room, 0 to 255
    parts: tuple[Part, ...]
    fine: int = FINE  # supersampling of the figure
    shadow: float = 0.55  # fraction of the light that a shadow removes
    # Shift of a shadow to the right and to the back, in metres per metre of height. By default, the lamps hang above
    # the camera.
    cast: tuple[float, float] = (0.0, 0.3)
    dark: float = 0.72  # brightness of the unlit edge of a part
    bright: float = 1.12  # brightness of its lit middle
    lit_from: tuple[float, float] = (0.0, -0.28)  # shift of the lit middle (right, down), in radii
    line: int = FINE - 2  # width of a limb in the labels, in sixths of a pixel of a label of 32 x 64 pixels


LIMBS = (
    ("ear_l", "ear_r", palette.HEAD),
    ("nose", "neck", palette.TRUNK),
    ("neck", "pelvis", palette.TRUNK),
    *(
        (f"{part}_{s}", end, palette.TRUNK)
        for s in "lr"
        for part, end in (("shoulder", "neck"), ("hip", "pelvis"))
    ),
    *(
        limb
        for s, arm, leg, foot in (
            ("l", palette.LEFT_ARM, palette.LEFT_LEG, palette.LEFT_FOOT),
            ("r", palette.RIGHT_ARM, palette.RIGHT_LEG, palette.RIGHT_FOOT),
        )
        for limb in (
            (f"shoulder_{s}", f"elbow_{s}", arm),
            (f"elbow_{s}", f"wrist_{s}", arm),
            (f"hip_{s}", f"knee_{s}", leg),
            (f"knee_{s}", f"ankle_{s}", leg),
            (f"ankle_{s}", f"toe_{s}", foot),
        )
    ),
)
Circles = list[tuple[float, float, float]]


def project(places: Float[np.ndarray, "*n 3"], camera: Camera = CAMERA) -> Float[np.ndarray, "*n 3"]:
    """Project positions in metres to column, row (pixels from the upper left corner) and scale (pixels per metre)."""
    x, y, z = np.moveaxis(places, -1, 0)
    scale = camera.zoom * camera.focal / np.maximum(z, 0.3)
    row = camera.zoom * camera.horizon - (y - camera.eye) * scale
    return np.stack([camera.height + x * scale, row, scale], axis=-1)


def plain_scene(height: int = HEIGHT) -> Scene:
    """Return the scene of the data sets with a fixed appearance, for frames of this height."""
    if height < HEIGHT or height % HEIGHT:
        raise ValueError(f"height is {height}; give a multiple of {HEIGHT}")
    fine = 2 if height >= LARGE * HEIGHT else FINE
    camera = CAMERA._replace(height=height)
    return Scene(camera, _room(camera, fine), parts(), fine)


def labels(
    places: Float[np.ndarray, "n joints 3"], lost: Bool[np.ndarray, "n joints"], height: int = HEIGHT
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Draw pose labels of `height` from joint positions in metres. Limbs with a lost joint are not drawn."""
    seen = project(places, CAMERA._replace(height=height))
    return draw_limbs(seen[..., :2], lost, size=(height, 2 * height))


def draw_limbs(
    points: Float[np.ndarray, "n joints 2"],
    lost: Bool[np.ndarray, "n joints"],
    joints: tuple[str, ...] = JOINTS,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    line: int = FINE - 2,
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Draw pose labels from joints in pixels (column, row): thin coloured limbs on white.

    Limbs with a lost joint are not drawn. By default, lines are 2/3 pixel wide at a height of 32 pixels; the width is
    proportional to the height.

    Args:
        joints: names of the joints in `points`, in order; every joint of `LIMBS` must be among them.
        size: height and width of the labels in pixels.
        line: width of a limb at a height of 32 pixels, in sixths of a pixel.
    """
    height, width = size
    line = line * height // HEIGHT
    ends = [(joints.index(a), joints.index(b), colour) for a, b, colour in LIMBS]
    pictures = np.empty((len(points), 3, height, width), np.uint8)
    for picture, drawn, missing in zip(pictures, (points * FINE).tolist(), lost.tolist(), strict=True):
        canvas = Image.new("RGB", (width * FINE, height * FINE), "white")
        draw = ImageDraw.Draw(canvas)
        for a, b, colour in ends:
            if not (missing[a] or missing[b]):
                draw.line([*drawn[a], *drawn[b]], colour, width=line)
        picture[:] = np.asarray(canvas.reduce(FINE)).transpose(2, 0, 1)
    return pictures


def frames(
    places: Float[np.ndarray, "n joints 3"],
    sway: Float[np.ndarray, " n"],
    light: Float[np.ndarray, " n"],
    height: int = HEIGHT,
    scene: Scene | None = None,
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Draw frames of the figure in the room. `sway` moves hair and hem (metres), and `light` scales the brightness.

    Args:
        height: height of the frames in pixels, a multiple of 32; the width is twice the height. Every size is drawn,
            not enlarged, and shows the same scene.
        scene: camera, room and figure, which replace `height`; default: the fixed appearance.
    """
    scene = scene or plain_scene(height)
    dressed = np.concatenate([places, _cloth(places, sway)], axis=1)
    seen, fallen = project(dressed, scene.camera), project(_cast(dressed, scene), scene.camera)
    height, width, _ = scene.room.shape
    drawn = np.empty((len(places), 3, height, width), np.uint8)
    for i, depth in enumerate(dressed[..., 2]):
        dark = _shadow(fallen[i].tolist(), scene)
        colour, cover = _figure(seen[i].tolist(), depth, scene)
        picture = light[i] * (scene.room * (1 - scene.shadow * dark) * (1 - cover) + colour * cover)
        drawn[i] = np.rint(np.clip(picture, 0, 255)).transpose(2, 0, 1)
    return drawn


def _cloth(
    places: Float[np.ndarray, "n joints 3"], sway: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3 3"]:
    """Return the ends of hem and hair (`figure.EXTRA`). They depend on thighs, head and sway."""
    at = {name: places[:, i] for i, name in enumerate(JOINTS)}
    aside = np.stack([sway, 0 * sway, 0 * sway], axis=1)
    flare = 0.35 * (at["hip_l"] - at["hip_r"])
    hems = [
        at[f"hip_{s}"] + 0.5 * (at[f"knee_{s}"] - at[f"hip_{s}"]) + sign * flare
        for s, sign in (("l", 1), ("r", -1))
    ]
    tail = at["nape"] + 0.9 * (at["nape"] - at["head"]) - np.array([0, 0.24, 0])
    return np.stack([hem + aside for hem in (*hems, tail)], axis=1)


def _cast(places: Float[np.ndarray, "n points 3"], scene: Scene) -> Float[np.ndarray, "n points 3"]:
    """Return the position of each point's shadow on the floor."""
    x, y, z = np.moveaxis(places, -1, 0)
    right, back = scene.cast
    return np.stack([x + right * y, 0 * y, np.minimum(z + back * y, scene.camera.wall)], axis=-1)


def _room(camera: Camera = CAMERA, fine: int = FINE) -> Float[np.ndarray, "h w 3"]:
    """Draw the empty room (0 to 255): a wall with the light of two lamps, and a floor with a bright centre."""
    height, width, zoom = camera.height, 2 * camera.height, camera.zoom
    v, u = (np.mgrid[: height * fine, : width * fine] + 0.5) / (zoom * fine)
    corner = camera.horizon + camera.focal * camera.eye / camera.wall
    lamps = sum(np.exp(-(((u - at) / (9 + 0.55 * v)) ** 2) - v / 22) for at in (14, 47))
    wall = (0.58 + 0.34 * lamps)[..., None] * np.array([236, 240, 236])
    wall *= 1 - 0.22 * np.exp(-(((v - corner) / 2.2) ** 2))[..., None]
    pool = np.exp(-(((u - 30) / 26) ** 2) - ((v - 28) / 7) ** 2)
    floor = (0.62 + 0.2 * pool + 0.008 * (v - corner))[..., None] * np.array([236, 218, 194])
    room = np.where((v < corner)[..., None], wall, floor)
    return room.reshape(height, fine, width, fine, 3).mean(axis=(1, 3))


def _shadow(points: list[list[float]], scene: Scene) -> Float[np.ndarray, "h w 1"]:
    """Return the shadow of each pixel, from 0 (none) to 1 (full), with soft edges."""
    height, width, _ = scene.room.shape
    canvas = Image.new("L", (width * COARSE, height * COARSE))
    draw = ImageDraw.Draw(canvas)
    for ends, _, _ in scene.parts:
        _hull(draw, _circles(points, ends, COARSE), 255, flat=0.35)
    soft = canvas.reduce(COARSE).filter(ImageFilter.GaussianBlur(0.8 * scene.camera.zoom))
    return np.asarray(soft, np.float64)[..., None] / 255


def _figure(
    points: list[list[float]], depth: Float[np.ndarray, " points"], scene: Scene
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"]]:
    """Draw the figure, and return its colour (0 to 255) and coverage (0 to 1). Parts are drawn from far to near."""
    height, width, _ = scene.room.shape
    canvas = Image.new("RGBA", (width * scene.fine, height * scene.fine))
    draw = ImageDraw.Draw(canvas)
    distance = [sum(depth[i] for i, _ in ends) / len(ends) - nearer for ends, _, nearer in scene.parts]
    right, down = scene.lit_from
    for k in sorted(range(len(distance)), key=distance.__getitem__, reverse=True):
        ends, colour, _ = scene.parts[k]
        circles = _circles(points, ends, scene.fine)
        _hull(draw, circles, tuple(round(scene.dark * value) for value in colour))
        lit = [(u + right * r, v + down * r, 0.68 * r) for u, v, r in circles]
        _hull(draw, lit, tuple(min(255, round(scene.bright * value)) for value in colour))
    small = np.asarray(canvas.reduce(scene.fine), np.float64)
    return small[..., :3], small[..., 3:] / 255


def _circles(points: list[list[float]], ends: tuple[tuple[int, float], ...], fine: int) -> Circles:
    """Return the circles of a part in supersampled pixels: column, row, radius."""
    return [(fine * points[i][0], fine * points[i][1], fine * points[i][2] * r) for i, r in ends]


def _hull(draw: ImageDraw.ImageDraw, circles: Circles, colour: Colour | int, flat: float = 1.0) -> None:
    """Fill the convex hull of neighbouring circles; `flat` scales their height."""
    for u, v, r in circles:
        draw.ellipse((u - r, v - flat * r, u + r, v + flat * r), colour)
    for (u, v, r), (u2, v2, r2) in zip(circles, circles[1:] + circles[:1], strict=True):
        length = math.hypot(u2 - u, v2 - v) or 1.0
        across, down = (v - v2) / length, flat * (u2 - u) / length
        draw.polygon(
            [
                (u + across * r, v + down * r),
                (u2 + across * r2, v2 + down * r2),
                (u2 - across * r2, v2 - down * r2),
                (u - across * r, v - down * r),
            ],
            colour,
        )
    if len(circles) > 2:
        draw.polygon([(u, v) for u, v, _ in circles], colour)
