"""What a run is: its model, its training and its data. Every parameter has a type, a range and a meaning.

A run is described by flat names: the parameters cell of a notebook, or `-p NAME VALUE` on the command line.
`RunConfig.from_params` assigns each name to the model or to the training. pydantic checks types and ranges.
"""

import difflib
import json
import logging
import shlex
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

Preset = Literal["handout", "compact"]
KLStrategy = Literal["cyclical", "monotonic", "none", "constant", "stages"]
TFStrategy = Literal["none", "constant", "linear", "inverse_sigmoid", "adaptive"]

_log = logging.getLogger(__name__)

RENAMED = {"start": "init_from", "given": "reference_frame", "optimiser": "optimizer"}
"""Old parameter names, accepted for one version, and the new ones."""

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ConfigError(ValueError):
    """A parameter with an impossible value; the message says which, why, and what is possible."""


def _one_sentence(cls: type) -> type:
    """Make a pydantic dataclass raise ConfigError with one sentence instead of pydantic's report."""
    construct = cls.__init__

    @wraps(construct)
    def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: ANN401, N807
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise _config_error(cls, error) from None

    cls.__init__ = __init__
    return cls


def _config_error(cls: type, error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    name = str(first["loc"][0])
    value = first["input"]
    known = {parameter.name: parameter for parameter in parameters(cls)}
    if name not in known:
        return ConfigError(f"There is no parameter {name!r}.")
    if first["type"] in ("greater_than_equal", "less_than_equal"):
        return ConfigError(f"{name} = {value!r} is outside its range, {known[name].range}.")
    if first["type"] == "literal_error":
        return ConfigError(f"{name} = {value!r} is not one of {known[name].choices}.")
    message = first["msg"].replace("Input should be", "is not")
    return ConfigError(f"{name} = {value!r} {message}.")


@_one_sentence
@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """The network. `handout` is the course's network and accepts only `logvar_bound`."""

    name: Preset = Field("compact", description="network: the course's (handout) or ours (compact)")
    height: Literal[32, 64, 128] = Field(
        32,
        description="frame height in pixels; `compact` has one more level per doubling, so z keeps its size",
    )
    width: int = Field(
        32, ge=8, le=1024, multiple_of=8, description="channels at half resolution, a multiple of 8"
    )
    latents: int = Field(8, ge=1, le=64, description="channels of z")
    anchor: bool = Field(True, description="pass features of the first frame and its label to every step")
    norm: Literal["group", "none"] = Field("group", description="normalisation layers")
    output: Literal["sigmoid", "linear"] = Field("sigmoid", description="last activation of the generator")
    invert_labels: bool = Field(True, description="feed 1 - label, so that the white background is 0")
    dropout: float = Field(0.0, ge=0.0, le=0.9, description="dropout probability in decoder and generator")
    prior: Literal["normal", "learned"] = Field(
        "normal", description="prior of z: N(0, I), or p(z | previous frame, label)"
    )
    logvar_bound: float = Field(
        10.0,
        ge=0.1,
        le=20.0,
        description="log-variance is clamped to plus or minus this; needed where beta is 0",
    )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":  # noqa: ANN401
        """Return `handout` (exactly the course's network) or `compact` (ours), with some values changed."""
        if name == "handout":
            fixed = {
                "height": 32,
                "width": 128,
                "latents": 12,
                "anchor": False,
                "norm": "none",
                "output": "linear",
            }
            fixed |= {"invert_labels": False, "dropout": 0.0, "prior": "normal"}
            wrong = [key for key in changes if key in fixed and changes[key] != fixed[key]]
            if wrong:
                raise ConfigError(
                    f"preset handout is the course's network and has no option {wrong[0]}; use preset compact."
                )
            return cls(name="handout", **(fixed | changes))
        return cls(name=name, **changes)  # type: ignore[arg-type]

    @property
    def latent_stride(self) -> int:
        """Frame pixels per cell of z, along each axis."""
        return 1 if self.name == "handout" else 8 * 2**self.extra_levels

    @property
    def extra_levels(self) -> int:
        """Levels of `compact` beyond the three that frames of 32 x 64 need."""
        return {32: 0, 64: 1, 128: 2}[self.height]


@_one_sentence
@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """How a model is trained. The defaults suit `compact` on two CPU cores."""

    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of weights, clips, masks and noise")
    init_from: str = Field(
        "", description="run folder or checkpoint file with initial weights; empty: random weights"
    )
    epochs: int = Field(40, ge=1, le=10**6, description="passes over the training frames")
    minutes: float = Field(
        0.0,
        ge=0.0,
        le=10**6,
        description="time budget; above 0 it replaces `epochs`, and all schedules follow it",
    )
    n_frames: int = Field(4, ge=2, le=512, description="frames in a clip, the first one included")
    batch_size: int = Field(10, ge=1, le=65536, description="clips per optimizer step")
    clips_per_epoch: int = Field(
        0, ge=0, le=10**9, description="clips per epoch; 0: as many as show each frame once"
    )
    reference_frame: Literal["random", "first"] = Field(
        "random", description="frame 0 of a clip: a random frame of the recording, or the one before frame 1"
    )
    holdout: float = Field(
        0.1, ge=0.0, le=0.5, description="fraction of each training recording held out to select checkpoints"
    )
    eval_every: int = Field(
        5,
        ge=1,
        le=10**6,
        description="epochs between evaluations (1 if tf_strategy is adaptive); the last has one",
    )

    optimizer: Literal["adam", "adamw", "adamax", "muon"] = Field("muon", description="optimizer")
    lr: float = Field(4e-3, ge=1e-8, le=1.0, description="learning rate after warm-up")
    lr_schedule: Literal["constant", "step", "cosine"] = Field("cosine", description="learning-rate schedule")
    lr_warmup: float = Field(
        0.02, ge=0.0, le=0.5, description="fraction of training in which the learning rate rises from 0"
    )
    lr_milestones: tuple[float, ...] = Field(
        (0.5, 0.8), description="`step`: fractions of training at which the learning rate falls"
    )
    lr_gamma: float = Field(0.1, ge=0.0, le=1.0, description="`step`: factor of each fall")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="weight decay of the optimizer")
    clip_norm: float = Field(
        1.0, ge=0.0, le=10**6, description="gradient norm is clipped to this; 0: no clipping"
    )
    ema: float = Field(
        0.998,
        ge=0.0,
        le=0.99999,
        description="decay per step of the weight average that is evaluated; 0: none",
    )
    bptt: int = Field(
        -1, ge=-1, le=512, description="consecutive predicted frames that gradients pass; 0: none, -1: all"
    )
    feedback_noise: float = Field(
        0.03, ge=0.0, le=1.0, description="standard deviation of noise on predicted frames that are fed back"
    )
    flip: bool = Field(True, description="mirror half of the clips and exchange left and right limb colours")
    paste: float = Field(
        0.0, ge=0.0, le=1.0, description="fraction of clips that get a rectangle of another clip (CutMix)"
    )
    shift: int = Field(
        2, ge=0, le=16, description="shift half of the clips horizontally by up to this many pixels"
    )
    jitter: float = Field(
        0.0, ge=0.0, le=0.5, description="scale a clip's brightness by up to plus or minus this"
    )

    weighting: Literal["equal", "psnr"] = Field(
        "psnr",
        description="weights of frame errors: equal (always so at scale elbo), or inverse to the error",
    )
    scale: Literal["handout", "elbo"] = Field("handout", description="scale of the KL term")
    sigma: float = Field(
        0.0, ge=0.0, le=100.0, description="`elbo`: standard deviation of the decoder; 0: closed-form optimum"
    )
    free_bits: float = Field(
        0.0,
        ge=0.0,
        le=10**6,
        description="nats per frame and channel of z below which the KL is not reduced further",
    )
    kl_target: float = Field(
        0.0, ge=0.0, le=10**6, description="KL in nats per frame that a controller holds; 0: no controller"
    )
    kl_balance: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="learned prior: fraction of the KL gradient that trains the prior; 0: plain KL",
    )
    beta_max: float = Field(1.0, ge=0.0, le=10**6, description="largest KL weight")
    kl_strategy: KLStrategy = Field("constant", description="schedule of the KL weight")
    kl_per: Literal["epoch", "iteration"] = Field(
        "iteration", description="how often the KL weight is updated"
    )
    n_cycles: int = Field(4, ge=1, le=10**6, description="`cyclical`: number of cycles")
    cycle_ratio: float = Field(
        0.5, ge=0.0, le=1.0, description="fraction of a cycle in which the KL weight rises"
    )
    cycle_shape: Literal["linear", "sigmoid", "cosine"] = Field("linear", description="shape of the rise")
    stages: tuple[tuple[str, float, int], ...] = Field(
        (), description="`stages`: list of (strategy, relative length, n_cycles)"
    )

    tf_strategy: TFStrategy = Field("none", description="schedule of the teacher-forcing ratio")
    tf_start: float = Field(1.0, ge=0.0, le=1.0, description="first teacher-forcing ratio")
    tf_first_decay: int = Field(
        5, ge=1, le=10**6, description="first epoch (from 1) in which the ratio may change"
    )
    tf_step: float = Field(0.1, ge=0.0, le=1.0, description="change of the ratio per epoch")
    tf_decay: float = Field(
        5.0, ge=1.0, le=10**6, description="`inverse_sigmoid`: k of k / (k + exp(e / k)), in epochs"
    )
    tf_per: Literal["epoch", "batch", "clip", "step"] = Field(
        "step", description="what each random teacher-forcing decision covers"
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is a GPU, else CPU"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions; auto: bfloat16 where the processor has instructions for it"
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: torch's default")

    def __post_init__(self) -> None:
        if self.kl_target and not self.beta_max:
            raise ConfigError("kl_target needs a beta_max above 0, where its controller starts; try 1e-5.")
        if self.kl_strategy == "stages" and not self.stages:
            raise ConfigError(
                'kl_strategy = "stages" needs stages, such as [["monotonic", 60, 1], ["cyclical", 80, 2]].'
            )
        for stage in self.stages:
            if stage[0] not in ("cyclical", "monotonic", "none", "constant") or min(stage[1:]) <= 0:
                raise ConfigError(
                    f"stages: {stage!r} is not (strategy, length, n_cycles) with a strategy of "
                    "cyclical, monotonic, none, constant, and two positive numbers."
                )
        if not all(0 <= milestone <= 1 for milestone in self.lr_milestones):
            raise ConfigError(f"lr_milestones = {self.lr_milestones} must be fractions of training, 0 to 1.")


class Parameter(NamedTuple):
    """One configuration parameter, as the help shows it."""

    name: str
    kind: str  # int, float, bool, str, a choice or a tuple
    choices: tuple[str, ...]  # of a choice; else empty
    range: str  # such as "0 to 1"; empty where there is none
    default: Any
    meaning: str


def parameters(*classes: type) -> list[Parameter]:
    """Return every parameter of the given configuration classes, by default of the model and of the training."""
    found = []
    for cls in classes or (ModelConfig, TrainConfig):
        for name, info in cls.__pydantic_fields__.items():
            bounds = [
                getattr(rule, side) for side in ("ge", "le") for rule in info.metadata if hasattr(rule, side)
            ]
            options = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            kind = "choice" if options else getattr(info.annotation, "__name__", "tuple")
            span = f"{bounds[0]:g} to {bounds[1]:g}" if len(bounds) == 2 else ""
            found.append(Parameter(name, kind, options, span, info.default, info.description or ""))
    return found


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class RunConfig:
    """A model, its training and its data."""

    data: str
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.train.sigma and self.train.scale == "handout":
            raise ConfigError(
                'sigma belongs to scale = "elbo"; at the scale of the assignment there is only beta_max.'
            )
        if self.train.scale == "elbo" and self.train.weighting != "equal":
            raise ConfigError(
                'scale = "elbo" needs weighting = "equal": with other frame weights the loss is not an ELBO.'
            )
        if self.train.kl_balance and self.model.prior == "normal":
            raise ConfigError(
                'kl_balance divides the gradient between posterior and prior; it needs prior = "learned".'
            )

    @classmethod
    def from_params(cls, data: str | Path, preset: str = "compact", **params: Any) -> "RunConfig":  # noqa: ANN401
        """Build a run from flat names. Raises ConfigError for an unknown name, with the most similar known one."""
        model_names = {f.name for f in fields(ModelConfig)} - {"name"}
        train_names = {f.name for f in fields(TrainConfig)}
        params = current_names(params)
        for name in params:
            if name not in model_names | train_names:
                near = difflib.get_close_matches(name, sorted(model_names | train_names | {"preset"}), n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ConfigError(f"There is no parameter {name!r}.{hint}")
        values = {name: _tuples(value) for name, value in params.items()}
        model = {name: values[name] for name in values if name in model_names}
        train = {name: values[name] for name in values if name in train_names}
        defaults = _PRESET_TRAINING.get(preset, {})
        if train.get("scale") == "elbo":
            defaults = defaults | {"weighting": "equal"}
        return cls(str(data), ModelConfig.preset(preset, **model), TrainConfig(**(defaults | train)))

    def to_json(self) -> str:
        """Return one JSON object, which `from_json` reads."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Read what `to_json` wrote; files of the previous version are accepted."""
        raw = json.loads(text)
        train = TrainConfig(
            **{name: _tuples(value) for name, value in current_names(raw["train"], None).items()}
        )
        return cls(raw["data"], ModelConfig(**raw["model"]), train)

    def difference(self, other: "RunConfig", ignore: tuple[str, ...] = ()) -> str:
        """Describe the first value that differs in `other`; empty where all are equal, except those to `ignore`."""
        mine, theirs = ({"data": c.data, **asdict(c.model), **asdict(c.train)} for c in (self, other))
        changed = [name for name in mine if mine[name] != theirs[name] and name not in ignore]
        return f"{changed[0]} = {mine[changed[0]]!r}, not {theirs[changed[0]]!r}" if changed else ""

    def command(self) -> str:
        """Return the command line that trains this run: every value that differs from its preset's default.

        Paths are given by their last part only.
        """
        plain = RunConfig.from_params(self.data, self.model.name)
        mine, usual = ({**asdict(c.model), **asdict(c.train)} for c in (self, plain))
        changed = {name: value for name, value in mine.items() if value != usual[name]}
        if self.model.name != ModelConfig.name:
            changed = {"preset": self.model.name, **changed}
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
    """Return the parameters under their current names; `warn` is called for each old name."""
    for old in params.keys() & RENAMED.keys():
        if warn:
            warn(
                f"The parameter {old} is now called {RENAMED[old]}; the old name works in this version only."
            )
    return {RENAMED.get(name, name): value for name, value in params.items()}


# Training values of preset `handout`, after the course's code: clips of 16, Adam, no noise, no weight average.
_PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "handout": {
        "n_frames": 16, "batch_size": 2, "optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0,
        "ema": 0.0, "feedback_noise": 0.0, "reference_frame": "first", "kl_per": "epoch", "weighting": "equal",
        "flip": False, "shift": 0,
    }
}  # fmt: skip


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
