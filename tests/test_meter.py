"""Running means over an epoch, and the number of skipped steps."""

import math
from types import SimpleNamespace

import pytest

from cvae_lab import RunConfig
from cvae_lab.training import meter
from cvae_lab.training.meter import MAX_SKIPPED, EpochMeter, TrainingDivergedError
from cvae_lab.training.state import StepResult, TrainState

SKIPPED = StepResult(math.nan, math.nan, math.nan, False)
STEPS = [StepResult(1.0, 2.0, 3.0, True), SKIPPED, StepResult(5.0, 7.0, 9.0, True), SKIPPED, SKIPPED]
CLIPS = [4, 4, 2, 4, 4]


@pytest.fixture
def state():
    config = RunConfig.from_params("tiny", width=8, device="cpu")
    state = TrainState.create(config.model, config.train)
    state.epoch = 1
    return state


def filled(found, steps=STEPS, clips=CLIPS):
    for step, count in zip(steps, clips, strict=True):
        found.add(step, count)
    return found


def test_means_are_weighted_by_clips_and_leave_out_skipped_steps(state):
    found = filled(EpochMeter(state))
    assert found.means() == pytest.approx([(4 * 1 + 2 * 5) / 6, (4 * 2 + 2 * 7) / 6, (4 * 3 + 2 * 9) / 6])
    assert (found.steps, found.skipped, found.kl, state.skipped_in_a_row) == (5, 3, 9.0, 2)
    assert found.loss == pytest.approx(14 / 6)


def test_the_means_are_nan_if_no_step_is_finite(state):
    found = filled(EpochMeter(state), [SKIPPED], [4])
    assert all(math.isnan(value) for value in found.means())
    assert found.loss == 0


def test_speed_counts_the_clips_of_skipped_steps_too(state, monkeypatch):
    now = iter([10.0, 14.0])
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert filled(EpochMeter(state)).clips_per_second == sum(CLIPS) / 4


@pytest.mark.parametrize("before", [0, 4])
def test_the_run_stops_after_the_maximum_number_of_skipped_steps_in_a_row(state, before):
    """Skipped steps at the end of the previous epoch are counted, too."""
    state.skipped_in_a_row = before
    steps = [SKIPPED] * (MAX_SKIPPED - before)
    found = filled(EpochMeter(state), steps[1:], [1] * (len(steps) - 1))
    with pytest.raises(TrainingDivergedError, match=f"up to step {len(steps)} of epoch 2"):
        found.add(SKIPPED, 1)


def test_a_finite_step_resets_the_number_of_skipped_steps(state):
    steps = [*[SKIPPED] * (MAX_SKIPPED - 1), STEPS[0], *[SKIPPED] * (MAX_SKIPPED - 1)]
    found = filled(EpochMeter(state), steps, [1] * len(steps))
    assert (found.skipped, state.skipped_in_a_row) == (2 * MAX_SKIPPED - 2, MAX_SKIPPED - 1)
