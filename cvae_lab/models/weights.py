"""Find the weights in the content of a checkpoint, rename the tensors as in the network, and check every tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvae_lab.config import ConfigError, ModelConfig
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.weight_files import CheckpointError

Weights = dict[str, Tensor]

KEYS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training programs save the weights. Weights at the top level of the file are also found."""

_WRAPPERS = {"module": "DataParallel", "model": "a wrapping class", "_orig_mod": "torch.compile"}


def find_weights(path: Path, raw: dict[str, Any], log: Callable[[str], None]) -> Weights:
    """Return the weights in a checkpoint of another training program, under the names of the course's code.

    If prefixes of wrapper classes are removed, `log` is called with one line. The entry `optimizer` is never read,
    because it contains other weights in most public checkpoints of the course's code.
    """
    key = next((key for key in KEYS if key in raw), None)
    found = raw if key is None and _is_weights(raw) else raw.get(key)
    if not _is_weights(found):
        if key is not None:
            kind = "None" if found is None else f"a {type(found).__name__} without tensors"
            raise CheckpointError(f"{path} contains no weights: the entry {key} is {kind}.")
        present = ", ".join(repr(str(name)[:30]) for name in list(raw)[:5]) or "nothing"
        raise CheckpointError(
            f"{path} contains no weights under {', '.join(KEYS[:-1])} or {KEYS[-1]}; it contains {present}."
        )
    return _without_prefixes(path, found, log)


def _is_weights(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _without_prefixes(path: Path, weights: Weights, log: Callable[[str], None]) -> Weights:
    """Remove `module.`, `model.` and `_orig_mod.` from the names. These are not names of modules of the network."""
    removed: set[str] = set()
    renamed: Weights = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        removed |= set(parts) & _WRAPPERS.keys()
        renamed[".".join(part for part in parts if part not in _WRAPPERS)] = tensor
    if len(renamed) < len(weights):
        raise CheckpointError(
            f"{path} contains two networks whose tensors have the same names; save one of them alone."
        )
    if removed:
        words = " and ".join(f"{prefix}. ({_WRAPPERS[prefix]})" for prefix in sorted(removed))
        log(f"{path}: removed the prefix {words} from the names of the tensors.")
    return renamed


def course_config(path: Path, weights: Weights) -> ModelConfig:
    """Return the configuration of preset `handout` with the widths of these weights.

    The shapes of four tensors give the course's options F_dim, L_dim, N_dim and D_out_dim.
    """
    places = {
        "width": ("frame_transformation.6.weight", 0),
        "label_width": ("label_transformation.4.conv2.weight", 0),
        "latents": ("Gaussian_Predictor.6.weight", 1),
        "decoder_width": ("Decoder_Fusion.5.weight", 0),
    }
    sizes = {}
    for option, (name, axis) in places.items():
        if name not in weights:
            raise CheckpointError(
                f"{path} does not contain the course's network: it has no tensor {name}. The first tensor is "
                f"{next(iter(weights))}."
            )
        if weights[name].ndim != 4:
            raise CheckpointError(
                f"{path} does not contain the course's network: {name} has shape {tuple(weights[name].shape)}."
            )
        sizes[option] = weights[name].shape[axis]
    try:
        return ModelConfig.preset("handout", **sizes)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} contains a network of a size that is not supported: {error}"
        ) from error


def check_weights(path: Path, weights: Weights, config: ModelConfig) -> None:
    """Raise CheckpointError for the first tensor that is missing, unknown, not finite, or has a wrong shape or type."""
    with torch.device("meta"):
        expected = CVAE(config).state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise CheckpointError(f"{path} does not match preset {config.name}: it has no tensor {name}.")
        shape = tuple(weights[name].shape)
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{path} does not match preset {config.name}: {name} has shape {shape}, not {tuple(tensor.shape)}."
            )
        if weights[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{path} does not match preset {config.name}: {name} has values of type {weights[name].dtype}."
            )
    if unknown := next((name for name in weights if name not in expected), None):
        raise CheckpointError(
            f"{path} does not match preset {config.name}: it has a tensor {unknown}, which the network does not have."
        )
    check_finite(path, weights)


def check_finite(path: Path, weights: Weights) -> None:
    """Raise CheckpointError with the name of the first tensor that contains NaN or infinity."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            kind = "NaN" if tensor.isnan().any() else "infinity"
            raise CheckpointError(f"{path} cannot be used: its tensor {name} contains {kind}.")


def build(path: Path, weights: Weights, config: ModelConfig) -> CVAE:
    """Return the model of this configuration with these weights, on the CPU."""
    check_weights(path, weights, config)
    model = CVAE(config)
    model.load_state_dict(weights)
    return model
