"""Named training protocols for the course's network (preset `handout`)."""

from typing import Any

from cvae_lab.config.checks import ConfigError, shortened

_NETWORK: dict[str, Any] = {
    "preset": "handout", "n_frames": 16, "reference_frame": "first", "optimizer": "adam", "weight_decay": 0.0,
    "lr_warmup": 0.0, "ema": 0.0, "bptt": -1, "feedback_noise": 0.0, "flip": False, "paste": 0.0, "shift": 0,
    "jitter": 0.0, "weighting": "equal", "scale": "handout", "beta_max": 1.0, "precision": "float32", "eval_every": 1,
}  # fmt: skip

PROTOCOLS: dict[str, dict[str, Any]] = {
    # The assignment: Adam with a step decay, no clipping, KL weight in ten ramps from 0 to 1 that change once per
    # epoch, and teacher forcing with one random draw per epoch. The ratio is 1 for ten epochs and then decreases.
    "assignment": _NETWORK | {
        "epochs": 70, "batch_size": 2, "lr": 1e-3, "lr_schedule": "step", "lr_milestone_epochs": (2, 5),
        "lr_gamma": 0.1, "clip_norm": 0.0, "kl_strategy": "cyclical", "kl_per": "epoch", "n_cycles": 10,
        "cycle_ratio": 1.0, "cycle_shape": "linear", "tf_strategy": "linear", "tf_start": 1.0, "tf_first_decay": 11,
        "tf_step": 0.1, "tf_per": "epoch",
    },
    # The settings of the public solutions with the highest scores. They train for 300 epochs.
    "tuned": _NETWORK | {
        "epochs": 300, "batch_size": 4, "lr": 1e-4, "lr_schedule": "cosine", "clip_norm": 1.0,
        "kl_strategy": "constant", "kl_per": "iteration", "tf_strategy": "none",
    },
}  # fmt: skip
"""Parameters of each protocol; every other parameter has its default."""

ANY_PRESET: Any = object()
"""Default of the argument `preset` of `RunConfig.from_params`; None is not a valid preset."""

MEANING = (
    "set of training parameters for the course's network: assignment (values of the task sheet) or tuned (values of "
    "the best public solutions); parameters given in addition replace single values"
)


def with_protocol(params: dict[str, Any], preset: Any) -> tuple[dict[str, Any], Any]:  # noqa: ANN401
    """Replace the parameter `protocol` by the parameters of this protocol; return all parameters and the preset.

    Args:
        preset: the preset, or ANY_PRESET if none is given.

    Raises ConfigError for an unknown protocol, or if the protocol is for another network than `preset`.
    """
    name = params.get("protocol", "")
    if name == "":
        return {key: value for key, value in params.items() if key != "protocol"}, preset
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise ConfigError(f"protocol = {shortened(name)} is not one of {tuple(PROTOCOLS)}.")
    values = PROTOCOLS[name] | {key: value for key, value in params.items() if key != "protocol"}
    own = values.pop("preset")
    if preset is not ANY_PRESET and preset != own:
        raise ConfigError(f"protocol {name} is for preset {own}; remove preset = {shortened(preset)}.")
    return values, own
