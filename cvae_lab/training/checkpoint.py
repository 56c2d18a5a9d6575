"""Save, load and resume checkpoints; the course's checkpoints load too. Files are read with `weights_only=True`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
from cvae_lab.data.files import replacing
from cvae_lab.models.cvae import CVAE
from cvae_lab.training.state import TrainState


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one of this model; the message says which and why."""


def save(path: Path, state: TrainState, config: RunConfig) -> None:
    """Write a checkpoint atomically."""
    with replacing(path) as temporary:
        torch.save({"config": config.to_json(), **state.state_dict()}, temporary)


def create_state(config: RunConfig) -> TrainState:
    """Return the state of a new run, with the weights of `init_from` where it is given.

    `init_from` names a run folder (its best.pt is read) or a checkpoint file. Optimizer, schedules and generators are
    new. Raises CheckpointError where the file holds another network.
    """
    state = TrainState.create(config.model, config.train)
    if config.train.init_from:
        path = Path(config.train.init_from)
        source = load_model(path / "best.pt" if path.is_dir() else path)
        if difference := replace(config, model=source.config).difference(config):
            raise CheckpointError(
                f"The weights in {path} do not fit this run: its network has {difference}; "
                "give the same value, or other initial weights."
            )
        for model in (state.model, *([] if state.average is None else [state.average.module])):
            model.load_state_dict(source.state_dict())
    return state


def resume(path: Path, config: RunConfig) -> TrainState:
    """Return the state of an interrupted run.

    `epochs`, `minutes` and `threads` may differ from the interrupted run. Raises CheckpointError where anything else
    differs, because schedules and data would not continue.
    """
    raw = _read(path)
    if "config" not in raw:
        raise CheckpointError(
            f"{path} is not the checkpoint of a run, so it cannot be resumed; give a run's last.pt."
        )
    if difference := RunConfig.from_json(raw["config"]).difference(
        config, ignore=("epochs", "minutes", "threads")
    ):
        raise CheckpointError(
            f"{path} was trained with {difference}; "
            "give the same value to resume, or another run folder to start again."
        )
    state = TrainState.create(config.model, config.train)
    state.load_state_dict(raw)
    return state


def load_model(path: str | Path, device: torch.device | str = "cpu", average: bool = True) -> CVAE:
    """Load a model in eval mode from a run's best.pt or last.pt, or from a course checkpoint.

    Args:
        average: use the averaged weights where the run kept them.

    Of a course file only `state_dict` is read; most public copies hold something else under `optimizer`. Raises
    CheckpointError where the file is no checkpoint of a known network.
    """
    path = Path(path)
    raw = _read(path)
    config = json.loads(raw["config"])["model"] if "config" in raw else None
    model = CVAE(ModelConfig(**config) if config else ModelConfig.preset("handout"))
    weights = (raw.get("average") if average else None) or raw["state_dict"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not hold the weights of preset {model.config.name}: {error}."
        ) from error
    return model.to(device, memory_format=torch.channels_last).eval()


def train_config(path: Path) -> TrainConfig:
    """Return how a checkpoint was trained; for a course checkpoint, the training of preset `handout`."""
    raw = _read(path)
    config = RunConfig.from_json(raw["config"]) if "config" in raw else RunConfig.from_params("", "handout")
    return config.train


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors ({type(error).__name__})."
        ) from error
    if not isinstance(raw, dict) or "state_dict" not in raw:
        raise CheckpointError(
            f"{path} holds no state_dict, so it is no checkpoint of this project or of the course."
        )
    return raw
