"""The checks of exercises 05 to 09: correct answers pass, and typical mistakes give a hint without the answer."""

import math

import numpy as np
import pytest
import torch

from cvae_lab.teaching import exercises_05_09  # noqa: F401  # registers the checks
from cvae_lab.teaching.check import CHECKS


def last_win(psnr, static):
    ahead = np.flatnonzero(psnr > static)
    return int(ahead[-1]) + 1 if len(ahead) else 0


def slope(curve):
    return 100 * np.polyfit(np.arange(len(curve)), curve, 1)[0]


RIGHT = {
    "check_05_1": lambda start, first, step: first - 1 + math.ceil(start / step - 1e-9),
    "check_05_2": lambda per, ratio, steps: (1 - ratio) ** (steps - 1 if per == "step" else 1),
    "check_05_3": lambda v, g, t: v * sum(g ** (2 * k) for k in range(t)),
    "check_06_1": last_win,
    "check_06_2": lambda rollout, one_step: slope(rollout - one_step),
    "check_07_1": lambda sigma, dims: 2 * sigma**2 / dims,
    "check_07_2": lambda v, dims, n: 2 * np.sqrt(np.sort(v)[-n] * np.sort(v)[-n - 1]) / dims,
    "check_07_3": lambda psnr: psnr.mean(axis=2).max(axis=0).mean(),
    "check_08_1": lambda x: (x.clamp(0, 1) * 255).round().to(torch.uint8),
    "check_08_2": lambda mean: mean / 628,
    "check_09_1": lambda ratio: 1 / ratio,
    "check_09_2": lambda flops, moved, rate, copy: max(flops / rate, moved / copy),
}

WRONG = [
    ("check_05_1", lambda start, first, step: first + math.ceil(start / step), "0 before epoch"),
    ("check_05_1", lambda start, first, step: first, "still"),
    ("check_05_2", lambda per, ratio, steps: (1 - ratio) ** steps, "first step"),
    ("check_05_2", lambda per, ratio, steps: 1 - ratio, "how many draws"),
    ("check_05_3", lambda v, g, t: v * sum(g**k for k in range(t)), "squared"),
    ("check_05_3", lambda v, g, t: v * (1 - g ** (2 * t)) / (1 - g**2), "ZeroDivisionError"),
    ("check_06_1", lambda psnr, static: int(np.flatnonzero(psnr > static)[-1]), "start at 1"),
    ("check_06_1", lambda psnr, static: int(np.argmax(psnr > static)) + 1, "the last frame"),
    ("check_06_2", lambda rollout, one_step: slope(rollout), "not the rollout alone"),
    ("check_06_2", lambda rollout, one_step: slope(rollout - one_step) / 100, "per 100 frames"),
    ("check_07_1", lambda sigma, dims: 2 * sigma / dims, "sigma"),
    ("check_07_1", lambda sigma, dims: sigma**2 / dims, "factor 2"),
    ("check_07_2", lambda v, dims, n: 2 * np.sqrt(v[n - 1] * v[n]) / dims, "sort"),
    ("check_07_3", lambda psnr: psnr.max(axis=0).mean(), "separately in every frame"),
    ("check_07_3", lambda psnr: psnr.mean(axis=(1, 2)).max(), "between clips"),
    ("check_08_1", lambda x: (x * 255).round().to(torch.int16).to(torch.uint8), "clamp"),
    ("check_08_1", lambda x: (x.clamp(0, 1) * 255).to(torch.uint8), "round"),
    ("check_08_1", lambda x: x.clamp(0, 1) * 255, "dtype"),
    ("check_08_2", lambda mean: mean / 629, "divided by another number"),
    ("check_09_1", lambda ratio: (1 - ratio) / ratio, "starts the segment"),
    ("check_09_2", lambda flops, moved, rate, copy: flops / rate + moved / copy, "add up"),
]


def test_every_check_of_notebooks_05_to_09_is_tested_here():
    assert set(RIGHT) == {name for name in CHECKS if name[6:8] in ("05", "06", "07", "08", "09")}


@pytest.mark.parametrize("name", RIGHT)
def test_a_correct_answer_passes_with_a_reason(name):
    outcome = CHECKS[name](RIGHT[name])
    assert outcome.right, outcome.line
    assert outcome.line.startswith("right: ")
    assert len(outcome.line) > 30


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_a_typical_mistake_gets_its_own_hint(name, answer, hint):
    outcome = CHECKS[name](answer)
    assert not outcome.right
    assert outcome.line.startswith("not yet: ")
    assert hint in outcome.line


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("value", [None, float("nan"), "text", [], torch.zeros(2, 3)], ids=repr)
def test_a_useless_value_gets_one_line_and_raises_nothing(name, value):
    outcome = CHECKS[name](lambda *arguments: value)
    assert not outcome.right
    assert "\n" not in outcome.line


@pytest.mark.parametrize("name", RIGHT)
def test_a_function_that_raises_gets_one_line(name):
    outcome = CHECKS[name](lambda *arguments: 1 / 0)
    assert not outcome.right
    assert "ZeroDivisionError" in outcome.line
    assert "\n" not in outcome.line
