"""An epoch's sums, looked at now or later."""

import math
from types import SimpleNamespace

import pytest
import torch

from cvae_lab import RunConfig
from cvae_lab.training.meter import MAX_SKIPPED, EpochMeter, TrainingDivergedError
from cvae_lab.training.state import TrainState

ROWS = [[1.0, 2.0, 3.0], [math.nan] * 3, [5.0, 7.0, 9.0], [math.nan] * 3, [math.nan] * 3]
CLIPS = [4, 4, 2, 4, 4]


@pytest.fixture
def state():
    config = RunConfig.from_params("tiny", width=8)
    state = TrainState.create(config.model, config.train)
    state.epoch = 1
    return state


@pytest.fixture
def seldom(monkeypatch):
    """A device that must be waited for."""
    monkeypatch.setattr(tally, "answers_at_once", lambda device: False)


def filled(found, rows=ROWS, clips=CLIPS):
    for row, count in zip(rows, clips, strict=True):
        found.add(torch.tensor(row), count)
    return found


def by_hand(found, state):
    assert found.means() == pytest.approx([(4 * 1 + 2 * 5) / 6, (4 * 2 + 2 * 7) / 6, (4 * 3 + 2 * 9) / 6])
    assert (found.steps, found.skipped, found.kl, state.skipped_in_a_row) == (5, 3, 9.0, 2)
    assert found.loss == pytest.approx(14 / 6)


def test_where_a_look_is_free_every_step_is_seen(state):
    found = filled(EpochMeter(state, every=1e9))
    assert not found.waiting
    by_hand(found, state)


def test_elsewhere_a_look_waits_and_tells_the_same(state, seldom):
    found = filled(EpochMeter(state, every=1e9))
    assert len(found.waiting) == 5
    assert found.loss == 0
    by_hand(found, state)


def test_a_look_comes_when_its_time_has_come(state, seldom, monkeypatch):
    now = iter([0.0, *(0.4 * step for step in range(1, 20))])
    monkeypatch.setattr(tally, "time", SimpleNamespace(monotonic=lambda: next(now)))
    found, seen = EpochMeter(state, every=1.0), []
    for _ in range(6):
        found.add(torch.ones(3), 1)
        seen.append(found.steps)
    assert seen == [0, 0, 3, 3, 3, 6]  # asked at 0.4, 0.8, 1.2 (and looked at 1.6), then 2.0, 2.4, 2.8


def test_a_controller_may_ask_after_every_step(state, seldom):
    found = filled(EpochMeter(state, every=0.0), ROWS[:1], CLIPS[:1])
    assert (found.kl, found.waiting) == (3.0, [])


@pytest.mark.parametrize("before", [0, 4])
def test_a_look_that_finds_too_many_skipped_in_a_row_stops_the_run(state, seldom, before):
    """Even where the last steps were fine again; those of an earlier epoch count."""
    state.skipped_in_a_row = before
    bad = [[math.nan] * 3] * (MAX_SKIPPED - before)
    found = filled(EpochMeter(state, every=1e9), [*bad, ROWS[0]], [1] * (len(bad) + 1))
    with pytest.raises(TrainingDivergedError, match=f"up to step {len(bad)} of epoch 2"):
        found.means()
    state.skipped_in_a_row = before
    filled(EpochMeter(state, every=1e9), [*bad[1:], ROWS[0]], [1] * len(bad)).means()
    assert state.skipped_in_a_row == 0
