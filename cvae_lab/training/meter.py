"""Running means of loss, squared error and KL over an epoch, and the number of skipped steps."""

import math
import time

import torch

from cvae_lab.training import distributed
from cvae_lab.training.state import StepResult, TrainState

MAX_SKIPPED = 10
"""Training stops after this number of consecutive steps with a non-finite loss or gradient."""


class TrainingDivergedError(RuntimeError):
    """Error for many consecutive steps with a non-finite loss or gradient."""


class EpochMeter:
    """Mean loss, squared error and KL over the clips of an epoch. The clips of skipped steps are left out."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.started = time.monotonic()
        self.steps = self.skipped = self.clips = self.seen = 0
        self.sums, self.kl = torch.zeros(3), math.nan

    def add(self, result: StepResult, clips: int) -> None:
        """Add the result of one step on `clips` clips.

        Raises TrainingDivergedError after MAX_SKIPPED skipped steps in a row.
        """
        self.steps, self.seen = self.steps + 1, self.seen + clips
        if result.is_finite:
            self.sums, self.clips, self.kl = self.sums + clips * result.values, self.clips + clips, result.kl
            self.state.skipped_in_a_row = 0
            return
        self.skipped, self.state.skipped_in_a_row = self.skipped + 1, self.state.skipped_in_a_row + 1
        if self.state.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDivergedError(
                f"The loss or the gradient was not finite in {self.state.skipped_in_a_row} steps in a row, up to step "
                f"{self.steps} of epoch {self.state.epoch + 1}; lower lr or clip_norm, or raise beta_max."
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
        """Return mean loss, squared error and KL over the clips of all ranks; nan if every step was skipped."""
        sums, clips = distributed.summed(self.sums), distributed.summed(torch.tensor(float(self.clips)))
        return (sums / clips).tolist()
