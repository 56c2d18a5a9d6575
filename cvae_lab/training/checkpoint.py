"""Save, load and resume checkpoints, and load weights that other trainers of the course's network saved.

A file is validated before a model is built from it. `models.weight_files` checks the file type and checksums, the
classes below check the structure of the content, and `models.weights` checks name, shape and values of every tensor.
"""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cvae_lab.config import ConfigError, ModelConfig, RunConfig, TrainConfig
from cvae_lab.data.clips import Clip
from cvae_lab.data.files import write_bytes
from cvae_lab.evaluation.output_activation import choose_output
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.pretrained import is_pretrained, weights_file
from cvae_lab.models.weight_files import CheckpointError, read_file
from cvae_lab.models.weights import build, check_weights, course_config, find_weights
from cvae_lab.training.state import Record, TrainState

__all__ = [
    "CheckpointError",
    "create_state",
    "is_course",
    "load_model",
    "read_history",
    "resume",
    "save",
    "train_config",
]

FORMAT = 3
"""Version of the file format. Files without a version number have version 1.

All versions have the same content, but since version 3 the network `compact` has other layers.
"""

_MAY_DIFFER = ("epochs", "minutes", "stop_after", "threads")

_Content = TypeVar("_Content", bound="_ModelContent")
_log = logging.getLogger(__name__)
_Count = Annotated[int, Field(ge=0, le=10**15)]
_Finite = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _ModelContent(BaseModel):
    """Content of a checkpoint that is needed to build a model."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    format: _Count = 1
    config: str
    state_dict: dict[str, Tensor]
    average: dict[str, Tensor] | None = None

    def run_config(self, path: Path) -> RunConfig:
        """Return the configuration of the run that wrote the file."""
        try:
            config = RunConfig.from_json(self.config)
        except ConfigError as error:
            raise CheckpointError(
                f"{path} has a configuration that this version cannot use: {error}"
            ) from error
        if config.model.name == "compact" and self.format < 3:
            raise CheckpointError(
                f"{path} contains the network `compact` of an earlier version of cvae_lab, which had other layers "
                f"(checkpoint format {self.format}); train the run again in a new run folder."
            )
        return config


class _RunContent(_ModelContent):
    """Content of a checkpoint that is needed to continue a run."""

    n_averaged: _Count
    optimizer: dict[str, Any]
    generators: dict[str, Tensor]
    epoch: _Count
    step: _Count
    elapsed: _Finite
    kl_weight: _Finite
    history: list[dict[str, float | int]]
    threads: _Count | None = None


def save(path: Path, state: TrainState, config: RunConfig) -> None:
    """Write a checkpoint atomically: after an error, the old file at `path` is unchanged.

    Raises OSError if the disk is full. The message gives the file name and the space that the file needs.
    """
    content = io.BytesIO()
    torch.save({"format": FORMAT, "config": config.to_json(), **state.state_dict()}, content)
    write_bytes(path, content.getbuffer())


def create_state(config: RunConfig) -> TrainState:
    """Return the state of a new run. If `init_from` is set, the initial weights are loaded from that file or run.

    `init_from` is `pretrained`, a run folder (its best.pt is read) or a checkpoint file. Optimizer, schedules and
    generators are new. Raises CheckpointError if the weights belong to another network.
    """
    state = TrainState.create(config.model, config.train)
    if config.train.init_from:
        file = _initial_weights(config.train.init_from, config.model)
        is_course = config.model.name == "handout"
        source = load_model(file, output=config.model.output if is_course else "linear")
        if options := _options(source.config, config.model):
            raise CheckpointError(
                f"The weights in {file} are those of another network than the network of this run; give {options}."
            )
        copy_weights(state, source.state_dict())
    return state


def copy_weights(state: TrainState, weights: dict[str, Tensor]) -> None:
    """Copy weights to the model of a state and to the average of the weights."""
    for model in (state.model, *([] if state.average is None else [state.average.module])):
        model.load_state_dict(weights)


def _initial_weights(init_from: str, model: ModelConfig) -> Path:
    """Return the file of `init_from`: pretrained weights of the package, a run's best.pt, or the file itself."""
    if is_pretrained(init_from):
        return weights_file(init_from, model.height)
    path = Path(init_from)
    return path / "best.pt" if path.is_dir() else path


def _options(wanted: ModelConfig, present: ModelConfig) -> str:
    """Return the command-line options that change `present` into `wanted`; empty if they are equal."""
    if wanted.name != present.name:
        plain = ModelConfig.preset(wanted.name)
        return " ".join([f"-p preset {wanted.name}", *filter(None, [_options(wanted, plain)])])
    values, others = asdict(wanted), asdict(present)
    return " ".join(f"-p {name} {value}" for name, value in values.items() if value != others[name])


def resume(path: Path, config: RunConfig) -> TrainState:
    """Return the state of an interrupted run.

    `epochs`, `minutes`, `stop_after` and `threads` may differ from the interrupted run. Raises CheckpointError if any
    other parameter differs, because the resumed run would then have other schedules or data than the interrupted run.
    """
    raw = read_file(path)
    if not _is_own(raw):
        raise CheckpointError(
            f"{path} is not a checkpoint of a run of cvae_lab, so it cannot be resumed; give the last.pt of a run."
        )
    content = _validated(path, raw, _RunContent)
    if difference := content.run_config(path).difference(config, ignore=_MAY_DIFFER):
        raise CheckpointError(
            f"{path} was trained with {difference}; "
            "give the same value to resume, or another run folder to start a new run."
        )
    check_weights(path, content.state_dict, config.model)
    state = TrainState.create(config.model, config.train)
    if state.average is not None:
        check_weights(path, content.average or {}, config.model)
    try:
        state.load_state_dict(raw)
    except (ConfigError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ConfigError) else "its training state is damaged"
        raise CheckpointError(f"{path} cannot be resumed: {reason}.") from error
    return state


def read_history(path: Path) -> list[Record]:
    """Return the records of all epochs in a run's checkpoint.

    The records are correct even if history.csv is incomplete.
    """
    return _validated(path, read_file(path), _RunContent).history


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    average: bool = True,
    output: Literal["auto", "linear", "sigmoid"] = "auto",
    clips: Sequence[Clip] = (),
    log: Callable[[str], None] = _log.warning,
) -> CVAE:
    """Load a model in eval mode from a run's best.pt or last.pt, or from a checkpoint of the course's network.

    Args:
        path: a checkpoint file; or `pretrained`, also with a size such as `pretrained-64x128`, for the weights in the
            package.
        average: use the averaged weights if the run has them.
        output: last activation of a network that another trainer saved, because such files do not contain the
            activation. `auto` compares the linear and the sigmoid activation on `clips`
            (`evaluation.output_activation`). Without clips, `auto` means linear, as in the course's code.
        clips: clips with true frames, or with a first frame only.
        log: called with one line about each removed name prefix and about the chosen activation.

    Raises CheckpointError if the file is not a checkpoint of a known network.
    """
    path = weights_file(str(path)) if is_pretrained(path) else Path(path)
    raw = read_file(path)
    if _is_own(raw):
        content = _validated(path, raw, _ModelContent)
        config = content.run_config(path).model
        model = build(path, (content.average if average else None) or content.state_dict, config)
    else:
        weights = find_weights(path, raw, log)
        config = course_config(path, weights)
        model = build(path, weights, config)
        if output == "auto" and clips:
            choice = choose_output(model, clips)
            log(f"{path}: {choice.message}")
            output = choice.output
        if output == "sigmoid":
            model = build(path, weights, replace(config, output="sigmoid"))
    return model.to(device, memory_format=torch.channels_last).eval()


def train_config(path: Path) -> TrainConfig:
    """Return the training configuration of a checkpoint; for a course checkpoint, that of preset `handout`.

    Course checkpoints are evaluated in float32, as in the course's code, so that scores of that code are reproduced.
    """
    raw = read_file(path)
    if not _is_own(raw):
        return RunConfig.from_params("", "handout", precision="float32").train
    return _validated(path, raw, _ModelContent).run_config(path).train


def is_course(path: Path) -> bool:
    """Return whether a checkpoint was saved by another trainer of the course's network, not by this project."""
    return not _is_own(read_file(path))


def frame_height(path: Path) -> int:
    """Return the height in pixels of the frames that the model in a checkpoint predicts."""
    raw = read_file(path)
    return _validated(path, raw, _ModelContent).run_config(path).model.height if _is_own(raw) else 32


def _is_own(raw: dict[str, Any]) -> bool:
    """Return whether a run of this project wrote the file. In files of other trainers, `config` may be a dict."""
    return "format" in raw or "generators" in raw or isinstance(raw.get("config"), str)


def _validated(path: Path, raw: dict[str, Any], kind: type[_Content]) -> _Content:
    version = raw.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version of cvae_lab (checkpoint format {version}, this version reads up "
            f"to {FORMAT}); update cvae_lab."
        )
    try:
        content = kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:60]
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of a run: {place}: {first['msg']}."
        ) from error
    if isinstance(content, _RunContent):
        epochs = [record.get("epoch") for record in content.history]
        if len(epochs) != content.epoch or epochs != list(range(1, len(epochs) + 1)):
            raise CheckpointError(
                f"{path} is damaged: the history in it does not have one record for each of {content.epoch} epochs."
            )
    return content
