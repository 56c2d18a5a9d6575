"""Compare schedules with tables computed by hand at the steps where a schedule changes. The values must be equal."""

import doctest
import itertools
import math
from fractions import Fraction

import pytest
import torch

from cvae_lab import schedules
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.schedules import beta_at, controlled_beta, lr_factor_at, tf_ratio_at

QUARTER_COSINE = (1 - math.sqrt(0.5)) / 2
QUARTER_SIGMOID = (1 / (1 + math.exp(3)) - 1 / (1 + math.exp(6))) / (1 - 2 / (1 + math.exp(6)))


def betas(total, strategy, **options):
    return [beta_at(Fraction(step, total), strategy, **options) for step in range(total)]


def test_the_controller_converges_to_the_target_kl():
    """The simulated KL, log(1 + 1 / beta), is 2 at beta = 1 / (e^2 - 1). The start is below or above this weight."""
    for start in (1e-6, 1e3):
        beta = start
        for _ in range(2000):
            beta = controlled_beta(beta, math.log(1 + 1 / beta), 2.0)
        assert beta == pytest.approx(1 / (math.exp(2) - 1), rel=1e-4)


def test_doctests():
    assert doctest.testmod(schedules).failed == 0
    assert doctest.testmod(schedules).attempted >= 2


@pytest.mark.parametrize(
    ("total", "strategy", "options", "expected"),
    [
        (8, "cyclical", {"n_cycles": 2}, [0, 1 / 2, 1, 1] * 2),
        (10, "cyclical", {"n_cycles": 4}, [0, 0.8, 1, 0.4, 1] * 2),
        (7, "cyclical", {"n_cycles": 3}, [0, 6 / 7, 1, 4 / 7, 1, 2 / 7, 1]),
        (8, "cyclical", {"n_cycles": 2, "ratio": 1.0}, [0, 1 / 4, 2 / 4, 3 / 4] * 2),
        (4, "cyclical", {"n_cycles": 2, "ratio": 0.0}, [1] * 4),
        (3, "cyclical", {"n_cycles": 3}, [0, 0, 0]),
        (8, "monotonic", {"n_cycles": 2}, [0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1]),
        (5, "monotonic", {"ratio": 1.0}, [0, 0.2, 0.4, 0.6, 0.8]),
        (3, "none", {}, [0, 0, 0]),
        (3, "constant", {"beta_max": 0.5}, [0.5] * 3),
        (8, "cyclical", {"n_cycles": 1, "shape": "cosine"}, [0, QUARTER_COSINE, 0.5, 1 - QUARTER_COSINE] + [1] * 4),
        (8, "cyclical", {"n_cycles": 1, "shape": "sigmoid"}, [0, QUARTER_SIGMOID, 0.5, 1 - QUARTER_SIGMOID] + [1] * 4),
        (6, "cyclical", {"n_cycles": 2, "beta_max": 4.0, "ratio": 1.0}, [0, 4 / 3, 8 / 3] * 2),
    ],
)  # fmt: skip
def test_beta_at_every_step(total, strategy, options, expected):
    assert betas(total, strategy, **options) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "sigmoid", "cosine"])
@pytest.mark.parametrize(("total", "n_cycles"), [(629, 7), (1000, 3), (40, 4), (10, 4)])
def test_cycles_begin_at_0_and_reach_their_maximum_exactly(total, n_cycles, shape):
    for cycle in range(n_cycles):
        start = Fraction(cycle, n_cycles)
        assert beta_at(start, "cyclical", n_cycles=n_cycles, shape=shape) == 0
        top = start + Fraction(1, 2 * n_cycles)
        assert beta_at(top, "cyclical", n_cycles=n_cycles, shape=shape) == 1
    values = betas(total, "cyclical", n_cycles=n_cycles, shape=shape)
    assert values[-1] == 1
    assert all(0 <= value <= 1 for value in values)
    falls = sum(after < before for before, after in itertools.pairwise(values))
    assert falls == n_cycles - 1


def test_updates_per_epoch_and_per_iteration_sample_the_same_curve():
    by_epoch, by_iteration = betas(10, "cyclical"), betas(70, "cyclical")
    assert by_iteration[::7] == by_epoch
    assert beta_at(0.3, "cyclical") == pytest.approx(beta_at(Fraction(3, 10), "cyclical"))


def test_stages_are_applied_one_after_the_other():
    stages = (("monotonic", 60, 1), ("cyclical", 80, 2))
    knots = {0: 0, 15: 0.5, 30: 1, 59: 1, 60: 0, 70: 0.5, 80: 1, 99: 1, 100: 0, 110: 0.5, 120: 1, 139: 1}
    values = betas(140, "stages", stages=stages, beta_max=2.0)
    assert [values[epoch] for epoch in knots] == [2 * value for value in knots.values()]
    halved = (("monotonic", 30.0, 1), ("cyclical", 40.0, 2))
    assert betas(140, "stages", stages=halved, beta_max=2.0) == values
    flat = betas(4, "stages", stages=(("none", 1, 1), ("constant", 1, 1)))
    assert flat == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("none", {"start": 1.0}, [0] * 8),
        ("constant", {"start": 0.4}, [0.4] * 8),
        ("linear", {"start": 0.75, "first_decay": 6, "step": 0.2}, [0.75] * 5 + [0.55, 0.35, 0.15, 0, 0]),
        ("linear", {"start": 1.0, "first_decay": 5, "step": 0.1}, [1.0] * 4 + [0.9, 0.8, 0.7, 0.6]),
        ("linear", {"start": 1.0, "first_decay": 1, "step": 0.5}, [0.5, 0, 0]),
    ],
)
def test_teacher_forcing_by_epoch(strategy, options, expected):
    epochs = range(1, len(expected) + 1)
    assert [tf_ratio_at(epoch, strategy, **options) for epoch in epochs] == pytest.approx(expected)


def test_inverse_sigmoid_decreases_from_its_start():
    values = [tf_ratio_at(epoch, "inverse_sigmoid", start=0.8, decay=5.0) for epoch in range(1, 60)]
    assert values[0] == pytest.approx(0.8)
    assert all(after < before for before, after in itertools.pairwise(values))
    assert 0 < values[-1] < 0.01
    k, e = 5.0, 7.0  # k / (k + exp(e / k)) of Bengio et al., divided by its value at e = 0
    assert values[7] == pytest.approx(0.8 * (k / (k + math.exp(e / k))) / (k / (k + 1)))


def test_adaptive_decreases_after_an_improvement_and_increases_otherwise():
    """The ratio is 0.5 for five epochs. It then falls by 0.1 after an improvement and rises by 0.1 otherwise."""
    psnr = [20, 25, 19, 18, 21, 22, 21, 20, 19, 23]
    expected = [0.5] * 5 + [0.4, 0.3, 0.4, 0.5, 0.6, 0.5]
    found = [
        tf_ratio_at(
            e, "adaptive", start=0.5, first_decay=6, step=0.1, scores=[float(s) for s in psnr[: e - 1]]
        )
        for e in range(1, 12)
    ]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("trend", "end"), [(1, 0.0), (-1, 1.0)])
def test_adaptive_stays_within_0_and_1(trend, end):
    scores = [float(trend * epoch) for epoch in range(20)]
    options = {"start": 0.5, "first_decay": 2, "step": 0.2}
    assert tf_ratio_at(21, "adaptive", scores=scores, **options) == end
    turned = [*scores, scores[-1] - trend]
    assert tf_ratio_at(22, "adaptive", scores=turned, **options) == pytest.approx(abs(end - 0.2))


def test_an_unknown_teacher_forcing_strategy_is_refused():
    with pytest.raises(ValueError, match="lineer"):
        tf_ratio_at(1, "lineer")


@pytest.mark.parametrize(
    ("schedule", "options", "knots"),
    [
        ("constant", {"warmup": 0.2}, {0.0: 0, 0.1: 0.5, 0.2: 1, 1.0: 1}),
        ("cosine", {"warmup": 0.2}, {0.0: 0, 0.1: 0.5, 0.2: 1, 0.4: 1 - QUARTER_COSINE, 0.6: 0.5, 1.0: 0}),
        ("cosine", {}, {0.0: 1, 0.5: 0.5, 1.0: 0}),
        ("step", {"milestones": (0.5, 0.8)}, {0.0: 1, 0.49: 1, 0.5: 0.1, 0.79: 0.1, 0.8: 0.01, 1.0: 0.01}),
        ("step", {"milestones": (0.25,), "gamma": 0.0}, {0.2: 1, 0.25: 0}),
    ],
)
def test_learning_rate_factor_at_the_points_where_it_changes(schedule, options, knots):
    found = [lr_factor_at(progress, schedule, **options) for progress in knots]
    assert found == pytest.approx(list(knots.values()), abs=1e-12)


def mask(ratio, per, seed=0, shape=(200, 51), epoch_is_forced=None):
    return sample_teacher_forcing(ratio, *shape, per, torch.Generator().manual_seed(seed), epoch_is_forced)


@pytest.mark.parametrize("per", ["epoch", "batch", "clip", "step"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_first_step_is_always_teacher_forced(per, ratio):
    forced = mask(ratio, per, epoch_is_forced=bool(ratio))
    assert forced[:, 0].all()
    if ratio in (0, 1):
        assert (forced[:, 1:] == bool(ratio)).all()


def test_one_decision_covers_a_batch_a_clip_or_a_step():
    assert len({mask(0.5, "batch", seed, (3, 4))[:, 1:].unique().numel() for seed in range(20)}) == 1
    assert {mask(0.5, "batch", seed)[0, 1].item() for seed in range(20)} == {True, False}
    clips = mask(0.5, "clip")[:, 1:]
    assert (clips == clips[:, :1]).all()
    assert clips[:, 0].unique().numel() == 2
    steps = mask(0.5, "step")[:, 1:]
    assert steps.float().mean(1).min() > 0
    assert steps.float().mean(1).max() < 1
    for forced in (True, False):
        assert (mask(0.5, "epoch", epoch_is_forced=forced)[:, 1:] == forced).all()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_fraction_of_teacher_forced_steps_is_the_ratio(ratio):
    for per, n in (("step", 200 * 50), ("clip", 200)):
        fraction = mask(ratio, per)[:, 1:].float().mean().item()
        assert fraction == pytest.approx(ratio, abs=4 * math.sqrt(ratio * (1 - ratio) / n))


def test_the_mask_depends_on_its_generator_only():
    before = torch.get_rng_state()
    assert torch.equal(mask(0.5, "step", seed=3), mask(0.5, "step", seed=3))
    assert not torch.equal(mask(0.5, "step", seed=3), mask(0.5, "step", seed=4))
    assert torch.equal(torch.get_rng_state(), before)
