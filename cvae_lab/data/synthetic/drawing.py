"""Draw the frames (fixed camera, lit wall and floor, soft shadow) and the labels (thin coloured limbs on white)."""

import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from cvae_lab.data import palette
from cvae_lab.data.synthetic.skeleton import JOINTS

HEIGHT, WIDTH = 32, 64
# Supersampling: a pixel is the mean of FINE x FINE drawn pixels, and of COARSE x COARSE in the shadow.
FINE, COARSE = 6, 3
LARGE = 8  # frames that are at least this many times as high have 2 x 2 drawn pixels per pixel, to save time
# Camera: focal length in pixels, row of the horizon, height in metres, distance of the wall in metres.
FOCAL, HORIZON, EYE, WALL = 70.0, 11.5, 1.1, 7.0
SHADOW = 0.55  # fraction of the light that a shadow removes
CAST = 0.3  # shift of a shadow to the back, in metres per metre of height; the lamps hang above the camera

SKIN, HAIR, TOP, SLEEVE, SKIRT = (222, 164, 134), (62, 36, 28), (168, 42, 54), (140, 32, 46), (128, 28, 46)
TROUSERS, SHOE = (38, 46, 78), (30, 26, 30)

EXTRA = ("hem_l", "hem_r", "tail")
POINTS = JOINTS + EXTRA
# The parts of the figure. Each is the convex hull of circles ((point, radius in metres), ...) with a colour. The last
# number is subtracted from the distance of the part, in metres, when parts are sorted from far to near.
PARTS = (
    *(
        part
        for s in "lr"
        for part in (
            (((f"ankle_{s}", 0.05), (f"toe_{s}", 0.042)), SHOE, 0.0),
            (((f"knee_{s}", 0.068), (f"ankle_{s}", 0.05)), TROUSERS, 0.0),
            (((f"hip_{s}", 0.095), (f"knee_{s}", 0.072)), TROUSERS, -0.1),
            (((f"shoulder_{s}", 0.068), (f"elbow_{s}", 0.055)), SLEEVE, 0.08),
            (((f"elbow_{s}", 0.055), (f"wrist_{s}", 0.045)), SLEEVE, 0.1),
            (((f"wrist_{s}", 0.04), (f"hand_{s}", 0.05)), SKIN, 0.1),
        )
    ),
    (
        (("shoulder_l", 0.075), ("neck", 0.06), ("shoulder_r", 0.075), ("hip_r", 0.085), ("hip_l", 0.085)),
        TOP,
        0.0,
    ),
    ((("hip_l", 0.1), ("hip_r", 0.1), ("hem_r", 0.09), ("hem_l", 0.09)), SKIRT, 0.05),
    ((("neck", 0.05), ("head", 0.05)), SKIN, 0.02),
    ((("nose", 0.088),), SKIN, 0.03),
    ((("nape", 0.11), ("tail", 0.055)), HAIR, 0.0),
)
_PARTS = tuple(
    (tuple((POINTS.index(point), radius) for point, radius in ends), colour, nearer)
    for ends, colour, nearer in PARTS
)
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
Colour = tuple[int, int, int]
Circles = list[tuple[float, float, float]]


def project(places: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Project positions in metres to column, row (pixels from the upper left corner) and scale (pixels per metre)."""
    x, y, z = np.moveaxis(places, -1, 0)
    scale = FOCAL / np.maximum(z, 0.3)
    return np.stack([WIDTH / 2 + x * scale, HORIZON - (y - EYE) * scale, scale], axis=-1)


def labels(
    places: Float[np.ndarray, "n joints 3"], lost: Bool[np.ndarray, "n joints"], height: int = HEIGHT
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Draw pose labels of `height` from joint positions in metres. Limbs with a lost joint are not drawn."""
    return draw_limbs(_times(height) * project(places)[..., :2], lost, size=(height, 2 * height))


def _times(height: int) -> int:
    """Return the factor from a frame of 32 rows, whose pixels all constants of this module refer to, to `height`."""
    if height < HEIGHT or height % HEIGHT:
        raise ValueError(f"height is {height}; give a multiple of {HEIGHT}")
    return height // HEIGHT


def draw_limbs(
    points: Float[np.ndarray, "n joints 2"],
    lost: Bool[np.ndarray, "n joints"],
    joints: tuple[str, ...] = JOINTS,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Draw pose labels from joints in pixels (column, row): thin coloured limbs on white.

    Limbs with a lost joint are not drawn. Lines are 2/3 pixel wide at a height of 32 pixels; the width is proportional
    to the height.

    Args:
        joints: names of the joints in `points`, in order; every joint of `LIMBS` must be among them.
        size: height and width of the labels in pixels.
    """
    height, width = size
    line = (FINE - 2) * height // HEIGHT
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
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Draw frames of the figure in the room. `sway` moves hair and hem (metres), and `light` scales the brightness.

    Args:
        height: height of the frames in pixels, a multiple of 32; the width is twice the height. Every size is drawn,
            not enlarged, and shows the same scene.
    """
    times = _times(height)
    dressed = np.concatenate([places, _cloth(places, sway)], axis=1)
    seen, fallen = times * project(dressed), times * project(_cast(dressed))
    fine = 2 if times >= LARGE else FINE
    room = _room(times, fine)
    drawn = np.empty((len(places), 3, height, 2 * height), np.uint8)
    for i, depth in enumerate(dressed[..., 2]):
        dark = _shadow(fallen[i].tolist(), times)
        colour, cover = _figure(seen[i].tolist(), depth, times, fine)
        picture = light[i] * (room * (1 - SHADOW * dark) * (1 - cover) + colour * cover)
        drawn[i] = np.rint(np.clip(picture, 0, 255)).transpose(2, 0, 1)
    return drawn


def _cloth(
    places: Float[np.ndarray, "n joints 3"], sway: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3 3"]:
    """Return the positions of the points in `EXTRA`, the ends of hem and hair. They depend on thighs, head and sway."""
    at = {name: places[:, i] for i, name in enumerate(JOINTS)}
    aside = np.stack([sway, 0 * sway, 0 * sway], axis=1)
    flare = 0.35 * (at["hip_l"] - at["hip_r"])
    hems = [
        at[f"hip_{s}"] + 0.5 * (at[f"knee_{s}"] - at[f"hip_{s}"]) + sign * flare
        for s, sign in (("l", 1), ("r", -1))
    ]
    tail = at["nape"] + 0.9 * (at["nape"] - at["head"]) - np.array([0, 0.24, 0])
    return np.stack([hem + aside for hem in (*hems, tail)], axis=1)


def _cast(places: Float[np.ndarray, "n points 3"]) -> Float[np.ndarray, "n points 3"]:
    """Return the position of each point's shadow on the floor."""
    x, y, z = np.moveaxis(places, -1, 0)
    return np.stack([x, 0 * y, np.minimum(z + CAST * y, WALL)], axis=-1)


def _room(times: int = 1, fine: int = FINE) -> Float[np.ndarray, "h w 3"]:
    """Draw the empty room (0 to 255): a wall with the light of two lamps, and a floor with a bright centre."""
    height, width = times * HEIGHT, times * WIDTH
    v, u = (np.mgrid[: height * fine, : width * fine] + 0.5) / (times * fine)
    corner = HORIZON + FOCAL * EYE / WALL
    lamps = sum(np.exp(-(((u - at) / (9 + 0.55 * v)) ** 2) - v / 22) for at in (14, 47))
    wall = (0.58 + 0.34 * lamps)[..., None] * np.array([236, 240, 236])
    wall *= 1 - 0.22 * np.exp(-(((v - corner) / 2.2) ** 2))[..., None]
    pool = np.exp(-(((u - 30) / 26) ** 2) - ((v - 28) / 7) ** 2)
    floor = (0.62 + 0.2 * pool + 0.008 * (v - corner))[..., None] * np.array([236, 218, 194])
    room = np.where((v < corner)[..., None], wall, floor)
    return room.reshape(height, fine, width, fine, 3).mean(axis=(1, 3))


def _shadow(points: list[list[float]], times: int) -> Float[np.ndarray, "h w 1"]:
    """Return the shadow of each pixel, from 0 (none) to 1 (full), with soft edges."""
    canvas = Image.new("L", (times * WIDTH * COARSE, times * HEIGHT * COARSE))
    draw = ImageDraw.Draw(canvas)
    for ends, _, _ in _PARTS:
        _hull(draw, _circles(points, ends, COARSE), 255, flat=0.35)
    soft = canvas.reduce(COARSE).filter(ImageFilter.GaussianBlur(0.8 * times))
    return np.asarray(soft, np.float64)[..., None] / 255


def _figure(
    points: list[list[float]], depth: Float[np.ndarray, " points"], times: int, fine: int
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"]]:
    """Draw the figure, and return its colour (0 to 255) and coverage (0 to 1). Parts are drawn from far to near."""
    canvas = Image.new("RGBA", (times * WIDTH * fine, times * HEIGHT * fine))
    draw = ImageDraw.Draw(canvas)
    distance = [sum(depth[i] for i, _ in ends) / len(ends) - nearer for ends, _, nearer in _PARTS]
    for k in sorted(range(len(_PARTS)), key=distance.__getitem__, reverse=True):
        ends, colour, _ = _PARTS[k]
        circles = _circles(points, ends, fine)
        _hull(draw, circles, tuple(round(0.72 * value) for value in colour))
        lit = [(u, v - 0.28 * r, 0.68 * r) for u, v, r in circles]
        _hull(draw, lit, tuple(min(255, round(1.12 * value)) for value in colour))
    small = np.asarray(canvas.reduce(fine), np.float64)
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
