"""Decoder of `compact` with fewer operations and the same results, for prediction on a CPU.

* The RGB encoder and the first 1x1 convolution of the decoder are combined to one layer, because there is no activation
  between these layers.
* Features of labels, anchor and z do not depend on predictions, so these features are computed for many steps at once.
* The last convolution gives the 2 x 2 pixels of each cell as 12 channels. These channels are the input of the next
  step.
* Weights are converted to bfloat16 and arranged for the convolution kernels once, not in every step.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cvae_lab.models.compact import Block, upsample
from cvae_lab.models.cvae import CVAE

Layer = Callable[[Tensor], Tensor]


class FoldedDecoder:
    """Folded decoder of a `compact` model with prior N(0, I). The decoder predicts the frames after `first`.

    The constructor copies the weights. Convolutions have the precision of the autocast context at construction.

    Args:
        first: frame 0 of each clip in [0, 1].
        first_label: label 0 of each clip in [0, 1].
    """

    def __init__(
        self, model: CVAE, first: Float[Tensor, "b 3 h w"], first_label: Float[Tensor, "b 3 h w"]
    ) -> None:
        self.invert_labels = model.config.invert_labels
        self.squash = torch.sigmoid if model.config.output == "sigmoid" else nn.Identity()
        reduced = torch.is_autocast_enabled("cpu")
        self.dtype = torch.get_autocast_dtype("cpu") if reduced else first.dtype
        fusion, generator = model.Decoder_Fusion, model.Generator
        with torch.autocast("cpu", enabled=False):
            self._fold_inputs(model, first, first_label)
            self.join_z = self._conv(fusion.join_z)
            self.fine = self._block(fusion.fine)
            self.down = [self._chain(level[0], level[1]) for level in (fusion.middle, *fusion.extra)]
            self.down.append(self._conv(fusion.down))
            self.coarse = self._chain(*fusion.coarse)
            self.up = [self._conv(up) for up in generator.up]
            self.blocks = [self._block(block) for block in generator.blocks]
            self.norm_out, self.out = self._norm_silu(generator.out[0]), self._conv(generator.out[2])
        self.previous = self._cells(first)  # frame s of each clip, as 12 channels at half resolution

    def predict(
        self, labels: Float[Tensor, "b s 3 h w"], z: Sequence[Float[Tensor, "b z hz wz"]]
    ) -> Float[Tensor, "b s 3 h w"]:
        """Return the next s frames in [0, 1]. The next call continues after these frames.

        Args:
            labels: labels of these frames in [0, 1].
            z: latents, one tensor per frame.
        """
        with torch.autocast("cpu", enabled=False):
            context = self._contexts(labels)
            z_features = self.join_z(self._reduced(torch.cat(list(z)))).chunk(len(z))
            cells = [self._step(*inputs) for inputs in zip(context, z_features, strict=True)]
            frames = F.pixel_shuffle(torch.cat(cells).float(), 2)
        return frames.unflatten(0, (len(z), -1)).transpose(0, 1).to(labels.dtype).clamp(0, 1)

    def _step(self, context: Tensor, z_features: Tensor) -> Tensor:
        """Predict one frame of each clip as cells, and store it for the next step."""
        levels = [self.fine(self.encode(self.previous).add_(context))]
        *halvings, last = self.down
        for halve in halvings:
            levels.append(halve(levels[-1]))
        x = self.coarse(last(levels[-1]).add_(z_features))
        for up, block in zip(self.up, self.blocks, strict=True):
            x = block(upsample(up(x)).add_(levels.pop()))
        cells = self.squash(self.out(self.norm_out(x)))
        self.previous = cells - 0.5
        return cells

    def _fold_inputs(self, model: CVAE, first: Tensor, first_label: Tensor) -> None:
        """Combine both encoders with the decoder's first convolution. The contribution of the anchor is a constant."""
        join = model.Decoder_Fusion.join
        frame, label = model.frame_transformation[1], model.label_transformation[1]
        weights = join.weight.split([frame.out_channels, join.in_channels - frame.out_channels - label.out_channels,
                                     label.out_channels], dim=1)  # fmt: skip
        constant = join.bias + weights[0].flatten(1) @ frame.bias + weights[2].flatten(1) @ label.bias
        self.encode = self._conv(frame, joined_weight(weights[0], frame.weight), None)
        self.encode_labels = self._conv(label, joined_weight(weights[2], label.weight), None)
        self.constant = constant[None, :, None, None]
        anchor = model.anchor(first, first_label)
        if anchor is not None:
            self.constant = self.constant + F.conv2d(anchor, weights[1])

    def _contexts(self, labels: Float[Tensor, "b s 3 h w"]) -> Sequence[Tensor]:
        """Compute the contribution of label and anchor to the first convolution, for every step."""
        by_step = labels.transpose(0, 1).flatten(0, 1)
        cells = F.pixel_unshuffle(1 - by_step if self.invert_labels else by_step, 2)
        encoded = self.encode_labels(self._reduced(cells)).unflatten(0, (labels.shape[1], -1))
        return [self._reduced(step.to(self.constant.dtype) + self.constant) for step in encoded]

    def _cells(self, frame: Float[Tensor, "b 3 h w"]) -> Tensor:
        return self._reduced(F.pixel_unshuffle(frame - 0.5, 2))

    def _reduced(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last)

    def _chain(self, *modules: nn.Module) -> Layer:
        layers = [self._block(m) if isinstance(m, Block) else self._conv(m) for m in modules]

        def run(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        return run

    def _block(self, block: Block) -> Layer:
        norm1, norm2 = self._norm_silu(block.norm1), self._norm_silu(block.norm2)
        conv1, conv2 = self._conv(block.conv1), self._conv(block.conv2)
        skip = self._conv(block.skip) if isinstance(block.skip, nn.Conv2d) else block.skip
        return lambda x: conv2(norm2(conv1(norm1(x)))).add_(skip(x))

    def _norm_silu(self, norm: nn.Module) -> Layer:
        if isinstance(norm, nn.Identity):
            return F.silu
        weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
        working = weight.dtype  # group norm is slow in bfloat16 on a CPU

        def run(x: Tensor) -> Tensor:
            y = F.group_norm(x.to(working), norm.num_groups, weight, bias, norm.eps)
            return F.silu(y, inplace=True).to(x.dtype)

        return run

    def _conv(
        self, conv: nn.Conv2d, weight: Tensor | None = None, bias: Tensor | str | None = "own"
    ) -> Layer:
        """Return a convolution with converted weights. By default, these are the weights of the module."""
        weight = self._reduced((conv.weight if weight is None else weight).detach())
        bias = conv.bias if isinstance(bias, str) else bias
        bias = None if bias is None else bias.detach().to(self.dtype)
        return PackedConv(weight, bias, conv.stride, conv.padding)


class PackedConv:
    """Convolution that arranges its weights for the CPU's kernels only at the first call with an input shape."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> None:
        self.weight, self.bias, self.stride, self.padding = weight, bias, list(stride), list(padding)
        self.packed: dict[torch.Size, Tensor] = {}  # arranged weights for each shape of the input

    def __call__(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        if not _can_pack(x.dtype):
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        ops = torch.ops.mkldnn
        if x.shape not in self.packed:
            self.packed[x.shape] = ops._reorder_convolution_weight(
                self.weight, self.padding, self.stride, [1, 1], 1, list(x.shape)
            )
        packed = self.packed[x.shape]
        return ops._convolution_pointwise(
            x, packed, self.bias, self.padding, self.stride, [1, 1], 1, "none", [], ""
        )


def _can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN can arrange the weights of a convolution before a call."""
    return torch.backends.mkldnn.is_available() and dtype in (torch.bfloat16, torch.float32)


def joined_weight(
    pointwise: Float[Tensor, "o f 1 1"], weight: Float[Tensor, "f i kh kw"]
) -> Float[Tensor, "o i kh kw"]:
    """Return the weight of one convolution that equals `weight` followed by the 1x1 convolution `pointwise`."""
    return torch.einsum("of,fikl->oikl", pointwise.flatten(1), weight)
