"""Configuration of a run (data, model and training), built from one list of parameter names."""

import difflib
import json
import logging
import shlex
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from cvae_lab.config.checks import ConfigError, Parameter, one_sentence, parameters_of, shortened
from cvae_lab.config.model import ModelConfig, Preset
from cvae_lab.config.protocols import ANY_PRESET, MEANING, PROTOCOLS, with_protocol
from cvae_lab.config.train import TrainConfig

_log = logging.getLogger(__name__)

RENAMED = {"start": "init_from", "given": "reference_frame", "optimiser": "optimizer"}
"""Old parameter names and the new ones. This version still accepts the old names; the next one will not."""


def parameters(*classes: type) -> list[Parameter]:
    """Return all parameters of these configuration classes; by default, of model and training."""
    return [parameter for cls in classes or (ModelConfig, TrainConfig) for parameter in parameters_of(cls)]


FINE_TUNING_LR = 1e-3
"""Default learning rate of `compact` if `init_from` is set. With 300 training frames of real clips and 0.6 CPU minutes,
the pretrained weights reached 30.3 dB at 1e-3, 29.8 dB at 2.5e-3 and 29.5 dB at 8e-3 (held-out segments, one seed)."""

PROTOCOL = Parameter("protocol", "choice", tuple(PROTOCOLS), "", "", MEANING)
"""Description of the parameter `protocol`, which stands for several parameters."""


@one_sentence
@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class RunConfig:
    """Configuration of a run: data, model and training."""

    data: str
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.train.sigma and self.train.scale == "handout":
            raise ConfigError(
                'sigma is used only at scale = "elbo"; at scale = "handout" only beta_max sets the KL weight.'
            )
        if self.train.scale == "elbo" and self.train.weighting != "equal":
            raise ConfigError(
                'scale = "elbo" needs weighting = "equal": with other frame weights the loss is not an ELBO.'
            )
        if self.train.kl_balance and self.model.prior == "normal":
            raise ConfigError(
                'kl_balance divides the gradient between posterior and prior; kl_balance needs prior = "learned".'
            )

    @classmethod
    def from_params(cls, data: str | Path, preset: Any = ANY_PRESET, **params: Any) -> "RunConfig":  # noqa: ANN401
        """Build the configuration from parameters. An unknown name raises ConfigError with the most similar name.

        Args:
            preset: name of the network. The default is the network of `protocol`, or `compact` without a protocol.
            params: parameters of model and training, and `protocol`, a name in PROTOCOLS.
        """
        params, preset = with_protocol(current_names(params), preset)
        preset = ModelConfig.name if preset is ANY_PRESET else preset
        if preset not in get_args(Preset):
            raise ConfigError(f"preset = {shortened(preset)} is not one of {get_args(Preset)}.")
        model_names = {f.name for f in fields(ModelConfig)} - {"name"}
        train_names = {f.name for f in fields(TrainConfig)}
        for name in params:
            if name not in model_names | train_names:
                near = difflib.get_close_matches(name, sorted(model_names | train_names | _EXTRA), n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ConfigError(f"There is no parameter {shortened(name)}.{hint}")
        values = {name: _tuples(value) for name, value in params.items()}
        model = {name: values[name] for name in values if name in model_names}
        train = {name: values[name] for name in values if name in train_names}
        defaults = _PRESET_TRAINING.get(preset, {})
        if train.get("init_from") and preset == ModelConfig.name:
            defaults = defaults | {"lr": FINE_TUNING_LR}
        if train.get("scale") == "elbo":
            defaults = defaults | {"weighting": "equal"}
        return cls(str(data), ModelConfig.preset(preset, **model), TrainConfig(**(defaults | train)))

    def to_json(self) -> str:
        """Return the configuration as a JSON object that `from_json` can read."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Read a configuration that `to_json` of this version or the previous one wrote.

        Raises ConfigError if the text is not the configuration of a run.
        """
        try:
            raw = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError("The configuration is not JSON text.") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("data"), str):
            raise ConfigError("The configuration of a run must contain data, model and train.")
        parts = [raw.get("model"), raw.get("train")]
        if not all(isinstance(part, dict) for part in parts):
            raise ConfigError("The configuration of a run must contain data, model and train.")
        train = {name: _tuples(value) for name, value in current_names(parts[1], None).items()}
        return cls(raw["data"], ModelConfig(**parts[0]), TrainConfig(**train))

    def difference(self, other: "RunConfig", ignore: tuple[str, ...] = ()) -> str:
        """Describe the first value that differs from `other`, or return empty text.

        Fields in `ignore` are not compared.
        """
        mine, theirs = ({"data": c.data, **asdict(c.model), **asdict(c.train)} for c in (self, other))
        changed = [name for name in mine if mine[name] != theirs[name] and name not in ignore]
        return f"{changed[0]} = {mine[changed[0]]!r}, not {theirs[changed[0]]!r}" if changed else ""

    def _changes(self, base: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters whose values differ from the configuration that `from_params` builds from `base`."""
        mine, usual = (
            {**asdict(c.model), **asdict(c.train)} for c in (self, self.from_params(self.data, **base))
        )
        return {name: value for name, value in mine.items() if value != usual[name]}

    def command(self) -> str:
        """Return the command line that trains this run: a preset or a protocol, and all values that differ from it.

        Only the last component of a path is included.
        """
        bases = [{"preset": self.model.name}] if self.model.name != ModelConfig.name else [{}]
        bases += [{"protocol": name} for name, p in PROTOCOLS.items() if p["preset"] == self.model.name]
        changed = min((base | self._changes(base) for base in bases), key=len)
        if "init_from" in changed:
            changed["init_from"] = Path(changed["init_from"]).name
        written = {n: json.dumps(v) if isinstance(v, tuple) else str(v) for n, v in changed.items()}
        words = [word for pair in written.items() for word in ("-p", *pair)]
        return shlex.join(
            ["python", "-m", "cvae_lab", "train", "RUN", "--data", Path(self.data).name, *words]
        )

    def with_training(self, **changes: Any) -> "RunConfig":  # noqa: ANN401
        """Return a copy with some training values changed."""
        return replace(self, train=replace(self.train, **changes))


def current_names(
    params: dict[str, Any], warn: Callable[[str], None] | None = _log.warning
) -> dict[str, Any]:
    """Return the parameters under the current names; `warn` is called for each old name."""
    for old in sorted(params.keys() & RENAMED.keys()):
        if RENAMED[old] in params:
            raise ConfigError(f"{old} is the old name of {RENAMED[old]}; give only {RENAMED[old]}.")
        if warn:
            warn(
                f"The parameter {old} is now called {RENAMED[old]}; the old name works in this version only."
            )
    return {RENAMED.get(name, name): value for name, value in params.items()}


_EXTRA = {"preset", "protocol"}

# Training values of preset `handout`, as in the course's code: clips of 16 frames, Adam, no noise, no EMA of weights.
_PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "handout": {
        "n_frames": 16, "batch_size": 2, "optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0,
        "ema": 0.0, "feedback_noise": 0.0, "reference_frame": "first", "kl_per": "epoch", "weighting": "equal",
        "flip": False, "shift": 0,
    }
}  # fmt: skip


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
