"""Studies: sets of runs that differ in one thing at a time, each over several seeds. Notebooks read their tables."""

import itertools
from dataclasses import dataclass, field
from typing import Any

Params = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What is asked, what all runs share, and what each variant changes."""

    about: str
    base: Params
    variants: dict[str, Params]
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = field(default="small")


_MIX = {"kl_strategy": "stages", "stages": (("monotonic", 1, 1), ("cyclical", 2, 2))}

_STILL = {"shift": 0}  # for the tables made before clips were shifted

_FORCING = {"free": {}, "forced": {"tf_strategy": "constant", "tf_start": 0.5}}

STUDIES = {
    "strategies": Study(
        "Four KL strategies and a staged mix, at the handout's scale and at the ELBO's, free-running and half forced.",
        {"epochs": 10},
        {
            f"{strategy}-{scale}-{forcing}": {"kl_strategy": strategy, "scale": scale, **_FORCING[forcing]}
            for scale, forcing, strategy in itertools.product(
                ("handout", "elbo"), _FORCING, ("cyclical", "monotonic", "none", "constant")
            )
        }
        | {f"stages-{scale}-free": _MIX | {"scale": scale} for scale in ("handout", "elbo")},
    ),
    "reference": Study(
        "Four KL strategies and a staged mix at the handout scale: 24 records of 600 clips, some thirty passes.",
        {"epochs": 24, "clips_per_epoch": 600, "eval_every": 4},
        {name: {"kl_strategy": name} for name in ("cyclical", "monotonic", "none", "constant")}
        | {"stages": _MIX},
    ),
    "ablation": Study(
        "The default compact network and its training but for the shift of clips, with one thing changed.",
        {"epochs": 4, "eval_every": 4, **_STILL},
        {
            "as-is": {},
            "no-anchor": {"anchor": False},
            "first-frame-only": {"reference_frame": "first"},
            "unroll-1": {"n_frames": 2, "batch_size": 30},
            "equal-weights": {"weighting": "equal"},
            "half-forced": _FORCING["forced"],
            "no-noise": {"feedback_noise": 0.0},
            "no-average": {"ema": 0.0},
            "linear-output": {"output": "linear"},
            "no-norm": {"norm": "none"},
            "labels-on-white": {"invert_labels": False},
            "width-16": {"width": 16},
            "adamw": {"optimizer": "adamw", "lr": 2e-3},
            "no-flip": {"flip": False},
            "shift-2": {"shift": 2},
        },
    ),
    "minutes": Study(
        "What minutes buy on one CPU core, for compact and for the course's network. Run it with nothing beside it.",
        {"eval_every": 1000, "threads": 1, "device": "cpu"},
        {
            "handout-10-minutes": {"preset": "handout", "minutes": 10.0},
            "compact-10-minutes": {"minutes": 10.0},
            "compact-5-minutes": {"minutes": 5.0},
            "compact-2-minutes": {"minutes": 2.0},
        },
    ),
    "latent": Study(
        "Ways to a live latent, against the course's dead one.",
        {"epochs": 6, "eval_every": 6, **_STILL},
        {
            "course": {},
            "small-beta": {"beta_max": 1e-6},
            "elbo-warm-up": {"scale": "elbo", "kl_strategy": "monotonic"},
            "free-bits": {"scale": "elbo", "free_bits": 2.0},
            "kl-target": {"beta_max": 1e-6, "kl_target": 20.0},
            "learned-prior": {"scale": "elbo", "kl_strategy": "monotonic", "prior": "learned"},
            "balanced-prior": {"scale": "elbo", "prior": "learned", "kl_balance": 0.8},
        },
    ),
}
