"""KL weight, teacher-forcing ratio and learning rate as pure functions of progress.

Progress is in [0, 1). Progress is the number of finished steps divided by the number of all steps, or the used fraction
of a time limit. With `Fraction(step, total)` there are no rounding errors, so a schedule changes at exactly the
intended step. Floats are also accepted.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

Progress = float | Fraction
Stage = tuple[str, int | float, int]

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    # The logistic function on [-6, 6], as in Fu et al., rescaled to reach 0 and 1 exactly.
    "sigmoid": lambda u: (_logistic(12 * u - 6) - _logistic(-6)) / (_logistic(6) - _logistic(-6)),
    "cosine": lambda u: 0.5 - 0.5 * math.cos(math.pi * u),
}


def _logistic(u: int | float) -> float:
    return 1 / (1 + math.exp(-u))


def ramp(phase: Progress, ratio: float, shape: str = "linear") -> float:
    """Return a value that rises from 0 to 1 while `phase` goes from 0 to `ratio`, and is 1 for larger phases.

    If `ratio` is 0, the value is always 1.
    """
    return 1.0 if phase >= ratio else SHAPES[shape](float(phase / ratio))


def _cyclical(progress: Progress, n_cycles: int, ratio: float, shape: str) -> float:
    return ramp(progress * n_cycles % 1, ratio, shape)


KL_STRATEGIES: dict[str, Callable[[Progress, int, float, str], float]] = {
    "cyclical": _cyclical,
    "monotonic": lambda progress, n_cycles, ratio, shape: ramp(progress, ratio, shape),
    "none": lambda *_: 0.0,
    "constant": lambda *_: 1.0,
}


def beta_at(
    progress: Progress,
    strategy: str = "cyclical",
    *,
    beta_max: float = 1.0,
    n_cycles: int = 4,
    ratio: float = 0.5,
    shape: str = "linear",
    stages: Sequence[Stage] = (),
) -> float:
    """Return the KL weight (Fu et al. 2019, equation 6, in closed form).

    Args:
        progress: fraction of training done, in [0, 1).
        strategy: `cyclical` divides training into `n_cycles` equal cycles. In each cycle, the weight rises from 0 to
            `beta_max` during the first fraction `ratio` of the cycle and then stays at `beta_max`. `monotonic` is one
            such cycle, `none` is 0, `constant` is `beta_max`. `stages` applies several of these one after the other.
        shape: shape of the rise, a key of SHAPES.
        stages: (strategy, relative length, n_cycles) of each stage.

    >>> [beta_at(Fraction(step, 8), "cyclical", n_cycles=2) for step in range(8)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """
    if strategy == "stages":
        (strategy, _, n_cycles), progress = _stage_at(progress, stages)
    return beta_max * KL_STRATEGIES[strategy](progress, n_cycles, ratio, shape)


def controlled_beta(
    beta: float,
    kl: float,
    target: float,
    rate: float = 0.02,
    bounds: tuple[float, float] = (0.0, math.inf),
) -> float:
    """Return the KL weight after one step of a controller whose target for the KL is `target` nats.

    The step adds rate * log(kl / target) to log(beta). The logarithm is limited to -1 to 1, so the weight changes by a
    factor of at most exp(rate). The weight rises if the KL is above the target and falls if the KL is below the target.
    This rule is the integral term of ControlVAE (Shao et al. 2020, algorithm 1), applied to log(beta).

    As in ControlVAE, the weight stays within `bounds`, and no error accumulates at a bound (anti-windup). A weight at a
    bound changes again at the first step where the KL is on the other side of the target.

    >>> controlled_beta(1e-4, 30.0, 30.0), controlled_beta(1.0, 60.0, 1.0, rate=0.1) == math.exp(0.1)
    (0.0001, True)
    >>> controlled_beta(1.0, 60.0, 1.0, bounds=(0.1, 1.0)), controlled_beta(1.0, 1.0, 60.0, bounds=(0.1, 1.0)) < 1
    (1.0, True)
    """
    error = math.log(max(kl, 1e-9) / target)
    low, high = bounds
    return min(high, max(low, beta * math.exp(rate * min(1.0, max(-1.0, error)))))


def _stage_at(progress: Progress, stages: Sequence[Stage]) -> tuple[Stage, Progress]:
    """Return the stage at this progress, and the progress within that stage."""
    position = progress * sum(Fraction(stage[1]) for stage in stages)
    for stage in stages[:-1]:
        if position < stage[1]:
            return stage, position / Fraction(stage[1])
        position -= Fraction(stage[1])
    return stages[-1], position / Fraction(stages[-1][1])


def tf_ratio_at(
    epoch: int,
    strategy: str = "none",
    *,
    start: float = 1.0,
    first_decay: int = 5,
    step: float = 0.1,
    decay: float = 5.0,
    scores: Sequence[float] = (),
) -> float:
    """Return the teacher-forcing ratio: the probability that the true previous frame is the input of a step.

    Args:
        epoch: number of the epoch, counted from 1.
        strategy: `none` is 0 and `constant` is `start`. `linear` decreases by `step` per epoch from epoch `first_decay`
            on. `inverse_sigmoid` is k / (k + exp((epoch - 1) / k)) with k = `decay` (Bengio et al. 2015), scaled so
            that epoch 1 has `start`. The `adaptive` schedule has the value `start` before epoch `first_decay`. From
            that epoch on, the ratio decreases by `step` if the last epoch improved the validation PSNR, and increases
            by `step` otherwise.
        scores: validation PSNR of each finished epoch; used by `adaptive` only.

    >>> [round(tf_ratio_at(e, "linear", start=0.75, first_decay=6, step=0.2), 2) for e in (5, 6, 7, 8, 9, 10)]
    [0.75, 0.55, 0.35, 0.15, 0.0, 0.0]
    """
    if strategy == "none":
        return 0.0
    if strategy == "constant":
        return start
    if strategy == "linear":
        return max(0.0, start - step * max(0, epoch - first_decay + 1))
    if strategy == "inverse_sigmoid":
        # The exponent is negative, so late epochs give 0 instead of an overflow.
        decayed = math.exp(-(epoch - 1) / decay)
        return start * (decay + 1) * decayed / (decay * decayed + 1)
    if strategy == "adaptive":
        return _adaptive(epoch, start, first_decay, step, scores)
    raise ValueError(f"There is no teacher-forcing strategy {strategy!r}.")


def _adaptive(epoch: int, start: float, first_decay: int, step: float, scores: Sequence[float]) -> float:
    ratio = start
    for done in range(max(2, first_decay - 1), min(epoch - 1, len(scores)) + 1):
        improved = scores[done - 1] > scores[done - 2]
        ratio = min(1.0, max(0.0, ratio - step if improved else ratio + step))
    return ratio


def lr_factor_at(
    progress: Progress,
    schedule: str = "cosine",
    *,
    warmup: float = 0.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    position: Progress | None = None,
) -> float:
    """Return the learning rate as a fraction of its maximum.

    Args:
        progress: fraction of training done, in [0, 1].
        schedule: schedule after the warm-up. `constant` is 1. `step` starts at 1. Each of `milestones` multiplies it by
            `gamma`. `cosine` is half a period of a cosine, from 1 to 0.
        warmup: fraction of training in which the factor rises linearly from 0 to 1.
        position: value that is compared with `milestones`, such as the number of finished epochs; None: `progress`.
    """
    if progress < warmup:
        return float(progress / warmup)
    if schedule == "step":
        position = progress if position is None else position
        return gamma ** sum(position >= milestone for milestone in milestones)
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * float((progress - warmup) / (1 - warmup)))
    return 1.0
