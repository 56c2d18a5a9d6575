"""The five modules wired into one conditional VAE.

Step t of training: z ~ q(z | x_t, p_t); the decoder sees the frame before t, the label p_t and z.
At test z ~ N(0, I), or from a learned prior that sees the frame before (`compact` only). The given first frame
may serve as an anchor at every step (`compact` only): features of frame and label 0 that keep 629 steps from
drifting. Nothing at step t sees a later true frame but the posterior.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvae_lab.config import ModelConfig
from cvae_lab.models import compact, modules


class CVAE(nn.Module):
    """The five modules under the course's attribute names, whatever the preset."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        build = _handout if config.name == "handout" else _compact
        (
            self.frame_transformation,
            self.label_transformation,
            self.Gaussian_Predictor,
            self.Decoder_Fusion,
            self.Generator,
        ) = build(config)
        self.Prior_Predictor = _prior(config)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of z for one frame of this size."""
        scale = self.config.latent_stride
        return self.config.latents, height // scale, width // scale

    def posterior(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z hz wz"], Float[Tensor, "b z hz wz"]]:
        """mu and logvar of q(z | x_t, p_t) from features of the current frame and label; logvar is bounded."""
        mu, logvar = self.Gaussian_Predictor(frame, label)
        bound = self.config.logvar_bound
        return _full(mu), _full(logvar).clamp(-bound, bound)

    def prior(
        self, previous: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z hz wz"], Float[Tensor, "b z hz wz"]] | None:
        """mu and logvar of a learned p(z | x_(t-1), p_t) (Denton & Fergus 2018, section 3.2); None: it is N(0, I)."""
        if self.Prior_Predictor is None:
            return None
        mu, logvar = self.Prior_Predictor(previous, label)
        return _full(mu), _full(logvar).clamp(-self.config.logvar_bound, self.config.logvar_bound)

    def anchor(
        self, first: Float[Tensor, "b 3 h w"], label: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b a hf wf"] | None:
        """Features of the given frame and its label, seen at every step; None where the model has no anchor."""
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
        """One step: previous frame, features of the current label, z (and the anchor) to the current frame."""
        features = self.frame_transformation(previous)
        return self.decode_features(features, label, z, anchor)

    def decode_features(
        self,
        previous: Float[Tensor, "b f hf wf"],
        label: Float[Tensor, "b l hf wf"],
        z: Float[Tensor, "b z hz wz"],
        anchor: Float[Tensor, "b a hf wf"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The same from features of the previous frame, for those who have them already."""
        if anchor is not None:
            previous = torch.cat([previous, anchor], dim=1)
        z = z.to(label.dtype)  # concatenating float32 z with bfloat16 features would make all of them float32
        return _full(self.Generator(self.Decoder_Fusion(previous, label, z)))


def _full(x: Tensor) -> Tensor:
    """Single precision again where autocast reduced it."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def reparameterise(
    mu: Float[Tensor, "*b z h w"], logvar: Float[Tensor, "*b z h w"], eps: Float[Tensor, "*b z h w"]
) -> Float[Tensor, "*b z h w"]:
    """z = mu + exp(logvar / 2) * eps with eps ~ N(0, I) (Kingma & Welling 2014, section 2.4)."""
    return mu + torch.exp(0.5 * logvar) * eps


def _prior(c: ModelConfig) -> nn.Module | None:
    if c.prior == "normal":
        return None
    return compact.Gaussian_Predictor(c.width + c.width // 2, c.width, c.latents, c.norm)


def _handout(c: ModelConfig) -> tuple[nn.Module, ...]:
    frame, label, fused = c.width, c.label_width, c.decoder_width
    generator = modules.Generator(fused, 3)
    if c.output == "sigmoid":
        generator.append(nn.Sigmoid())  # it has no weights, so the names of all tensors stay the course's
    return (
        modules.RGB_Encoder(3, frame),
        modules.Label_Encoder(3, label),
        modules.Gaussian_Predictor(frame + label, c.latents),
        modules.Decoder_Fusion(frame + label + c.latents, fused),
        generator,
    )


def _compact(c: ModelConfig) -> tuple[nn.Module, ...]:
    frame, label = c.width, c.width // 2
    widths = (c.width, 2 * c.width, 3 * c.width)
    joined = (frame + label) * (2 if c.anchor else 1)
    return (
        compact.RGB_Encoder(frame),
        compact.Label_Encoder(label, c.invert_labels),
        compact.Gaussian_Predictor(frame + label, c.width, c.latents, c.norm),
        compact.Decoder_Fusion(joined, c.latents, widths, c.norm, c.dropout),
        compact.Generator(widths, c.norm, c.output, c.dropout),
    )
