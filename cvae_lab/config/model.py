"""The configuration of the network."""

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cvae_lab.config.checks import STRICT, ConfigError, one_sentence

Preset = Literal["handout", "compact"]
HEIGHTS = (32, 64, 128)
"""Heights of a frame in pixels that `compact` has a network for. The width is twice the height."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The configuration of the network.

    Preset `handout` is the network of the course's code. The options of `handout` are four widths, the output
    activation and `logvar_bound`. The course's command line calls the widths F_dim (`width`), L_dim (`label_width`),
    N_dim (`latents`) and D_out_dim (`decoder_width`). Preset `compact` is a smaller network of this project.
    """

    name: Preset = Field(
        "compact", description="network: `handout` (the course's network) or `compact` (a smaller network)"
    )
    height: Literal[32, 64, 128] = Field(
        32,
        description="frame height in pixels; the width is twice the height. Data are read or rendered at this size. "
        "Each doubling adds a level to `compact`, so the size of z does not change",
    )
    width: int = Field(
        32,
        ge=8,
        le=1024,
        description="channels at half resolution, a multiple of 8; handout: channels of frame features (F_dim)",
    )
    label_width: int = Field(32, ge=8, le=1024, description="handout: channels of label features (L_dim)")
    decoder_width: int = Field(
        192, ge=16, le=1024, description="handout: channels between decoder and generator (D_out_dim)"
    )
    latents: int = Field(8, ge=1, le=64, description="channels of z")
    anchor: bool = Field(
        True, description="give features of the first frame and of its label to the decoder at every step"
    )
    norm: Literal["group", "none"] = Field("group", description="normalisation layers")
    output: Literal["sigmoid", "linear"] = Field("sigmoid", description="output activation of the generator")
    invert_labels: bool = Field(
        True, description="encode 1 - label instead of the label, so that the white background is 0"
    )
    dropout: float = Field(0.0, ge=0.0, le=0.9, description="dropout probability in decoder and generator")
    prior: Literal["normal", "learned"] = Field(
        "normal", description="prior of z: N(0, I), or p(z | previous frame, label)"
    )
    logvar_bound: float = Field(
        10.0,
        ge=0.1,
        le=20.0,
        description="log-variances are clamped to plus or minus this value; needed if beta is 0",
    )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":  # noqa: ANN401
        """Return the configuration of preset `handout` or `compact`, with some values changed."""
        if name == "handout":
            return cls(name="handout", **(_HANDOUT | _HANDOUT_FIXED | changes))
        return cls(name=name, **changes)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.name == "handout":
            if wrong := [key for key, value in _HANDOUT_FIXED.items() if getattr(self, key) != value]:
                raise ConfigError(
                    f"preset handout is the course's network and has no option {wrong[0]}; use preset compact."
                )
            if self.latents < 4:
                raise ConfigError(
                    f"latents = {self.latents} is too small for preset handout; give 4 or more."
                )
            return
        if self.width % 8:
            raise ConfigError(f"width = {self.width} is not a multiple of 8.")
        for key in ("label_width", "decoder_width"):
            if getattr(self, key) != getattr(type(self), key):
                raise ConfigError(f"{key} belongs to preset handout; remove it, or use preset handout.")

    @property
    def latent_stride(self) -> int:
        """Number of frame pixels per cell of z, along each axis."""
        return 1 if self.name == "handout" else 8 * 2**self.extra_levels

    @property
    def extra_levels(self) -> int:
        """Number of resolution levels of `compact` beyond the three levels for frames of 32 x 64 pixels."""
        return {32: 0, 64: 1, 128: 2}[self.height]


_HANDOUT: dict[str, Any] = {"width": 128, "latents": 12, "output": "linear"}
_HANDOUT_FIXED: dict[str, Any] = {
    "height": 32, "anchor": False, "norm": "none", "invert_labels": False, "dropout": 0.0, "prior": "normal",
}  # fmt: skip
