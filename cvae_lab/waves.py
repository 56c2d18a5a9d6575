"""Which steps of an unroll can run together: those at equal distance from the true frame they grew from."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cvae_lab.device import sent


class Order(NamedTuple):
    """Steps in the order of their waves, as indices on the device: of each wave, and of all waves joined.

    A step's place is that in which all steps lie step by step, clip by clip: whole steps are then slices, and keep
    the channels-last layout that a copy of some of each clip's frames would lose.
    """

    sizes: list[int]
    rows: Sequence[Tensor]  # clip
    at: Sequence[Tensor]  # step
    before: Sequence[Tensor]  # where the clip's step before lies in the wave before
    places: Tensor
    back: Tensor  # from the order of waves to that of places
    straight: bool  # the two are one, as at forcing 0 and 1

    @classmethod
    def of(cls, coins: Bool[Tensor, "b s"], device: torch.device) -> "Order":
        """The order that these coins ask for; nothing waits for `device`."""
        found = list(waves(coins))
        sizes = [len(rows) for rows, _ in found]
        rows, at = (torch.cat(parts) for parts in zip(*found, strict=True))
        places = at * len(coins) + rows
        back = places.argsort()
        starts = torch.tensor([0, 0, *sizes]).cumsum(0)[: len(sizes)]  # of the wave before
        before = back[(places - len(coins)).clamp(min=0)] - starts.repeat_interleave(torch.tensor(sizes))
        index = sent(torch.stack([rows, at, before, places, back]), device)
        straight = bool((places.diff() > 0).all())
        return cls(sizes, *(part.split(sizes) for part in index[:3]), *index[3:], straight)

    def arranged(self, whole: Float[Tensor, "tb ..."], count: int | None = None) -> Float[Tensor, "n ..."]:
        """What lies by place, in the order of waves: all steps', or the first `count`."""
        return whole[:count] if self.straight else whole[self.places[:count]]

    def restored(self, joined: Float[Tensor, "sb ..."]) -> Float[Tensor, "sb ..."]:
        """The inverse of `arranged`."""
        return joined if self.straight else joined[self.back]


def waves(coins: Bool[Tensor, "b s"]) -> Iterator[tuple[Tensor, Tensor]]:
    """(clip, step) of every step at distance 0, 1, ... from the true frame that starts its segment."""
    index = torch.arange(coins.shape[1]).expand(coins.shape)
    depth = (index - torch.where(coins, index, 0).cummax(dim=1).values).T
    for d in range(int(depth.max()) + 1):
        at, rows = torch.nonzero(depth == d, as_tuple=True)
        yield rows, at


def by_step(x: Float[Tensor, "b t ..."]) -> Float[Tensor, "tb ..."]:
    """Clips as one batch of frames: step by step, clip by clip."""
    return x.transpose(0, 1).flatten(0, 1)
