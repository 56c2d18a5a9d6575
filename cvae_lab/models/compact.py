"""Preset `compact`: the same five modules and interfaces as `handout` in a small U-shaped network.

Differences from `modules.py`:

* Features have 1/2, 1/4 and 1/8 of the frame's resolution. Ten times fewer operations are needed.
* Labels are inverted: the white background becomes 0 and limbs become large values.
* z is a grid of 4 x 8 cells, much smaller than the frame.
* Group norm is computed per frame, so frames do not influence each other.
* A sigmoid keeps predictions in [0, 1].

Each doubling of the frame's height adds one level, so the size of z stays the same (`extra_levels`).
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Pyramid = tuple[Tensor, ...]
"""Features at 1/2, 1/4, 1/8, ... of the frame's resolution, finest first."""


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018). On a CPU, bfloat16 inputs are normalised in float32, because that is faster."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        slow = x.device.type == "cpu" and x.dtype == torch.bfloat16
        return super().forward(x.float()).to(x.dtype) if slow else super().forward(x)


def norm(channels: int, kind: str) -> nn.Module:
    """Return group norm over 8 groups for kind `group`, or the identity for kind `none`."""
    return GroupNorm(8, channels) if kind == "group" else nn.Identity()


class Block(nn.Module):
    """Pre-activation residual block: norm, SiLU and 3x3 convolution, twice, with a skip connection.

    The skip connection is a 1x1 convolution if the number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, kind)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels, kind)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        # The residual branch of a new block is constant. This makes deep networks easier to train.
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return y + self.skip(x)


class Down(nn.Conv2d):
    """Halve the resolution with a 3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


def upsample(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Double the resolution by repeating values. Transposed convolution would give a checkerboard pattern."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class RGB_Encoder(nn.Sequential):
    """Encode a frame (b, 3, h, w) in [0, 1] as features (b, out_channels, h/2, w/2)."""

    def __init__(self, out_channels: int) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(12, out_channels, 3, padding=1))

    def forward(self, frame: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return super().forward(frame - 0.5)


class Label_Encoder(nn.Sequential):
    """Encode a pose label (b, 3, h, w) in [0, 1] as features (b, out_channels, h/2, w/2)."""

    def __init__(self, out_channels: int, invert: bool) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(12, out_channels, 3, padding=1))
        self.invert = invert

    def forward(self, label: Float[Tensor, "sb 3 h w"], steps: int = 1) -> Float[Tensor, "sb c h2 w2"]:
        """Encode labels. The argument `steps` is only used in preset `handout`, for batch norm."""
        return super().forward(1 - label if self.invert else label)


class Gaussian_Predictor(nn.Module):
    """Predict mu and logvar, (b, latents, hz, wz) each, from features of the current frame and label."""

    def __init__(self, in_channels: int, width: int, latents: int, kind: str, extra_levels: int = 0) -> None:
        super().__init__()
        deeper = [
            layer for _ in range(extra_levels) for layer in (Down(width, width), Block(width, width, kind))
        ]
        self.layers = nn.Sequential(
            Down(in_channels, width),
            Block(width, width, kind),
            Down(width, width),
            Block(width, width, kind),
            *deeper,
            norm(width, kind),
            nn.SiLU(),
            nn.Conv2d(width, 2 * latents, 1),
        )

    def forward(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z hz wz"], Float[Tensor, "b z hz wz"]]:
        mu, logvar = self.layers(torch.cat([frame, label], dim=1)).chunk(2, dim=1)
        return mu, logvar


class Decoder_Fusion(nn.Module):
    """Encode frame features and label features as a pyramid, and add z at the coarsest level."""

    def __init__(
        self,
        in_channels: int,
        latents: int,
        widths: tuple[int, int, int],
        kind: str,
        dropout: float,
        extra_levels: int = 0,
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.join = nn.Conv2d(in_channels, fine, 1)
        self.fine = Block(fine, fine, kind, dropout)
        self.middle = nn.Sequential(Down(fine, middle), Block(middle, middle, kind, dropout))
        self.extra = nn.ModuleList(
            nn.Sequential(Down(middle, middle), Block(middle, middle, kind, dropout))
            for _ in range(extra_levels)
        )
        self.down = Down(middle, coarse)
        self.join_z = nn.Conv2d(latents, coarse, 1)
        self.coarse = nn.Sequential(
            Block(coarse, coarse, kind, dropout), Block(coarse, coarse, kind, dropout)
        )

    def forward(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"], z: Float[Tensor, "b z hz wz"]
    ) -> Pyramid:
        levels = [self.fine(self.join(torch.cat([frame, label], dim=1)))]
        for level in (self.middle, *self.extra):
            levels.append(level(levels[-1]))
        coarse = self.coarse(self.down(levels[-1]) + self.join_z(z))
        return *levels, coarse


class Up(nn.Conv2d):
    """Change the number of channels with a 1x1 convolution, double the resolution, and add the skip connection.

    Adding needs fewer operations than concatenation, because the next block has fewer input channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b i h w"], skip: Float[Tensor, "b o h2 w2"]
    ) -> Float[Tensor, "b o h2 w2"]:
        return upsample(super().forward(x)) + skip


class Generator(nn.Module):
    """Decode the pyramid to the predicted frame (b, 3, h, w), from coarse to fine with skip connections.

    The last convolution is computed at half resolution. Its 12 channels are the 2 x 2 pixels (3 colours) of each cell.
    """

    def __init__(
        self, widths: tuple[int, int, int], kind: str, output: str, dropout: float, extra_levels: int = 0
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        channels = [coarse, *(1 + extra_levels) * [middle], fine]  # of each level, coarsest first
        self.up = nn.ModuleList(Up(below, level) for below, level in itertools.pairwise(channels))
        self.blocks = nn.ModuleList(Block(level, level, kind, dropout) for level in channels[1:])
        self.out = nn.Sequential(
            norm(fine, kind), nn.SiLU(), nn.Conv2d(fine, 12, 3, padding=1), nn.PixelShuffle(2)
        )
        self.output = output

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "b 3 h w"]:
        *finer, x = pyramid
        for up, block, level in zip(self.up, self.blocks, reversed(finer), strict=True):
            x = block(up(x, level))
        x = self.out(x)
        return x.sigmoid() if self.output == "sigmoid" else x
