"""Preset `handout`: the five modules of the course's network. All layers have the full resolution of 32 x 64.

Layers have the attribute names of the course's code, so checkpoints of that code can be loaded. `compact.py` has the
same five modules in a smaller design. Source: course assignment, section 4.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, which is a 1x1 convolution if the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        y = F.leaky_relu(self.conv1(x), inplace=True)
        return F.leaky_relu(self.conv2(y), inplace=True) + self.skip(x)


class DepthConv(nn.Module):
    """Depth-wise convolution block with a skip connection: 1x1, depth-wise 3x3 and 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, in_channels, 1), nn.LeakyReLU(inplace=True))
        self.depth_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        same = in_channels == out_channels
        self.adaptor = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return self.conv2(self.depth_conv(self.conv1(x))) + self.adaptor(x)


class GatedFeedForward(nn.Module):
    """Gated feed-forward block with a residual connection.

    A 1x1 convolution expands to four times the channels. One half of these channels is multiplied by the activated
    other half. A second 1x1 convolution projects back to the original number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.conv_out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        content, gate = self.conv(x).chunk(2, dim=1)
        return self.conv_out(content * F.leaky_relu(gate, 0.1)) + x


class DepthConvBlock(nn.Module):
    """A depth-wise convolution block, followed by a gated feed-forward block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(DepthConv(in_channels, out_channels), GatedFeedForward(out_channels))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return self.block(x)


class StepwiseBatchNorm2d(nn.BatchNorm2d):
    """Batch norm for a batch of several time steps. Each step is normalised with its own statistics.

    One call on `steps * b` frames in step order gives the outputs and running statistics of `steps` calls on b frames.
    One batch can therefore contain all steps, and the result equals that of the course's network.
    """

    # True: use the statistics of the batch also in eval mode (see `rollout.evaluating`).
    batch_statistics = False

    def forward(self, x: Float[Tensor, "sb c h w"], steps: int = 1) -> Float[Tensor, "sb c h w"]:
        if not (self.training or self.batch_statistics):
            return super().forward(x)
        kind, x = x.dtype, x.float()  # the precision of bfloat16 is too low for statistics
        parts = x.unflatten(0, (steps, -1))
        count = parts[0].numel() / x.shape[1]
        var, mean = torch.var_mean(parts, dim=(1, 3, 4), correction=0, keepdim=True)
        if self.training:
            self._update_running(mean.flatten(1), var.flatten(1) * count / (count - 1))
        scale = self.weight.view(-1, 1, 1) * torch.rsqrt(var + self.eps)
        return ((parts - mean) * scale + self.bias.view(-1, 1, 1)).flatten(0, 1).to(kind)

    @torch.no_grad()
    def _update_running(self, means: Float[Tensor, "s c"], variances: Float[Tensor, "s c"]) -> None:
        # Closed form of `steps` consecutive updates r <- (1 - m) r + m v.
        m, steps = self.momentum, len(means)
        weights = m * (1 - m) ** torch.arange(steps - 1, -1, -1, device=means.device, dtype=means.dtype)
        self.running_mean.mul_((1 - m) ** steps).add_(weights @ means)
        self.running_var.mul_((1 - m) ** steps).add_(weights @ variances)
        self.num_batches_tracked += steps


def identity_activation() -> nn.Module:
    """Return a leaky ReLU with slope 1, which is the identity, as in the course's code.

    The course's code has `LeakyReLU(True)`, where True is the slope 1. The checkpoints of that code were trained with
    this identity.
    """
    return nn.LeakyReLU(negative_slope=1.0)


class RGB_Encoder(nn.Sequential):
    """Encode a frame (b, 3, h, w) as features (b, out_channels, h, w)."""

    def __init__(self, in_channels: int = 3, out_channels: int = 128) -> None:
        a, b, c = out_channels // 8, out_channels // 4, out_channels // 2
        super().__init__(
            ResidualBlock(in_channels, a),
            DepthConvBlock(a, a),
            ResidualBlock(a, b),
            DepthConvBlock(b, b),
            ResidualBlock(b, c),
            DepthConvBlock(c, c),
            nn.Conv2d(c, out_channels, 3, padding=1),
        )


class Label_Encoder(nn.Sequential):
    """Encode a pose label (b, 3, h, w) as features (b, out_channels, h, w)."""

    def __init__(self, in_channels: int = 3, out_channels: int = 32) -> None:
        half = out_channels // 2
        super().__init__(
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, half, 7),
            StepwiseBatchNorm2d(half),
            identity_activation(),
            ResidualBlock(half, out_channels),
        )

    def forward(self, label: Float[Tensor, "sb 3 h w"], steps: int = 1) -> Float[Tensor, "sb c h w"]:
        """Encode labels.

        The batch contains `steps` time steps in step order. Batch norm normalises each step separately.
        """
        for layer in self:
            label = layer(label, steps) if isinstance(layer, StepwiseBatchNorm2d) else layer(label)
        return label


class Gaussian_Predictor(nn.Sequential):
    """Predict the posterior's mu and logvar, (b, latents, h, w) each, from features of the current frame and label."""

    def __init__(self, in_channels: int = 160, latents: int = 12) -> None:
        a, b = latents // 4, latents // 2
        super().__init__(
            ResidualBlock(in_channels, a),
            DepthConvBlock(a, a),
            ResidualBlock(a, b),
            DepthConvBlock(b, b),
            ResidualBlock(b, latents),
            identity_activation(),
            nn.Conv2d(latents, 2 * latents, 1),
        )

    def forward(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"]
    ) -> tuple[Float[Tensor, "b z h w"], Float[Tensor, "b z h w"]]:
        mu, logvar = super().forward(torch.cat([frame, label], dim=1)).chunk(2, dim=1)
        return mu, logvar


class Decoder_Fusion(nn.Sequential):
    """Combine features of the previous frame, features of the label and z to (b, out_channels, h, w)."""

    def __init__(self, in_channels: int = 172, out_channels: int = 192) -> None:
        quarter, half = in_channels // 4, in_channels // 2
        super().__init__(
            DepthConvBlock(in_channels, in_channels),
            ResidualBlock(in_channels, quarter),
            DepthConvBlock(quarter, half),
            ResidualBlock(half, half),
            DepthConvBlock(half, out_channels // 2),
            nn.Conv2d(out_channels // 2, out_channels, 1),
        )

    def forward(
        self, frame: Float[Tensor, "b f h w"], label: Float[Tensor, "b l h w"], z: Float[Tensor, "b z h w"]
    ) -> Float[Tensor, "b o h w"]:
        return super().forward(torch.cat([frame, label, z], dim=1))


class Generator(nn.Sequential):
    """Decode combined features to the predicted frame (b, 3, h, w). Values may be outside [0, 1]."""

    def __init__(self, in_channels: int = 192, out_channels: int = 3) -> None:
        a, b, c = in_channels // 2, in_channels // 4, in_channels // 8
        super().__init__(
            DepthConvBlock(in_channels, in_channels),
            ResidualBlock(in_channels, a),
            DepthConvBlock(a, a),
            ResidualBlock(a, b),
            DepthConvBlock(b, b),
            ResidualBlock(b, c),
            DepthConvBlock(c, c),
            nn.Conv2d(c, out_channels, 1),
        )
