"""Studies and jobs. A study is a set of runs whose variants differ in a few parameters; a job is one run."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvae_lab.config import ConfigError, RunConfig
from cvae_lab.data import SYNTHETIC
from cvae_lab.models.pretrained import is_pretrained

Params = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A description, the parameters of all runs of a study, and the parameters that each variant changes."""

    about: str
    base: Params
    variants: dict[str, Params]
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "small"


@dataclass(frozen=True)
class Job:
    """One run to train: folder, data and parameters, with the names in `config`."""

    run_dir: str
    data: str
    params: dict[str, Any]


def plan(
    data: str,
    out: Path,
    variants: Mapping[str, dict[str, Any]],
    seeds: Sequence[int],
    options: dict[str, Any],
) -> list[Job]:
    """Return a job for every variant and seed. Raises ConfigError for an unknown parameter name or an invalid value.

    Parameter names are checked before the first run, because papermill only warns about an unknown name and continues.
    The outer loop is over seeds, so an interrupted sweep has finished all variants of the first seeds.
    """
    source = data if data in SYNTHETIC else str(Path(data).resolve())
    jobs = []
    for seed, (name, changes) in itertools.product(seeds, variants.items()):
        params = {**options, **changes, "seed": seed}
        # A worker has its own working directory, so a path must be absolute.
        if params.get("init_from") and not is_pretrained(params["init_from"]):
            params["init_from"] = str(Path(params["init_from"]).resolve())
        _check_finite(params)
        RunConfig.from_params(data, **params)
        jobs.append(Job(str(out.resolve() / f"{name}-seed{seed}"), source, params))
    return jobs


def _check_finite(params: Mapping[str, Any]) -> None:
    """Raise ConfigError if a value is or contains NaN or infinity, because such a notebook is not valid JSON."""
    for name, value in params.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ConfigError(f"{name} = {value!r} is not a finite number.") from None


SHORT = {"epochs": 5, "eval_every": 5}
"""Length of the short runs of several studies, in passes over the training frames."""

_MIX = {"kl_strategy": "stages", "stages": (("monotonic", 1, 1), ("cyclical", 2, 2))}

_FORCING = {"free": {}, "forced": {"tf_strategy": "constant", "tf_start": 0.5}}

STUDIES = {
    "strategies": Study(
        "Four KL strategies and a combination of two, each with the loss of the assignment and the ELBO, with and "
        "without teacher forcing.",
        SHORT,
        {
            f"{strategy}-{scale}-{forcing}": {"kl_strategy": strategy, "scale": scale, **_FORCING[forcing]}
            for scale, forcing, strategy in itertools.product(
                ("handout", "elbo"), _FORCING, ("cyclical", "monotonic", "none", "constant")
            )
        }
        | {f"stages-{scale}-free": _MIX | {"scale": scale} for scale in ("handout", "elbo")},
    ),
    "reference": Study(
        "Four KL strategies and a combination of two with the loss of the assignment: 12 epochs of 600 clips, about "
        "15 passes over the training frames.",
        {"epochs": 12, "clips_per_epoch": 600, "eval_every": 3},
        {name: {"kl_strategy": name} for name in ("cyclical", "monotonic", "none", "constant")}
        | {"stages": _MIX},
    ),
    "ablation": Study(
        "The compact network with its default training for 6 epochs. Each variant changes one setting.",
        {"epochs": 6, "eval_every": 6},
        {
            "base": {},
            "no-anchor": {"anchor": False},
            "first-frame-only": {"reference_frame": "first"},
            "unroll-1": {"n_frames": 2, "batch_size": 30},
            "unroll-6": {"n_frames": 7, "batch_size": 5},
            "half-batch": {"batch_size": 5},
            "equal-weights": {"weighting": "equal"},
            "half-forced": _FORCING["forced"],
            "no-noise": {"feedback_noise": 0.0},
            "no-average": {"ema": 0.0},
            "linear-output": {"output": "linear"},
            "no-norm": {"norm": "none"},
            "labels-on-white": {"invert_labels": False},
            "width-16": {"width": 16},
            "adamw": {"optimizer": "adamw", "lr": 2e-3},
            "half-lr": {"lr": 4e-3},
            "double-lr": {"lr": 1.6e-2},
            "paste": {"paste": 0.3},
            "no-flip": {"flip": False},
            "no-shift": {"shift": 0},
        },
    ),
    "minutes": Study(
        "PSNR by CPU time on one core, for `compact` and for the network of the course with two protocols.",
        {"eval_every": 1000, "threads": 1, "device": "cpu", "clock": "cpu"},
        {
            "handout-assignment-5-minutes": {"protocol": "assignment", "stop_after": 5.0},
            "handout-tuned-5-minutes": {"protocol": "tuned", "minutes": 5.0},
            "compact-5-minutes": {"minutes": 5.0},
            "compact-2-minutes": {"minutes": 2.0},
        },
        seeds=(0, 1),
    ),
    "initial-weights": Study(
        "PSNR with random and with pretrained initial weights, by number of training frames and CPU time on one core. "
        "Give your data with --data; each run is scored on held-out segments.",
        {"eval_every": 1000, "threads": 1, "device": "cpu", "clock": "cpu"},
        {
            f"{weights or 'random'}-{frames or 'all'}-frames-{minutes}-minutes": {
                "init_from": weights,
                "train_frames": frames,
                "minutes": float(minutes),
            }
            for minutes, frames, weights in itertools.product(
                (1, 2, 5, 10), (100, 300, 1000, 0), ("", "pretrained")
            )
        },
    ),
    "latent": Study(
        "Settings that keep the latent active, compared with the course's setting, where it collapses.",
        SHORT,  # as in `strategies`, so that equal runs are trained once
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
    "handout": Study(
        "The network of the course, trained for four minutes with the protocol of the assignment and with a tuned "
        "protocol. Use a GPU.",
        {},
        {
            "assignment": {"protocol": "assignment", "stop_after": 4.0},
            "tuned": {"protocol": "tuned", "minutes": 4.0, "clips_per_epoch": 400},
        },
        seeds=(0,),
        data="full",
    ),
}
