"""What an epoch's steps gave. It stays on the device until a look costs nothing, or a second has passed."""

import math
import time

import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab import parallel
from cvae_lab.device import answers_at_once
from cvae_lab.state import TrainState

MAX_SKIPPED = 10
"""Steps in a row with a non-finite loss or gradient after which training stops."""

LOOK_EVERY = 1.0
"""Seconds between two looks at a device that must be waited for."""


class TrainingDivergedError(RuntimeError):
    """Several steps in a row had a non-finite loss or gradient."""


class Tally:
    """Loss, mse and KL of an epoch's steps, and how many were skipped: those whose values are nan."""

    def __init__(self, state: TrainState, every: float = LOOK_EVERY) -> None:
        self.state, self.every = state, every
        self.begun = self.looked = time.monotonic()
        self.waiting: list[tuple[Tensor, int]] = []
        self.given = self.steps = self.skipped = self.clips = 0
        self.sums, self.kl = torch.zeros(3), math.nan

    def add(self, values: Float[Tensor, "3"], clips: int) -> None:
        """What `train_step` returned for a batch of `clips`. Raises TrainingDivergedError at the look that tells."""
        self.waiting.append((values, clips))
        self.given += clips
        if answers_at_once(values.device) or time.monotonic() - self.looked >= self.every:
            self.look()

    def look(self) -> None:
        """Wait for the device, and count what it has done since the last look."""
        waiting, self.waiting, self.looked = self.waiting, [], time.monotonic()
        if waiting:
            values, clips = zip(*waiting, strict=True)
            for row, count in zip(torch.stack(values).cpu(), clips, strict=True):
                self._count(row, count)

    def _count(self, row: Float[Tensor, "3"], clips: int) -> None:
        self.steps += 1
        if row.isfinite().all():
            self.sums, self.clips, self.kl = self.sums + clips * row, self.clips + clips, float(row[2])
            self.state.skipped_in_a_row = 0
            return
        self.skipped, self.state.skipped_in_a_row = self.skipped + 1, self.state.skipped_in_a_row + 1
        if self.state.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDivergedError(
                f"Loss or gradient was not finite in {self.state.skipped_in_a_row} steps in a row, up to step "
                f"{self.steps} of epoch {self.state.epoch + 1}; lower lr, or raise beta_max or lower clip_norm."
            )

    @property
    def loss(self) -> float:
        """This rank's mean, as of the last look; 0 before any."""
        return float(self.sums[0]) / max(self.clips, 1)

    @property
    def clips_per_second(self) -> float:
        """Of all ranks."""
        return parallel.world() * self.given / (time.monotonic() - self.begun)

    def means(self) -> list[float]:
        """Loss, mse and KL over the clips of all ranks; nan where every step was skipped."""
        self.look()
        sums, clips = parallel.summed(self.sums), parallel.summed(torch.tensor(float(self.clips)))
        return (sums / clips).tolist()
