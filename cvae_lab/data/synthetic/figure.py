"""The parts of the synthetic figure, with their colours and sizes."""

from typing import NamedTuple

from cvae_lab.data.synthetic.skeleton import JOINTS

Colour = tuple[int, int, int]

EXTRA = ("hem_l", "hem_r", "tail")
POINTS = JOINTS + EXTRA

Part = tuple[tuple[tuple[int, float], ...], Colour, float]
"""The convex hull of circles ((index in POINTS, radius in metres), ...), its colour, and how much nearer it is sorted.

The last number is subtracted from the distance of the part, in metres, when parts are sorted from far to near.
"""


class Appearance(NamedTuple):
    """Colours (0 to 255) and sizes of the figure. The defaults are those of the data sets with a fixed appearance."""

    skin: Colour = (222, 164, 134)
    hair: Colour = (62, 36, 28)
    top: Colour = (168, 42, 54)
    upper_sleeve: Colour = (140, 32, 46)
    lower_sleeve: Colour = (140, 32, 46)
    thigh: Colour = (38, 46, 78)
    shin: Colour = (38, 46, 78)
    shoe: Colour = (30, 26, 30)
    skirt: Colour | None = (128, 28, 46)  # None: no skirt, and hips in the colour of the thighs
    long_hair: bool = True
    trunk_size: float = 1.0  # factor on the radii of trunk and skirt
    arm_size: float = 1.0  # factor on the radii of the arms
    leg_size: float = 1.0  # factor on the radii of the legs
    head_size: float = 1.0  # factor on the radii of head and hair


def parts(appearance: Appearance | None = None) -> tuple[Part, ...]:
    """Return the parts of the figure with this appearance."""
    appearance = appearance or Appearance()
    found = [
        *(part for side in "lr" for part in _limbs(appearance, side)),
        *_trunk(appearance),
        *_head(appearance),
    ]
    return tuple(
        (tuple((POINTS.index(point), radius) for point, radius in ends), colour, nearer)
        for ends, colour, nearer in found
    )


def _limbs(appearance: Appearance, s: str) -> tuple:
    arm, leg = appearance.arm_size, appearance.leg_size
    return (
        (((f"ankle_{s}", 0.05), (f"toe_{s}", 0.042)), appearance.shoe, 0.0),
        (((f"knee_{s}", 0.068 * leg), (f"ankle_{s}", 0.05 * leg)), appearance.shin, 0.0),
        (((f"hip_{s}", 0.095 * leg), (f"knee_{s}", 0.072 * leg)), appearance.thigh, -0.1),
        (((f"shoulder_{s}", 0.068 * arm), (f"elbow_{s}", 0.055 * arm)), appearance.upper_sleeve, 0.08),
        (((f"elbow_{s}", 0.055 * arm), (f"wrist_{s}", 0.045 * arm)), appearance.lower_sleeve, 0.1),
        (((f"wrist_{s}", 0.04), (f"hand_{s}", 0.05)), appearance.skin, 0.1),
    )


def _trunk(appearance: Appearance) -> tuple:
    size = appearance.trunk_size
    shoulders, hips = (("shoulder_l", "shoulder_r"), 0.075 * size), (("hip_r", "hip_l"), 0.085 * size)
    (left, right), upper = shoulders
    chest = ((left, upper), ("neck", 0.06), (right, upper), *((hip, hips[1]) for hip in hips[0]))
    if appearance.skirt is None:
        lower = ((("hip_l", 0.09 * size), ("hip_r", 0.09 * size)), appearance.thigh, 0.05)
    else:
        outline = (("hip_l", 0.1), ("hip_r", 0.1), ("hem_r", 0.09), ("hem_l", 0.09))
        lower = (tuple((point, radius * size) for point, radius in outline), appearance.skirt, 0.05)
    return (chest, appearance.top, 0.0), lower


def _head(appearance: Appearance) -> tuple:
    size = appearance.head_size
    end = ("tail", 0.055 * size) if appearance.long_hair else ("head", 0.085 * size)
    return (
        ((("neck", 0.05), ("head", 0.05)), appearance.skin, 0.02),
        ((("nose", 0.088 * size),), appearance.skin, 0.03),
        ((("nape", 0.11 * size), end), appearance.hair, 0.0),
    )
