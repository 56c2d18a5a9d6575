"""Checks of the exercises in notebooks 00 to 04; `exercises_05_09` contains the checks of notebooks 05 to 09.

`check_00_1` is the check of exercise 1 in notebook 00. Each docstring names the function that the student writes.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from cvae_lab.objective import kl_cost
from cvae_lab.rollout.step_groups import steps_by_distance
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.schedules import beta_at
from cvae_lab.teaching.check import as_array, exercise, expect, expect_close

# Notebook 00


@exercise("PSNR is -10 log10 of the error, so a difference in dB is a ratio of errors.")
def check_00_1(answer: Callable) -> None:
    """Check `gain(model_db, static_db)`: squared error of the static baseline divided by that of the model."""
    for model, static in ((30.0, 35.0), (32.0, 20.0)):
        ratio = 10 ** ((model - static) / 10)
        mistakes = {
            "this is the inverse of the factor. The factor must be below 1 if the model is worse.": 1 / ratio,
            "this is a ratio of root mean squared errors. Which error does the exercise ask for?": ratio**0.5,
            "this is a difference in dB, not a factor.": model - static,
        }
        expect_close(
            answer(model, static),
            ratio,
            "a difference of 10 dB is a factor of 10 in squared error.",
            mistakes,
        )


@exercise("the mean colour minimises the squared error; the remaining error is the variance of each channel.")
def check_00_2(answer: Callable) -> None:
    """Check `flat(truth)`: PSNR in dB of the best single colour, from the mean error over frames 1, 2, ..."""
    brightness = torch.linspace(0.1, 0.9, 6)[:, None, None, None]
    channels = torch.tensor([0.9, 0.5, 0.2])[:, None, None]
    truth = brightness * channels * torch.rand(6, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    parts = {
        "skip": "leave out frame 0, because it is known.",
        "colour": "compute one mean for each colour channel; one mean over all channels gives grey.",
        "pool": "average the squared errors over all frames first; then take one logarithm.",
    }
    mistakes = {}
    for wrong in ({"skip"}, {"colour"}, {"pool"}, {"skip", "colour"}, {"skip", "pool"}, {"colour", "pool"}):
        hint = " Also ".join(parts[name] for name in parts if name in wrong)
        mistakes[hint] = _flat_psnr(truth, **{name: name not in wrong for name in parts})
    expected = _flat_psnr(truth)
    mistakes["the sign is wrong: PSNR is minus 10 log10 of the error."] = -expected
    expect_close(answer(truth), expected, "which colour minimises the squared error of all pixels?", mistakes)


def _flat_psnr(truth: Tensor, skip: bool = True, colour: bool = True, pool: bool = True) -> float:
    """Return the PSNR of a single colour. Each argument set to False introduces one typical mistake."""
    frames = truth[1:] if skip else truth
    flat = frames.mean(dim=(0, 2, 3), keepdim=True) if colour else frames.mean()
    error = (frames - flat).square().mean(dim=(1, 2, 3))
    return float(-10 * (error.mean().log10() if pool else error.log10().mean()))


# Notebook 01


@exercise(
    "log p = E_q[log p(x | z, c)] - KL to the prior + gap. Without the two KLs, (B) trains an autoencoder."
)
def check_01_1(answer: Callable, residual: Tensor, weight: Tensor, sigma: float) -> None:
    """Check `missing(mu, logvar)`: the term missing from line (B), for q = N(mu, diag(exp(logvar))).

    Args:
        residual: x - m_c, a frame minus the frame that the condition predicts.
        weight: the decoder's matrix W in x = m_c + W z + sigma * eps.
        sigma: the standard deviation of the decoder's noise.
    """
    mu, logvar = 2 * torch.randn(2, 5, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(
        weight.dtype
    )
    error = (residual - mu @ weight.T).square().sum(-1) + logvar.exp() @ weight.square().sum(0)
    likelihood = Normal(0.0, sigma).log_prob(torch.zeros_like(residual)).sum() - error / (2 * sigma**2)
    covariance = weight @ weight.T + sigma**2 * torch.eye(len(weight), dtype=weight.dtype)
    expected = MultivariateNormal(torch.zeros_like(residual), covariance).log_prob(residual) - likelihood
    to_prior = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1)
    mistakes = {
        "the absolute value is right, but the sign is wrong.": -expected,
        "a second KL is missing; put line (4) into line (7).": -to_prior,
        "a second KL is missing. Line (7) contains the ELBO, and line (4) splits it.": expected + to_prior,
        "both KLs are present; check the sign of each.": expected + 2 * to_prior,
    }
    expect_close(answer(mu, logvar), expected, "put line (4) into line (7) and solve for log p.", mistakes)


@exercise("the line samples with standard deviation |logvar|, so there is no noise at logvar = 0.")
def check_01_2(answer: Callable) -> None:
    """Check `true_kl(mu, logvar)`: KL to N(0, 1) of z = mu + logvar * eps, one value per latent."""
    mu, logvar = 2 * torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    value, expected = answer(mu, logvar), kl_divergence(Normal(mu, logvar.abs()), Normal(0.0, 1.0))
    expect(as_array(value).shape == (50, 2), "return one value per latent, without a sum.")
    mistakes = {
        "this is (10) for the intended distribution. Which standard deviation does the line of the report use?": (
            0.5 * (mu.square() + logvar.exp() - 1 - logvar)
        ),
        "(10) needs the variance in both places, also under the logarithm.": (
            0.5 * (mu.square() + logvar.square() - 1 - logvar)
        ),
    }
    expect_close(value, expected, "put the variance of this line into (10).", mistakes, tolerance=1e-4)


@exercise("a cyclical weight falls at the start of each new cycle; with one cycle it is monotonic.")
def check_01_3(answer: Callable) -> None:
    """Check `strategy(weights)`: "constant", "cyclical" or "monotonic", for a list of KL weights."""
    steps = [Fraction(k, 100) for k in range(100)]
    for shape in ("linear", "sigmoid", "cosine"):
        four, one = ([beta_at(u, "cyclical", shape=shape, n_cycles=n) for u in steps] for n in (4, 1))
        expect(
            answer(four) == "cyclical",
            f"a weight with four {shape} cycles was not recognised. Does this weight ever fall?",
        )
        expect(answer(one) == "monotonic", f"the weight of a single {shape} cycle rises and never falls.")
    expect(answer([0.3] * 100) == "constant", "a weight that never changes has a name of its own.")


# Notebook 02


@exercise("each output value sums over k * k pixels of the i / groups input channels of its group.")
def check_02_1(answer: Callable) -> None:
    """Check `cost(i, o, k, height, width, groups)`: number of operations of a convolution without bias."""
    for i, o, k, groups in ((3, 16, 3, 1), (8, 24, 1, 1), (16, 16, 3, 16), (8, 24, 1, 4)):
        layer = nn.Conv2d(i, o, k, padding=k // 2, groups=groups)
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, i, 6, 10))
        counted = counter.get_total_flops()
        mistakes = {
            "a multiplication and an addition are two operations.": counted / 2,
            "with groups, an output channel depends on fewer input channels.": counted * groups,
        }
        hint = f"wrong number for {i} to {o} channels, a {k} x {k} kernel, {groups} groups and 6 x 10 pixels."
        expect_close(answer(i, o, k, 6, 10, groups), counted, hint, mistakes, tolerance=1e-9)


@exercise("in eval mode batch norm is linear in each channel, so one convolution can do both.")
def check_02_2(answer: Callable) -> None:
    """Check `fold(conv, bn)`: weight and bias of one convolution that is equivalent to both layers."""
    generator = torch.Generator().manual_seed(0)
    conv, bn = nn.Conv2d(3, 16, 7), nn.BatchNorm2d(16).eval()
    for values, (low, high) in (
        (conv.weight, (-0.1, 0.1)), (conv.bias, (-1, 1)), (bn.bias, (-1, 1)), (bn.weight, (0.5, 2)),
        (bn.running_mean, (-1, 1)), (bn.running_var, (0.1, 2)),
    ):  # fmt: skip
        nn.init.uniform_(values, low, high, generator)
    x = torch.rand(2, 3, 12, 12, generator=generator)
    with torch.no_grad():
        folded = answer(conv, bn)
        expect(len(folded) == 2, "return two tensors: weight and bias.")
        expect(
            folded[0].shape == conv.weight.shape,
            "the weight must have the shape of the convolution's weight.",
        )
        got, right = nn.functional.conv2d(x, *folded), bn(conv(x))
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        lost = right - (scale * conv.bias)[:, None, None]
    mistake = {"the convolution's own bias is missing; batch norm also scales this bias.": lost}
    expect_close(got, right, "the outputs differ; which scale does each output channel get?", mistake, 1e-4)


@exercise(
    "the score has mean zero, so a constant times it adds no bias, and the mean of f removes most noise."
)
def check_02_3(answer: Callable) -> None:
    """Check `score_with_baseline(values, e, sigma)`: unbiased estimates with less than half the standard deviation."""
    mu, sigma, draws = 0.5, float(np.exp(-0.5)), 20_000
    eps = torch.randn(draws, 64, generator=torch.Generator().manual_seed(5))
    f = (mu + sigma * eps - 1.0).square().sum(dim=1)
    got, plain = as_array(answer(f, eps[:, 0], sigma)), as_array(f * eps[:, 0] / sigma)
    expect(got.shape == (draws,), "return one estimate per draw.")
    exact = 2 * (mu - 1.0)
    expect(
        abs(got.mean() - exact) < 5 * got.std() / draws**0.5,
        "the estimate is biased: its mean is not the gradient.",
    )
    expect(
        got.std() < plain.std() / 2, "the standard deviation is more than half of that without a baseline."
    )


@exercise("log q is constant on the interval; the rest needs only the second moment of z.")
def check_02_4(answer: Callable) -> None:
    """Check `kl_uniform(mu, sigma)`: KL to N(0, 1) of z = mu + sigma * u, where u is uniform on [0, 1]."""
    mu, sigma = torch.tensor([0.0, -0.5, 1.0]), torch.tensor([1.0, 2.0, 0.1])
    z = mu + sigma * ((torch.arange(10_000) + 0.5) / 10_000)[:, None]
    numeric = (-sigma.log() - Normal(0.0, 1.0).log_prob(z)).mean(0)
    mistakes = {
        "the constant log(2 pi) / 2 of the normal density is missing.": numeric - 0.5 * np.log(2 * np.pi),
        "u is uniform on [0, 1], so its mean is not zero; the second moment of z has a mixed term.": (
            numeric - 0.5 * mu * sigma
        ),
    }
    hint = "a numerical integration gives another value. What is the mean of z squared?"
    expect_close(answer(mu, sigma), numeric, hint, mistakes, tolerance=1e-3)


# Notebook 03


@exercise(
    "the error is a mean over all values, and the KL is a sum over latents, averaged over clips and frames."
)
def check_03_1(answer: Callable) -> None:
    """Check `loss(prediction, target, mu, logvar, beta)`: the assignment's objective."""
    generator = torch.Generator().manual_seed(1)
    prediction, target = torch.rand(2, 2, 3, 3, 8, 8, generator=generator)
    mu, logvar = torch.randn(2, 2, 3, 4, 1, 2, generator=generator)
    mse, kl = nn.functional.mse_loss(prediction, target), kl_cost(mu, logvar)
    error_is = "at beta = 0 the loss must be the squared error, averaged over all values."
    expect_close(answer(prediction, target, mu, logvar, 0.0), mse, error_is)
    mistakes = {
        "the KL must be summed over the latents, not averaged.": mse + 0.5 * kl / 8,
        "the KL must be averaged over clips and frames, not summed.": mse + 0.5 * kl * 6,
        "the KL has the wrong sign.": mse - 0.5 * kl,
    }
    hint = "the squared error is right; compare your KL with line (10) of notebook 01."
    expect_close(answer(prediction, target, mu, logvar, 0.5), mse + 0.5 * kl, hint, mistakes, 1e-4)


@exercise(
    "a step needs all predictions since the last true frame, so the longest such sequence sets the number."
)
def check_03_2(answer: Callable) -> None:
    """Check `batches(teacher_forced)`: number of batches that `unroll` needs for a mask (clips, steps)."""
    generator = torch.Generator().manual_seed(2)
    for ratio in (1.0, 0.0, 0.2, 0.5):
        mask = sample_teacher_forcing(ratio, 3, 9, "step", generator)
        needed, value = len(list(steps_by_distance(mask))), answer(mask)
        expect(value != needed - 1, "one too few: the steps with a true previous frame also form a batch.")
        expect(value == needed, f"the number is wrong for the mask {mask.int().tolist()}.")


# Notebook 04


@exercise("if beta_max equals the threshold, beta is below it during the rise, which is half of each cycle.")
def check_04_1(answer: Callable) -> None:
    """Check `top(threshold)`: largest beta_max for which beta is below the threshold for half of the training."""

    def fraction_below(threshold: float, beta_max: float) -> float:
        betas = [beta_at(Fraction(k, 2000), "cyclical", beta_max=beta_max) for k in range(2000)]
        return float(np.mean(np.array(betas) < threshold))

    for threshold in (4e-3, 1e-5):
        value = float(answer(threshold))
        too_large = "too large: beta reaches the threshold before the middle of each cycle."
        expect(fraction_below(threshold, value) >= 0.5 - 2e-3, too_large)
        expect(fraction_below(threshold, 1.01 * value) < 0.5 - 2e-3, "too small: beta_max can be larger.")


@exercise(
    "the effect of a seed on both strategies cancels in the "
    "difference, so the spread of the differences is smaller."
)
def check_04_2(answer: Callable) -> None:
    """Check `difference(a, b)`: mean difference over seeds and the standard error of this mean."""
    a, b = np.array([28.6, 28.9, 28.1]), np.array([28.4, 28.8, 28.0])
    gap, value = a - b, answer(a, b)
    expect(
        np.size(value) == 2, "return two numbers: the mean difference and the standard error of this mean."
    )
    mean, error = value
    expect_close(
        mean, gap.mean(), "the mean difference is wrong.", {"the sign is wrong; compute a - b.": -gap.mean()}
    )
    right = gap.std(ddof=1) / len(gap) ** 0.5
    mistakes = {
        "this is the standard deviation; the standard error of a mean is smaller.": gap.std(ddof=1),
        "use ddof=1: the mean is estimated from the same three numbers.": gap.std() / len(gap) ** 0.5,
        "this treats the two lists as independent; subtract seed by seed first.": (
            ((a.var(ddof=1) + b.var(ddof=1)) / len(a)) ** 0.5
        ),
    }
    expect_close(error, right, "the standard error is wrong; subtract seed by seed first.", mistakes)
