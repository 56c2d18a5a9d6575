"""KL weight, teacher-forcing ratio and learning rate as pure functions of progress; no counters anywhere.

Progress runs over [0, 1): step / total of epochs or iterations, or the share of a time budget used. Pass
`Fraction(step, total)` where a knot must fall on a step exactly; floats do elsewhere.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from jaxtyping import Bool
from torch import Tensor

Progress = float | Fraction
Stage = tuple[str, int | float, int]

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    # The logistic from -6 to 6 of Fu et al., moved and stretched to meet 0 and 1 exactly.
    "sigmoid": lambda u: (_logistic(12 * u - 6) - _logistic(-6)) / (_logistic(6) - _logistic(-6)),
    "cosine": lambda u: 0.5 - 0.5 * math.cos(math.pi * u),
}


def _logistic(u: int | float) -> float:
    return 1 / (1 + math.exp(-u))


def ramp(phase: Progress, ratio: float, shape: str = "linear") -> float:
    """0 to 1 while `phase` goes from 0 to `ratio`, then 1. A ratio of 0 is 1 throughout."""
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
    """KL weight (Fu et al. 2019, equation 6, in closed form).

    `cyclical` rises from 0 to beta_max over the first `ratio` of each of `n_cycles` equal cycles and holds;
    `monotonic` does so once; `none` is 0; `constant` is beta_max; `stages` runs (strategy, length, n_cycles)
    one after the other, lengths relative.

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
    """Return the KL weight after one step of a controller that holds the KL at `target` nats.

    The weight rises where the KL is above the target and falls where it is below, by a factor of at most exp(rate), in
    proportion to log(kl / target). This is the integral term of ControlVAE (Shao et al. 2020, algorithm 1), applied to
    log(beta). As there, the weight stays within bounds and nothing accumulates beyond them (anti-windup): a weight at
    a bound leaves it at the first step whose KL is on the other side of the target.

    >>> controlled_beta(1e-4, 30.0, 30.0), controlled_beta(1.0, 60.0, 1.0, rate=0.1) == math.exp(0.1)
    (0.0001, True)
    >>> controlled_beta(1.0, 60.0, 1.0, bounds=(0.1, 1.0)), controlled_beta(1.0, 1.0, 60.0, bounds=(0.1, 1.0)) < 1
    (1.0, True)
    """
    error = math.log(max(kl, 1e-9) / target)
    low, high = bounds
    return min(high, max(low, beta * math.exp(rate * min(1.0, max(-1.0, error)))))


def _stage_at(progress: Progress, stages: Sequence[Stage]) -> tuple[Stage, Progress]:
    """The stage at this progress, and the progress within it."""
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
    """Probability that a step is fed the true previous frame, in epoch 1, 2, ...

    `constant` is start; `linear` falls by `step` an epoch from epoch `first_decay` on; `inverse_sigmoid` is
    start * k / (k + exp((epoch - 1) / k)) * (k + 1) / k with k = `decay` (Bengio et al. 2015, scaled to begin at
    start); `adaptive` holds until epoch `first_decay`, then moves down by `step` after each epoch whose validation
    PSNR (`scores`, one per finished epoch) improved on the epoch before and up after each that fell; `none` is 0.

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
        fall = math.exp(-(epoch - 1) / decay)  # of its own sign, so that a late epoch gives 0 and no overflow
        return start * (decay + 1) * fall / (decay * fall + 1)
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
) -> float:
    """Learning rate over its maximum: a linear rise over `warmup`, then constant, step or half a cosine to 0."""
    if progress < warmup:
        return float(progress / warmup)
    if schedule == "step":
        return gamma ** sum(progress >= milestone for milestone in milestones)
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * float((progress - warmup) / (1 - warmup)))
    return 1.0


def sample_teacher_forcing(
    ratio: float,
    clips: int,
    steps: int,
    per: str,
    generator: torch.Generator,
    epoch_is_forced: bool | None = None,
) -> Bool[Tensor, "b s"]:
    """Draw the teacher-forcing mask: which steps get the true previous frame, each with probability `ratio`.

    The first step of every clip is always teacher-forced, because its previous frame is the first frame.

    Args:
        per: what is drawn once: a `batch`, a `clip` or a `step`; per `epoch` the caller draws and passes
            `epoch_is_forced`.
        generator: of the CPU.
    """
    if per == "epoch":
        mask = torch.full((clips, steps), bool(epoch_is_forced))
    else:
        shape = {"batch": (1, 1), "clip": (clips, 1), "step": (clips, steps)}[per]
        mask = (torch.rand(shape, generator=generator) < ratio).expand(clips, steps).clone()
    mask[:, 0] = True
    return mask
