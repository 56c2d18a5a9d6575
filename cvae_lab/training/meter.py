"""Running means of an epoch's loss, squared error and KL, and the count of skipped steps."""

import math
import time

import torch

from cvae_lab.training import distributed
from cvae_lab.training.state import StepResult, TrainState

MAX_SKIPPED = 10
"""Consecutive steps with a non-finite loss or gradient after which training stops."""


class TrainingDivergedError(RuntimeError):
    """Many consecutive steps had a non-finite loss or gradient."""


class EpochMeter:
    """Mean loss, squared error and KL over the clips of an epoch; skipped steps do not count."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.started = time.monotonic()
        self.steps = self.skipped = self.clips = self.seen = 0
        self.sums, self.kl = torch.zeros(3), math.nan

    def add(self, result: StepResult, clips: int) -> None:
        """Count one step on `clips` clips. Raises TrainingDivergedError after MAX_SKIPPED skipped steps in a row."""
        self.steps, self.seen = self.steps + 1, self.seen + clips
        if result.is_finite:
            self.sums, self.clips, self.kl = self.sums + clips * result.values, self.clips + clips, result.kl
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
        """Mean loss of this rank so far; 0 before the first step."""
        return float(self.sums[0]) / max(self.clips, 1)

    @property
    def clips_per_second(self) -> float:
        """Clips per second of all ranks together."""
        return distributed.world() * self.seen / (time.monotonic() - self.started)

    def means(self) -> list[float]:
        """Mean loss, squared error and KL over the clips of all ranks; nan where every step was skipped."""
        sums, clips = distributed.summed(self.sums), distributed.summed(torch.tensor(float(self.clips)))
        return (sums / clips).tolist()
