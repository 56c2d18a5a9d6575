"""Test the checks of the exercises in notebooks 00 to 04 with correct, wrong and unusable answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from cvae_lab.teaching import exercises
from cvae_lab.teaching.check import CHECKS, close, exercise, expect

W = torch.tensor([[1.0, 0.5], [0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
RESIDUAL, SIGMA = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), 0.7


# -- answers, computed without the package -------------------------------------------------------------------


def gain(model_db, static_db):
    return 10 ** (model_db / 10) / 10 ** (static_db / 10)


def flat(truth, skip=1, axes=(0, 2, 3), pool=True):
    frames = truth[skip:].double().numpy()
    error = (frames - frames.mean(axis=axes, keepdims=True)) ** 2
    return -10 * (np.log10(error.mean()) if pool else np.log10(error.mean(axis=(1, 2, 3))).mean())


def kl_to_prior(mu, logvar):
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)


def kl_to_posterior(mu, logvar):
    precision = torch.eye(2, dtype=W.dtype) + W.T @ W / SIGMA**2
    away = mu - torch.linalg.solve(precision, W.T @ RESIDUAL) / SIGMA**2
    trace = (logvar.exp() * precision.diagonal()).sum(-1)
    return 0.5 * (trace + ((away @ precision) * away).sum(-1) - 2 - logvar.sum(-1) - precision.logdet())


def missing(mu, logvar):
    return kl_to_posterior(mu, logvar) - kl_to_prior(mu, logvar)


def true_kl(mu, logvar):
    return 0.5 * (mu**2 + logvar**2 - 1 - 2 * logvar.abs().log())


def strategy(weights):
    falls = any(after < before for before, after in pairwise(weights))
    return "constant" if len(set(weights)) == 1 else "cyclical" if falls else "monotonic"


def cost(i, o, k, height, width, groups=1):
    return 2 * (i // groups) * k * k * o * height * width


def fold(conv, bn, lost=1.0):
    scale = bn.weight / (bn.running_var + bn.eps) ** 0.5
    return conv.weight * scale.reshape(-1, 1, 1, 1), (lost * conv.bias - bn.running_mean) * scale + bn.bias


def score_with_baseline(values, e, sigma):
    return (values - values.mean()) * e / sigma


def kl_uniform(mu, sigma):
    second_moment = ((mu + sigma) ** 3 - mu**3) / (3 * sigma)
    return -sigma.log() + 0.5 * math.log(2 * math.pi) + 0.5 * second_moment


def loss(prediction, target, mu, logvar, beta):
    frames = prediction.shape[0] * prediction.shape[1]
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / frames
    return ((prediction - target) ** 2).mean() + beta * kl


def batches(teacher_forced):
    rows = ["".join("." if forced else "x" for forced in clip) for clip in teacher_forced.tolist()]
    return 1 + max(len(run) for row in rows for run in row.split("."))


def top(threshold):
    return threshold


def difference(a, b):
    gap = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(gap) / len(gap)
    return mean, math.sqrt(sum((g - mean) ** 2 for g in gap) / (len(gap) - 1) / len(gap))


RIGHT = {
    "check_00_1": gain, "check_00_2": flat, "check_01_1": missing, "check_01_2": true_kl,
    "check_01_3": strategy, "check_02_1": cost, "check_02_2": fold, "check_02_3": score_with_baseline,
    "check_02_4": kl_uniform, "check_03_1": loss, "check_03_2": batches, "check_04_1": top,
    "check_04_2": difference,
}  # fmt: skip
DATA = {"check_01_1": (RESIDUAL, W, SIGMA)}

WRONG = [
    ("check_00_1", lambda m, s: 10 ** ((s - m) / 10), "inverse"),
    ("check_00_1", lambda m, s: 10 ** ((m - s) / 20), "root mean squared"),
    ("check_00_1", lambda m, s: m - s, "not a factor"),
    ("check_00_2", lambda truth: flat(truth, skip=0), "leave out frame 0"),
    ("check_00_2", lambda truth: flat(truth, axes=(0, 1, 2, 3)), "each colour channel"),
    ("check_00_2", lambda truth: flat(truth, pool=False), "average the squared errors"),
    ("check_00_2", lambda truth: -flat(truth), "sign"),
    ("check_01_1", lambda mu, logvar: -missing(mu, logvar), "sign is wrong"),
    ("check_01_1", lambda mu, logvar: -kl_to_prior(mu, logvar), "second KL"),
    ("check_01_1", kl_to_posterior, "second KL"),
    ("check_01_1", lambda mu, logvar: kl_to_posterior(mu, logvar) + kl_to_prior(mu, logvar), "each"),
    ("check_01_2", lambda mu, logvar: true_kl(mu, logvar).sum(-1), "without a sum"),
    ("check_01_2", lambda mu, logvar: 0.5 * (mu**2 + logvar.exp() - 1 - logvar), "intended"),
    ("check_01_2", lambda mu, logvar: 0.5 * (mu**2 + logvar**2 - 1 - logvar), "logarithm"),
    ("check_01_3", lambda weights: "cyclical", "single linear cycle"),
    ("check_01_3", lambda weights: "monotonic", "four linear cycles"),
    ("check_01_3", lambda w: "monotonic" if w == sorted(w) else "cyclical", "never changes"),
    ("check_02_1", lambda *a: cost(*a) // 2, "two operations"),
    ("check_02_1", lambda *a: cost(*a[:5]), "groups"),
    ("check_02_2", lambda conv, bn: fold(conv, bn, lost=0.0), "own bias"),
    ("check_02_2", lambda conv, bn: (conv.weight, conv.bias), "differ"),
    ("check_02_3", lambda values, e, sigma: values * e / sigma, "more than half"),
    ("check_02_3", lambda values, e, sigma: 0 * values, "biased"),
    ("check_02_4", lambda mu, sigma: kl_uniform(mu, sigma) - 0.5 * math.log(2 * math.pi), "constant"),
    ("check_02_4", lambda mu, sigma: kl_uniform(mu, sigma) - 0.5 * mu * sigma, "mixed term"),
    ("check_03_1", lambda p, t, mu, lv, beta: loss(p, t, mu, lv, beta / 8), "summed over the latents"),
    ("check_03_1", lambda p, t, mu, lv, beta: loss(p, t, mu, lv, beta * 6), "averaged over clips"),
    ("check_03_1", lambda p, t, mu, lv, beta: loss(p, t, mu, lv, -beta), "sign"),
    ("check_03_1", lambda p, t, mu, lv, beta: loss(p, t, mu, lv, beta) + 1, "at beta = 0"),
    ("check_03_2", lambda mask: batches(mask) - 1, "one too few"),
    ("check_03_2", lambda mask: mask.shape[1], "wrong for the mask"),
    ("check_04_1", lambda threshold: 2 * threshold, "too large"),
    ("check_04_1", lambda threshold: threshold / 2, "larger"),
    ("check_04_2", lambda a, b: (b.mean() - a.mean(), difference(a, b)[1]), "sign"),
    ("check_04_2", lambda a, b: (difference(a, b)[0], np.std(a - b, ddof=1)), "standard deviation"),
    ("check_04_2", lambda a, b: (difference(a, b)[0], np.std(a - b) / 3**0.5), "ddof"),
    ("check_04_2", lambda a, b: (difference(a, b)[0], ((a.var(ddof=1) + b.var(ddof=1)) / 3) ** 0.5), "independent"),
]  # fmt: skip


# -- every exercise ------------------------------------------------------------------------------------------


def test_every_check_of_notebooks_00_to_04_is_tested_here():
    assert set(RIGHT) == {name for name in CHECKS if "00" <= name[6:8] <= "04"}
    assert set(RIGHT) == {name for name, _, _ in WRONG}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_recognised(name):
    outcome = CHECKS[name](RIGHT[name], *DATA.get(name, ()))
    assert outcome.right, outcome.line
    assert outcome.line.startswith("right: ")


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_a_typical_mistake_gets_its_own_hint(name, answer, hint):
    outcome = CHECKS[name](answer, *DATA.get(name, ()))
    assert not outcome.right
    assert outcome.line.startswith("not yet: ")
    assert hint in outcome.line, outcome.line


def _raises(*args):
    raise ValueError("two\nlines")


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize(
    "answer",
    [
        lambda *args: None, _raises, lambda *args: "text", lambda *args: math.nan, lambda *args: torch.zeros(3, 7),
        lambda *args: [], lambda: 0.0, 3.5, None,
    ],
)  # fmt: skip
def test_a_useless_answer_prints_one_line_and_raises_nothing(name, answer, capsys):
    assert getattr(exercises, name)(answer, *DATA.get(name, ())) is None
    captured = capsys.readouterr()
    assert captured.out.startswith("not yet: ")
    assert captured.out.count("\n") == 1
    assert captured.err == ""


@pytest.mark.parametrize("name", RIGHT)
def test_a_check_prints_its_outcome(name, capsys):
    getattr(exercises, name)(RIGHT[name], *DATA.get(name, ()))
    assert capsys.readouterr().out == CHECKS[name](RIGHT[name], *DATA.get(name, ())).line + "\n"


@pytest.mark.parametrize("name", ["check_01_1", "check_01_2", "check_01_3", "check_02_3"])
def test_checks_work_with_double_precision_as_default(name):
    """Notebook 01 sets float64 as the default."""
    torch.set_default_dtype(torch.float64)
    try:
        assert CHECKS[name](RIGHT[name], *DATA.get(name, ())).right
    finally:
        torch.set_default_dtype(torch.float32)


# -- the tools -----------------------------------------------------------------------------------------------


def test_an_unsolved_exercise_names_the_function_to_write():
    def my_stub(*args):
        return None

    assert "my_stub returns None" in CHECKS["check_00_1"](my_stub).line


def test_an_exception_in_the_answer_is_printed_in_one_line():
    line = CHECKS["check_00_1"](_raises).line
    assert line == "not yet: _raises raised ValueError: two lines"


def test_hints_do_not_contain_the_expected_value():
    lines = [CHECKS[name](answer, *DATA.get(name, ())).line for name, answer, _ in WRONG]
    assert not any(f"{value:.2f}" in " ".join(lines) for value in (0.316, 15.85, 0.133, 0.033))
    assert "51840" not in " ".join(lines)  # operations of the first convolution in exercise 1 of notebook 02


def test_an_answer_cannot_change_the_data_of_its_check():
    def careless(truth):
        value = flat(truth)
        truth.zero_()
        return value

    assert CHECKS["check_00_2"](careless).right


def test_ctrl_c_stops_a_check():
    def interrupted(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CHECKS["check_00_1"](interrupted)


def test_close_treats_one_element_as_a_number_and_compares_shapes():
    assert close(torch.tensor([2.0], requires_grad=True), 2.0)
    assert not close(torch.full((2,), 2.0), 2.0)
    assert not close(math.nan, 2.0)


def test_a_new_exercise_needs_one_function():
    @exercise("two is the answer.")
    def check_new(answer):
        expect(answer() == 2, "too small or too large.")

    try:
        assert CHECKS["check_new"](lambda: 2) == (True, "right: two is the answer.")
        assert CHECKS["check_new"](lambda: 3) == (False, "not yet: too small or too large.")
    finally:
        del CHECKS["check_new"]
