"""Save, load, resume; checkpoints of the course are read here too. Everything loads with `weights_only=True`."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
from cvae_lab.cvae import CVAE
from cvae_lab.state import TrainState


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one of this model; the message says which and why."""


def save(path: Path, state: TrainState, config: RunConfig) -> None:
    """Write a checkpoint atomically: to a temporary name beside it, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({"config": config.to_json(), **state.state_dict()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def begin(config: RunConfig) -> TrainState:
    """A fresh state; with `start`, on the weights that `load_model` reads from that run's `best.pt` or that file.

    Optimiser, schedules and generators are new. CheckpointError where the file holds another network.
    """
    state = TrainState.create(config.model, config.train)
    if config.train.start:
        path = Path(config.train.start)
        given = load_model(path / "best.pt" if path.is_dir() else path)
        if difference := replace(config, model=given.config).difference(config):
            raise CheckpointError(
                f"{path} cannot start this run: its network has {difference}; give the same value, or another start."
            )
        state.model.load_state_dict(given.state_dict())
        if state.average is not None:
            state.average = {name: value.clone() for name, value in state.model.state_dict().items()}
    return state


def resume(path: Path, config: RunConfig) -> TrainState:
    """The state of an interrupted run. CheckpointError where the run was another one.

    A longer run may be asked for (`epochs`, `minutes`); anything else must be as it was, since the schedules
    and the data would not be.
    """
    raw = _read(path)
    if "config" not in raw:
        raise CheckpointError(
            f"{path} is not a run's checkpoint, so it cannot be resumed; give a run's last.pt."
        )
    if difference := RunConfig.from_json(raw["config"]).difference(
        config, but=("epochs", "minutes", "threads")
    ):
        raise CheckpointError(
            f"{path} was trained with {difference}; "
            "give the same value to resume, or another run folder to start afresh."
        )
    state = TrainState.create(config.model, config.train)
    state.load_state_dict(raw)
    return state


def load_model(path: str | Path, device: torch.device | str = "cpu", average: bool = True) -> CVAE:
    """A model in eval mode from a run's `best.pt` or `last.pt`, or from a course checkpoint.

    Averaged weights where the run kept them, unless `average` is False. Of a course file only `state_dict` is
    read: most public copies hold something else under `optimizer`.
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
    """How a checkpoint was trained; the handout's way for one from the course."""
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
            f"{path} holds no state_dict, so it is no checkpoint of this lab or of the course."
        )
    return raw
