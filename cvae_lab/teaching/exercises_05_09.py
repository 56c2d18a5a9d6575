"""Checks of the exercises in notebooks 05 to 09. Module `exercises` contains the checks for notebooks 00 to 04.

`check_05_1` checks exercise 1 of notebook 05. Each docstring names the function that the student writes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from cvae_lab.evaluation.metrics import average_2023
from cvae_lab.objective import sigma_of_beta
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.schedules import tf_ratio_at
from cvae_lab.teaching.check import as_array, exercise, expect, expect_close

# Notebook 05


@exercise("the ratio needs ceil(start / step) decreases, and the first one is in epoch first_decay.")
def check_05_1(answer: Callable) -> None:
    """Check `first_free(start, first_decay, step)`: the first epoch in which strategy `linear` has ratio 0."""
    for start, first, step in ((0.75, 6, 0.2), (1.0, 5, 0.1), (0.9, 1, 0.3), (0.5, 3, 1.0)):
        epoch, case = answer(start, first, step), f"start {start}, first_decay {first}, step {step}"
        expect(float(epoch).is_integer(), f"{case}: an epoch must be a whole number.")
        ratio, before = (
            tf_ratio_at(int(e), "linear", start=start, first_decay=first, step=step)
            for e in (epoch, epoch - 1)
        )
        expect(ratio < 1e-9, f"{case}: in epoch {epoch} the ratio is still {ratio:.2f}.")
        expect(before > 1e-9, f"{case}: the ratio is already 0 before epoch {epoch}.")


@exercise("all draws after the first must be free: steps - 1 draws per step, one per clip or batch.")
def check_05_2(answer: Callable) -> None:
    """Check `alone(per, ratio, steps)`: the probability that only the first step is teacher-forced."""
    ratio, steps, n_clips = 0.3, 5, 20_000
    for per in ("batch", "clip", "step"):
        generator = torch.Generator().manual_seed(1)
        masks = [sample_teacher_forcing(ratio, 1, steps, per, generator) for _ in range(n_clips)]
        sampled = float((~torch.cat(masks)[:, 1:].any(dim=1)).float().mean())
        mistakes = {
            "the draw for the first step does not matter, because this step is always teacher-forced.": (
                (1 - ratio) ** steps
            ),
            f"how many draws are made for a clip when there is one per {per}?": (
                1 - ratio if per == "step" else (1 - ratio) ** (steps - 1)
            ),
            "this uses the probability of a teacher-forced step; use that of a free-running step.": (
                ratio ** (steps - 1 if per == "step" else 1)
            ),
        }
        hint = f"one draw per {per}: a simulation with ratio {ratio} and {steps} steps gives another value."
        # 0.02 is more than five standard errors of a fraction of 20,000 clips.
        expect_close(answer(per, ratio, steps), sampled, hint, mistakes, tolerance=0.015)


@exercise("the squares add up to v (1 - g^2t) / (1 - g^2), or v t at gain 1, where the error never fades.")
def check_05_3(answer: Callable) -> None:
    """Check `mean_square(v, g, t)`: the mean of e_t^2 for e_t = delta_t + g * e_(t-1) and e_0 = 0."""
    v, steps = 4.0, 10
    generator = torch.Generator().manual_seed(2)
    for g in (0.0, 0.5, 1.0, 1.1):
        e = torch.zeros(100_000)
        for _ in range(steps):
            e = math.sqrt(v) * torch.randn(len(e), generator=generator) + g * e
        simulated = float(e.square().mean())
        mistakes = {
            "the mean squares of independent terms add up, so each weight g^k must be squared.": (
                v * sum(g**k for k in range(steps))
            ),
            "the sum has t terms, from k = 0 to t - 1.": v * sum(g ** (2 * k) for k in range(steps + 1)),
        }
        tolerance = 5 * math.sqrt(2 / len(e))  # 5 standard errors of a mean square
        hint = f"gain {g}: a simulation gives another value."
        expect_close(answer(v, g, steps), simulated, hint, mistakes, tolerance)


# Notebook 06


@exercise("the last index where the model is better, plus 1, because frames count from 1.")
def check_06_1(answer: Callable) -> None:
    """Check `last_win(psnr, static)`: the last frame (counted from 1) with a PSNR above the baseline."""
    value = answer(np.array([3.0, 9.0, 1.0]), np.array([4.0, 4.0, 4.0]))
    expect(value != 1, "frame numbers start at 1, but array indices start at 0.")
    expect(value == 2, "in the first test, the model is better in only one frame; return its number.")
    value = answer(np.array([9.0, 3.0, 9.0, 1.0]), np.full(4, 4.0))
    expect(value == 3, "return the last frame, not the first frame and not the number of frames.")
    expect(answer(np.ones(3), np.ones(3)) == 0, "return 0 if the model is never better.")


@exercise("moments that are hard for both cancel in the difference, so its slope is drift.")
def check_06_2(answer: Callable) -> None:
    """Check `drift_of_rollout(rollout, one_step)`: the slope of the difference in dB per 100 frames."""
    t = np.arange(1.0, 501.0)
    both = 3 * np.sin(t / 40) - 0.004 * t  # frames that are hard to predict for both
    mistakes = {
        "a constant difference is not drift; fit the difference, not the rollout alone.": _slope(both)
    }
    expect_close(answer(30 + both, 31 + both), 0.0, "a constant difference has slope 0.", mistakes)
    drifting = 30 + both - 0.002 * t
    mistakes = {
        "this is the slope per frame; the unit is dB per 100 frames.": -0.002,
        "the sign is wrong: a rollout that becomes worse has a negative slope.": 0.2,
    }
    hint = "fit a straight line to the difference as a function of the frame number."
    expect_close(answer(drifting, 31 + both), -0.2, hint, mistakes)


def _slope(curve: np.ndarray) -> float:
    """Return the slope of a straight line fitted to a curve, per 100 frames."""
    return float(100 * np.polyfit(np.arange(len(curve)), curve, 1)[0])


# Notebook 07


@exercise("sigma^2 = beta D / 2, solved for beta.")
def check_07_1(answer: Callable) -> None:
    """Check `beta_for(sigma, dims)`: the KL weight, at the assignment's scale, of a decoder with this sigma."""
    for sigma, dims in ((1.0, 2), (0.05, 6144)):
        beta = 2 * sigma**2 / dims
        mistakes = {
            "sigma must be squared.": 2 * sigma / dims,
            "the factor 2 is missing or on the wrong side.": sigma**2 / dims,
            "this computes a variance from a weight; compute a weight from sigma.": sigma * dims / 2,
        }
        value = answer(sigma, dims)
        hint = f"a decoder with this weight and {dims} values does not have sigma {sigma}."
        expect_close(float(value) / beta, 1.0, hint, {why: wrong / beta for why, wrong in mistakes.items()})
        expect_close(sigma_of_beta(float(value), dims), sigma, hint)


@exercise("sigma^2 between two neighbouring variances leaves exactly the larger ones active.")
def check_07_2(answer: Callable) -> None:
    """Check `beta_with(variances, dims, count)`: a KL weight at which exactly `count` directions are active."""
    variances, dims = np.array([0.5, 8.0, 2.0, 0.1]), 6
    for count in (1, 2, 3):
        beta = float(answer(variances, dims, count))
        expect(beta > 0, "the KL weight must be positive.")
        active = int((variances > sigma_of_beta(beta, dims) ** 2).sum())
        hint = f"{active} directions are active instead of {count}; sort the variances in descending order."
        expect(active == count, hint)


@exercise("first the mean over frames, then the best sample of each clip, then the mean over clips.")
def check_07_3(answer: Callable) -> None:
    """Check `best_of(psnr)`: the mean over clips of the best sample's mean PSNR."""
    psnr = np.array([[[20.0, 30.0]], [[28.0, 24.0]]])
    mistakes = {
        "this chooses the best sample separately in every frame; no single video has this score.": 29.0,
        "this is the mean over samples, not the best sample.": 25.5,
        "this is the score of the best frame; compute the mean over frames first.": 30.0,
    }
    expect_close(answer(psnr), 26.0, "which comes first: the mean over frames or the maximum?", mistakes)
    two_clips = np.concatenate([psnr, psnr[::-1] + 1], axis=1)
    hint = "the best sample may differ between clips; compute the maximum before the mean over clips."
    expect_close(answer(two_clips), 26.5, hint)


# Notebook 08


@exercise("values outside [0, 1] are clamped before the conversion, so they do not wrap around.")
def check_08_1(answer: Callable) -> None:
    """Check `to_bytes(x)`: float pixels converted to uint8, after clamping, scaling and rounding."""
    value = answer(torch.tensor([-0.2, 0.0, 0.501, 0.97, 1.0, 1.3]))
    expect(getattr(value, "dtype", None) == torch.uint8, "the result must have dtype torch.uint8.")
    mistakes = {
        "the decimals are cut off; round the values before the conversion.": [
            0, 0, 127, 247, 255, 255,
        ],
    }  # fmt: skip
    hint = "values below 0 or above 1 must give 0 and 255; clamp before the conversion."
    expect_close(as_array(value), [0, 0, 128, 247, 255, 255], hint, mistakes, tolerance=1e-9)


@exercise("the excess is mean / (frames - 1), so it is larger for good predictions.")
def check_08_2(answer: Callable) -> None:
    """Check `overstated(mean, frames)`: the 2023 average of a clip minus its true mean, in dB."""
    for mean in (20.0, 35.0):
        expected = average_2023(torch.full((629,), mean, dtype=torch.double)) - mean
        mistakes = {
            "this is the 2023 average itself; subtract the true mean.": expected + mean,
            "the course divided by another number.": mean / 629,
        }
        hint = f"the value for a mean of {mean:g} dB is wrong. What is the sum of 629 equal PSNRs?"
        expect_close(answer(mean), expected, hint, mistakes, tolerance=1e-6)


# Notebook 09


@exercise("about n r segments start in n steps, so a segment has 1 / r steps on average.")
def check_09_1(answer: Callable) -> None:
    """Check `expected_length(ratio)`: the mean number of steps per segment."""
    for ratio in (0.25, 0.8):
        mask = sample_teacher_forcing(ratio, 1, 40_000, "step", torch.Generator().manual_seed(0))
        sampled = mask.numel() / float(mask.sum())
        mistakes = {"this does not count the step that starts the segment.": (1 - ratio) / ratio}
        hint = f"a simulation with ratio {ratio} gives another value. How many segments start in n steps?"
        expect_close(answer(ratio), sampled, hint, mistakes, tolerance=0.025)


@exercise(
    "both must finish, so the slower one decides; if memory is slower, faster arithmetic does not help."
)
def check_09_2(answer: Callable) -> None:
    """Check `least_seconds(flops, moved, rate, copy)`: the shortest time if arithmetic and copies overlap."""
    for flops, moved in ((8e9, 1e6), (1e6, 3e9)):
        arithmetic, memory = flops / 4e9, moved / 1e9
        mistakes = {
            "operations and copies run at the same time, so the times do not add up.": arithmetic + memory,
            "this is the shorter of the two times, but both must finish.": min(arithmetic, memory),
        }
        limit = "arithmetic" if arithmetic > memory else "memory"
        hint = f"the value is wrong for a layer that is limited by {limit}."
        expect_close(answer(flops, moved, 4e9, 1e9), max(arithmetic, memory), hint, mistakes)
