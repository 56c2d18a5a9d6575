"""Networks, sizes and time limits of `cvae-lab bench --gpu`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from cvae_lab.config import ConfigError, RunConfig


class Sizes(NamedTuple):
    """Sizes and numbers of repeats of the measurements."""

    models: Mapping[str, Mapping[str, Any]]  # parameters of every network, by name
    timed: tuple[str, ...]  # names of the networks whose training and rollout are timed
    data: str
    frames: int  # number of frames per training clip
    batches: tuple[int, ...]  # in the order of their measurement: the most important sizes are the first
    streams: tuple[int, ...]
    labels: int  # number of labels per predicted clip
    minutes: tuple[float, ...]
    repeats: int


NORMAL = Sizes(
    {"compact": {}, "compact, width 64": {"width": 64}, "handout": {"preset": "handout"}},
    ("handout", "compact"), "full", 8, (2, 128, 512, 2048, 32, 8), (6, 1, 60, 600), 630, (1, 2, 4), 5,
)  # fmt: skip
TINY = Sizes(
    {
        "compact": {"width": 8}, "compact, width 16": {"width": 16},
        "handout": {"preset": "handout", "width": 8, "label_width": 8, "decoder_width": 16, "latents": 4},
    },
    ("handout", "compact"), "tiny", 3, (2,), (1, 2), 18, (0.02,), 1,
)  # fmt: skip
"""Small sizes for testing all parts on a CPU. The measured times are not meaningful."""


def configuration(sizes: Sizes, name: str, device: torch.device) -> RunConfig:
    """Return the configuration of the network `name` on `device`."""
    return RunConfig.from_params(sizes.data, **sizes.models[name], device=str(device))


FRACTIONS = {"machine": 0.01, "checks": 0.04, "training": 0.2, "rollout": 0.12, "score": 0.63}
"""Parts in order, with fractions of the time beyond MINIMUM. The time that a part does not use goes to later parts."""

MINIMUM = {"machine": 12.0, "checks": 50.0, "training": 55.0, "rollout": 30.0, "score": 75.0}
"""Seconds that a part needs for its first results: the start of a process, the choice of kernels, the first rows.

On an H100, a process starts in 7 s, and the first training step of `handout` takes 17 s, because cuDNN loads and
compiles its kernels.
"""


def chosen_parts(only: Sequence[str]) -> list[str]:
    """Return the parts to run, in their order. Raises ConfigError if a name is unknown."""
    if unknown := set(only) - set(FRACTIONS):
        raise ConfigError(f"There is no part {min(unknown)!r}; choose from {', '.join(FRACTIONS)}.")
    return [part for part in FRACTIONS if not only or part in only]


def allowance(left: float, parts: Sequence[str]) -> float:
    """Return the seconds for the first of the remaining parts: its minimum, and its fraction of what all leave.

    Args:
        left: seconds for all these parts. If the sum of their minima is greater, each part gets less than its minimum.
    """
    needed = sum(MINIMUM[part] for part in parts)
    if left < needed:
        return left * MINIMUM[parts[0]] / needed
    return MINIMUM[parts[0]] + (left - needed) * FRACTIONS[parts[0]] / sum(FRACTIONS[part] for part in parts)
