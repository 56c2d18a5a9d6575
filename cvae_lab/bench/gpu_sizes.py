"""Networks, batch sizes and lengths that `cvae-lab bench --gpu` measures."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from cvae_lab.config import RunConfig


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
