"""Conditional VAE that connects the five modules.

At step t of training, z is drawn from the posterior q(z | x_t, p_t). The inputs of the decoder are the previous frame,
the label p_t and z. At test time, z is drawn from N(0, I), or from a learned prior that depends on the previous frame
and p_t. The true frame x_t is an input of the posterior only.

The decoder may have a further input at every step, the anchor: features of the first frame and of its label. The anchor
reduces drift over 629 steps. A learned prior and an anchor exist in preset `compact` only.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvae_lab.config import ModelConfig
from cvae_lab.config.model import HEIGHTS
from cvae_lab.models import compact, modules


class CVAE(nn.Module):
    """Conditional VAE. In both presets, the five modules have the attribute names of the course's code.

    Args:
        config: configuration of the network. The field `name` selects the modules of `modules` (handout) or `compact`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        (
            self.frame_transformation,
            self.label_transformation,
            self.Gaussian_Predictor,
            self.Decoder_Fusion,
            self.Generator,
        ) = NETWORKS[config.name](config)
        self.Prior_Predictor = _prior(config)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape (channels, height, width) of z for a frame of this size in pixels.

        Raises ValueError if the frame has a height of `HEIGHTS` other than the configuration's.
        """
        own = self.config.height
        if height in HEIGHTS and height != own:
            raise ValueError(
                f"The frames have {height} x {width} pixels (height x width), but the model was built for {own} x "
                f"{2 * own}; use a model with height = {height}, or read the data with height = {own}."
            )
        scale = self.config.latent_stride
        return self.config.latents, height // scale, width // scale

    def posterior(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z hz wz"], Float[Tensor, "b z hz wz"]]:
        """Return mu and logvar of q(z | x_t, p_t) from features of the current frame and label.

        The value of logvar is clamped to plus or minus `logvar_bound`.
        """
        mu, logvar = self.Gaussian_Predictor(frame, label)
        bound = self.config.logvar_bound
        return _full(mu), _full(logvar).clamp(-bound, bound)

    def prior(
        self, previous: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z hz wz"], Float[Tensor, "b z hz wz"]] | None:
        """Return mu and logvar of a learned prior p(z | x_(t-1), p_t), or None if the prior is N(0, I).

        Source: Denton & Fergus 2018, section 3.2.
        """
        if self.Prior_Predictor is None:
            return None
        mu, logvar = self.Prior_Predictor(previous, label)
        return _full(mu), _full(logvar).clamp(-self.config.logvar_bound, self.config.logvar_bound)

    def anchor(
        self, first: Float[Tensor, "b 3 h w"], label: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b a hf wf"] | None:
        """Return the anchor (features of the first frame and of its label), or None if the model has no anchor."""
        if not self.config.anchor:
            return None
        return torch.cat([self.frame_transformation(first), self.label_transformation(label)], dim=1)

    def decode(
        self,
        previous: Float[Tensor, "b 3 h w"],
        label: Float[Tensor, "b l hf wf"],
        z: Float[Tensor, "b z hz wz"],
        anchor: Float[Tensor, "b a hf wf"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Predict the current frame from the previous frame, label features, z and the anchor (frame-0 features)."""
        features = self.frame_transformation(previous)
        return self.decode_features(features, label, z, anchor)

    def decode_features(
        self,
        previous: Float[Tensor, "b f hf wf"],
        label: Float[Tensor, "b l hf wf"],
        z: Float[Tensor, "b z hz wz"],
        anchor: Float[Tensor, "b a hf wf"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Predict the current frame from features of the previous frame. Otherwise the same as `decode`."""
        if anchor is not None:
            previous = torch.cat([previous, anchor], dim=1)
        # If z had another dtype or memory layout, concatenation would also convert the other features.
        z = z.to(label.dtype, memory_format=_layout(label))
        return _full(self.Generator(self.Decoder_Fusion(previous, label, z)))


def _layout(x: Tensor) -> torch.memory_format:
    """Return the memory format of x: channels-last, or the default format."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _full(x: Tensor) -> Tensor:
    """Convert a result of autocast from reduced precision to float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def reparameterise(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"], eps: Float[Tensor, "*b z h w"]
) -> Float[Tensor, "*b z h w"]:
    """Return z = mu + exp(logvar / 2) * eps, where eps is drawn from N(0, I).

    Source: Kingma & Welling 2014, section 2.4.
    """
    return mu + torch.exp(0.5 * logvar) * eps


def _prior(c: ModelConfig) -> nn.Module | None:
    if c.prior == "normal":
        return None
    return compact.Gaussian_Predictor(c.width + c.width // 2, c.width, c.latents, c.norm, c.extra_levels)


def _handout(c: ModelConfig) -> tuple[nn.Module, ...]:
    frame, label, fused = c.width, c.label_width, c.decoder_width
    built = (
        modules.RGB_Encoder(3, frame),
        modules.Label_Encoder(3, label),
        modules.Gaussian_Predictor(frame + label, c.latents),
        modules.Decoder_Fusion(frame + label + c.latents, fused),
        modules.Generator(fused, 3),
    )
    if c.output == "sigmoid":
        built[-1].append(nn.Sigmoid())  # has no weights, so tensor names are unchanged
    return built


def _compact(c: ModelConfig) -> tuple[nn.Module, ...]:
    frame, label = c.width, c.width // 2
    widths = (c.width, 2 * c.width, 3 * c.width)
    joined = (frame + label) * (2 if c.anchor else 1)
    return (
        compact.RGB_Encoder(frame),
        compact.Label_Encoder(label, c.invert_labels),
        compact.Gaussian_Predictor(frame + label, c.width, c.latents, c.norm, c.extra_levels),
        compact.Decoder_Fusion(joined, c.latents, widths, c.norm, c.dropout, c.extra_levels),
        compact.Generator(widths, c.norm, c.output, c.dropout, c.extra_levels),
    )


NETWORKS = {"handout": _handout, "compact": _compact}
"""Function that builds the five modules, for each preset. `config.model.Preset` lists the names of the presets."""
