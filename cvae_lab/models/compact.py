"""The same five names and call signatures in a small U-shaped network: our default on a CPU.

What differs from `modules.py`, and why:

* work at 16x32, 8x16 and 4x8 instead of 32x64 everywhere: an order of magnitude fewer operations;
* labels are inverted, so that limbs are large numbers on zero, and blank paper is silent;
* z is a 4x8 grid, far smaller than the frame;
* group norm per frame (nothing mixes frames), a sigmoid at the end (predictions stay in [0, 1]).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Pyramid = tuple[Tensor, Tensor, Tensor]
"""Features at 1/2, 1/4 and 1/8 of the frame's resolution."""


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018); on a CPU float32 in place of bfloat16, which takes it longer than two casts."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        slow = x.device.type == "cpu" and x.dtype == torch.bfloat16
        return super().forward(x.float()).to(x.dtype) if slow else super().forward(x)


def norm(channels: int, kind: str) -> nn.Module:
    """Group norm over 8 groups, or nothing."""
    return GroupNorm(8, channels) if kind == "group" else nn.Identity()


class Block(nn.Module):
    """Pre-activation residual block: norm, SiLU, 3x3, twice; 1x1 skip where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, kind: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, kind)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels, kind)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(
            self.conv2.weight
        )  # each block starts as its skip: deep nets train from the first step

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return y + self.skip(x)


class Down(nn.Conv2d):
    """Halve the resolution by a strided 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


def upsample(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Double the resolution by repetition: no checkerboard, unlike pixel-shuffle or strided transposes."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class RGB_Encoder(nn.Sequential):
    """Frame (b, 3, h, w) in [0, 1] to features (b, out_channels, h/2, w/2)."""

    def __init__(self, out_channels: int) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(12, out_channels, 3, padding=1))

    def forward(self, frame: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return super().forward(frame - 0.5)


class Label_Encoder(nn.Sequential):
    """Pose label (b, 3, h, w) in [0, 1] to features (b, out_channels, h/2, w/2)."""

    def __init__(self, out_channels: int, invert: bool) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(12, out_channels, 3, padding=1))
        self.invert = invert

    def forward(self, label: Float[Tensor, "sb 3 h w"], steps: int = 1) -> Float[Tensor, "sb c h2 w2"]:
        """`steps` is there for the handout's batch norm; nothing here mixes frames."""
        return super().forward(1 - label if self.invert else label)


class Gaussian_Predictor(nn.Module):
    """Features of the current frame and label to mu and logvar, (b, latents, h/8, w/8) each."""

    def __init__(self, in_channels: int, width: int, latents: int, kind: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Down(in_channels, width),
            Block(width, width, kind),
            Down(width, width),
            Block(width, width, kind),
            norm(width, kind),
            nn.SiLU(),
            nn.Conv2d(width, 2 * latents, 1),
        )

    def forward(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z h8 w8"], Float[Tensor, "b z h8 w8"]]:
        mu, logvar = self.layers(torch.cat([frame, label], dim=1)).chunk(2, dim=1)
        return mu, logvar


class Decoder_Fusion(nn.Module):
    """Frame features, label features and z down a pyramid; z joins at its foot."""

    def __init__(
        self, in_channels: int, latents: int, widths: tuple[int, int, int], kind: str, dropout: float
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.join = nn.Conv2d(in_channels, fine, 1)
        self.fine = Block(fine, fine, kind, dropout)
        self.middle = nn.Sequential(Down(fine, middle), Block(middle, middle, kind, dropout))
        self.down = Down(middle, coarse)
        self.join_z = nn.Conv2d(latents, coarse, 1)
        self.coarse = nn.Sequential(
            Block(coarse, coarse, kind, dropout), Block(coarse, coarse, kind, dropout)
        )

    def forward(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"], z: Float[Tensor, "b z h4 w4"]
    ) -> Pyramid:
        fine = self.fine(self.join(torch.cat([frame, label], dim=1)))
        middle = self.middle(fine)
        coarse = self.coarse(self.down(middle) + self.join_z(z))
        return fine, middle, coarse


class Generator(nn.Module):
    """The pyramid back up, with skip connections, to the predicted frame (b, 3, h, w)."""

    def __init__(self, widths: tuple[int, int, int], kind: str, output: str, dropout: float) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.middle = Block(coarse + middle, middle, kind, dropout)
        self.fine = Block(middle + fine, fine, kind, dropout)
        self.paint = nn.Sequential(norm(fine, kind), nn.SiLU(), nn.Conv2d(fine, 32, 1))
        self.out = nn.Conv2d(32, 3, 3, padding=1)
        self.output = output

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "b 3 h w"]:
        fine, middle, coarse = pyramid
        x = self.middle(torch.cat([upsample(coarse), middle], dim=1))
        x = self.fine(torch.cat([upsample(x), fine], dim=1))
        x = self.out(F.silu(upsample(self.paint(x))))
        return x.sigmoid() if self.output == "sigmoid" else x
