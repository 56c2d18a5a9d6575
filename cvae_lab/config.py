"""What a run is: frozen dataclasses, every range checked, unknown names refused, to and from JSON.

A run is described by flat names (a notebook's parameters cell, `-p name value` on the command line).
`RunConfig.from_params` sorts them into the model's, the training's and the run's own.
"""

import difflib
import json
import math
import shlex
import types
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

Preset = Literal["handout", "compact"]
KLStrategy = Literal["cyclical", "monotonic", "none", "constant", "stages"]
TFStrategy = Literal["none", "constant", "linear", "inverse_sigmoid", "adaptive"]


class ConfigError(ValueError):
    """A parameter that cannot be; the message says which, why, and what can."""


def _fits(value: Any, kind: Any) -> bool:  # noqa: ANN401
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if origin is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(item, kinds[0]) for item in value)
        same_length = isinstance(value, tuple) and len(value) == len(kinds)
        return same_length and all(_fits(*pair) for pair in zip(value, kinds, strict=True))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is type(None) else isinstance(value, kind)


def _check(config: Any) -> None:  # noqa: ANN401
    """Type, choice and range of every field; a range is the field's metadata."""
    for item in fields(config):
        value = getattr(config, item.name)
        if not _fits(value, item.type):
            options = (
                get_args(item.type)
                if get_origin(item.type) is Literal
                else getattr(item.type, "__name__", item.type)
            )
            raise ConfigError(f"{item.name} = {value!r} is not one of {options}.")
        low, high = item.metadata.get("range", (-math.inf, math.inf))
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise ConfigError(f"{item.name} = {value} is outside its range, {low} to {high}.")


def within(default: Any, low: int | float, high: int | float = math.inf) -> Any:  # noqa: ANN401
    """A field with a default and a closed range."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class ModelConfig:
    """The network. `handout` is the course's and takes none of the options but `logvar_bound`."""

    name: Preset = "compact"
    width: int = within(32, 8, 1024)  # channels at half resolution, a multiple of 8
    latents: int = within(8, 1, 64)  # channels of z
    anchor: bool = True  # see the given first frame at every step
    norm: Literal["group", "none"] = "group"
    output: Literal["sigmoid", "linear"] = "sigmoid"
    invert_labels: bool = True
    dropout: float = within(0.0, 0.0, 0.9)
    prior: Literal["normal", "learned"] = "normal"  # of z: N(0, I), or p(z | previous frame, label)
    logvar_bound: float = within(10.0, 0.1, 20.0)  # keeps a run at beta = 0 from blowing up

    def __post_init__(self) -> None:
        _check(self)
        if self.width % 8:
            raise ConfigError(f"width = {self.width} must be a multiple of 8, for its group norm.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":  # noqa: ANN401
        """`handout` (the course's network exactly) or `compact` (ours)."""
        if name == "handout":
            fixed = {"width": 128, "latents": 12, "anchor": False, "norm": "none", "output": "linear"}
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
        """Frame pixels per latent cell, along each axis."""
        return 1 if self.name == "handout" else 8


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Defaults are those of `compact` on two CPU cores."""

    seed: int = within(0, 0)
    start: str = ""  # a run's folder or a checkpoint file: training starts from its weights, all else afresh
    epochs: int = within(40, 1)
    minutes: float = within(0.0, 0.0)  # > 0: a time budget that replaces `epochs`; all schedules follow it
    n_frames: int = within(4, 2, 512)  # frames in a clip, the given one included
    batch_size: int = within(10, 1, 65536)
    clips_per_epoch: int = within(0, 0)  # 0: as many as show each frame once
    given: Literal["random", "first"] = "random"  # a clip's given frame: any of its take, or the one before
    holdout: float = within(0.1, 0.0, 0.5)  # share of each training take kept out, for choosing checkpoints
    eval_every: int = within(
        5, 1
    )  # epochs between evaluations (1 if tf_strategy is adaptive); the last has one

    optimiser: Literal["adam", "adamw", "adamax", "muon"] = "muon"
    lr: float = within(4e-3, 1e-8, 1.0)
    lr_schedule: Literal["constant", "step", "cosine"] = "cosine"
    lr_warmup: float = within(0.02, 0.0, 0.5)  # share of training over which lr rises from 0
    lr_milestones: tuple[float, ...] = (0.5, 0.8)  # `step`: shares of training at which lr falls ...
    lr_gamma: float = within(0.1, 0.0, 1.0)  # ... by this factor
    weight_decay: float = within(0.01, 0.0, 1.0)
    clip_norm: float = within(1.0, 0.0)  # gradient norm is clipped to this; 0: not at all
    ema: float = within(0.998, 0.0, 0.99999)  # decay of the averaged weights per step; 0: none
    bptt: int = within(-1, -1)  # steps that gradients travel through predicted frames; 0: none, -1: all
    feedback_noise: float = within(0.03, 0.0, 1.0)  # sd of noise on fed-back frames
    flip: bool = True  # mirror half of the clips, swapping the colours of left and right limbs
    paste: float = within(0.0, 0.0, 1.0)  # share of clips that get a rectangle of another, labels and all
    shift: int = within(2, 0, 16)  # half of the clips are moved sideways by up to so many pixels
    jitter: float = within(0.0, 0.0, 0.5)  # a clip's brightness is scaled by up to this

    weighting: Literal["equal", "psnr"] = "psnr"  # of frames' errors: as the handout, or as PSNR counts them
    scale: Literal["handout", "elbo"] = "handout"
    sigma: float = within(
        0.0, 0.0, 100.0
    )  # `elbo`: the decoder's standard deviation; 0: the closed-form optimum
    free_bits: float = within(0.0, 0.0)  # nats per frame below which a channel of z costs no less
    kl_target: float = within(
        0.0, 0.0
    )  # > 0: nats per frame that a controller holds; beta starts at beta_max
    kl_balance: float = within(
        0.0, 0.0, 1.0
    )  # > 0, with a learned prior: share of the KL's pull on the prior
    beta_max: float = within(1.0, 0.0)
    kl_strategy: KLStrategy = "constant"
    kl_per: Literal["epoch", "iteration"] = "iteration"
    n_cycles: int = within(4, 1)
    cycle_ratio: float = within(0.5, 0.0, 1.0)  # share of a cycle in which beta rises
    cycle_shape: Literal["linear", "sigmoid", "cosine"] = "linear"
    stages: tuple[
        tuple[str, float, int], ...
    ] = ()  # `stages`: (strategy, length, n_cycles), lengths relative

    tf_strategy: TFStrategy = "none"
    tf_start: float = within(1.0, 0.0, 1.0)
    tf_first_decay: int = within(
        5, 1
    )  # first epoch (from 1) with a lower ratio; `adaptive`: first that may change
    tf_step: float = within(0.1, 0.0, 1.0)
    tf_decay: float = within(5.0, 1.0)  # `inverse_sigmoid`: k of k / (k + exp(e / k)), in epochs
    tf_per: Literal["epoch", "batch", "clip", "step"] = "step"

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = within(0, 0, 1024)  # CPU threads; 0: torch's default

    def __post_init__(self) -> None:
        _check(self)
        if self.kl_target and not self.beta_max:
            raise ConfigError(
                "kl_target needs a beta_max above 0, where its controller starts; 1e-5 is a good one."
            )
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


@dataclass(frozen=True)
class RunConfig:
    """A model, its training, its data."""

    data: str
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.train.sigma and self.train.scale == "handout":
            raise ConfigError(
                'sigma belongs to scale = "elbo"; at the handout\'s scale there is beta_max alone.'
            )
        if self.train.kl_balance and self.model.prior == "normal":
            raise ConfigError(
                'kl_balance parts gradients between posterior and prior; it needs prior = "learned".'
            )

    @classmethod
    def from_params(cls, data: str | Path, preset: str = "compact", **params: Any) -> "RunConfig":  # noqa: ANN401
        """From flat names; ConfigError for an unknown one, with the nearest known name."""
        model_names = {f.name for f in fields(ModelConfig)} - {"name"}
        train_names = {f.name for f in fields(TrainConfig)}
        for name in params:
            if name not in model_names | train_names:
                near = difflib.get_close_matches(name, sorted(model_names | train_names | {"preset"}), n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ConfigError(f"There is no parameter {name!r}.{hint}")
        values = {name: _tuples(value) for name, value in params.items()}
        model = {name: values[name] for name in values if name in model_names}
        train = {name: values[name] for name in values if name in train_names}
        return cls(
            str(data),
            ModelConfig.preset(preset, **model),
            TrainConfig(**(_PRESET_TRAINING.get(preset, {}) | train)),
        )

    def to_json(self) -> str:
        """One JSON object, read back by `from_json`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """The inverse of `to_json`."""
        raw = json.loads(text)
        train = TrainConfig(**{name: _tuples(value) for name, value in raw["train"].items()})
        return cls(raw["data"], ModelConfig(**raw["model"]), train)

    def difference(self, other: "RunConfig", but: tuple[str, ...] = ()) -> str:
        """The first value that `other` has differently, in words; empty where all are alike, `but` for these."""
        mine, theirs = ({"data": c.data, **asdict(c.model), **asdict(c.train)} for c in (self, other))
        changed = [name for name in mine if mine[name] != theirs[name] and name not in but]
        return f"{changed[0]} = {mine[changed[0]]!r}, not {theirs[changed[0]]!r}" if changed else ""

    def command(self) -> str:
        """The command line that trains such a run: every value that is not its preset's own. Paths by name alone."""
        plain = RunConfig.from_params(self.data, self.model.name)
        mine, usual = ({**asdict(c.model), **asdict(c.train)} for c in (self, plain))
        changed = {name: value for name, value in mine.items() if value != usual[name]}
        if self.model.name != ModelConfig.name:
            changed = {"preset": self.model.name, **changed}
        if "start" in changed:
            changed["start"] = Path(changed["start"]).name
        written = {n: json.dumps(v) if isinstance(v, tuple) else str(v) for n, v in changed.items()}
        words = [word for pair in written.items() for word in ("-p", *pair)]
        return shlex.join(
            ["python", "-m", "cvae_lab", "train", "RUN", "--data", Path(self.data).name, *words]
        )

    def with_training(self, **changes: Any) -> "RunConfig":  # noqa: ANN401
        """A copy with some training values changed."""
        return replace(self, train=replace(self.train, **changes))


# The handout's own protocol: full-length clips of 16, Adam without decay, no noise, no averaging.
_PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "handout": {
        "n_frames": 16, "batch_size": 2, "optimiser": "adam", "lr": 1e-4, "weight_decay": 0.0,
        "ema": 0.0, "feedback_noise": 0.0, "given": "first", "kl_per": "epoch", "weighting": "equal",
        "flip": False, "shift": 0,
    }
}  # fmt: skip


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
