"""Compare steps of Muon with the iteration of the paper and with AdamW; test every optimizer name."""

import copy

import pytest
import torch
from torch import nn

from cvae_lab import TrainConfig
from cvae_lab.training.optimizer import MIN_CHANNELS, Muon, make_optimizer

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def network(layout):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 24, 1)
    )
    return layers.to(memory_format=layout)


def backward(model, seed=1):
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()


def orthogonalised_in_double_precision(matrix, steps=5):
    """Return the result of the Newton-Schulz iteration of Jordan et al. 2024 in double precision."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double() if len(matrix) <= len(matrix.T) else matrix.double().T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if len(matrix) <= len(matrix.T) else x.T


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_step_of_a_kernel_is_the_orthogonalised_gradient(layout):
    """The step is scaled by 0.2 * sqrt(longer side of the matrix) * lr (Liu et al. 2025).

    Nesterov momentum does not change the direction of the first gradient.
    """
    model, lr = network(layout), 0.01
    before = copy.deepcopy(model)
    optimizer = Muon(model, lr, weight_decay=0.0)
    backward(model)
    optimizer.step()
    for index in (2, 3):
        step = (model[index].weight - before[index].weight).detach().flatten(1)
        expected = orthogonalised_in_double_precision(model[index].weight.grad.flatten(1))
        expected *= -0.2 * max(step.shape) ** 0.5 * lr
        # The tolerance is needed because the library iterates in bfloat16. In channels-last order, the matrix has the
        # same columns in another order.
        assert (step.double() - expected).norm() < 0.04 * expected.norm()


def test_the_memory_layout_does_not_change_the_steps():
    steps = []
    for layout in LAYOUTS:
        model = network(layout)
        optimizer = Muon(model, 0.01, 0.1)
        for seed in range(3):
            optimizer.zero_grad()
            backward(model, seed)
            optimizer.step()
        steps.append([p.detach() for p in model.parameters()])
    before = list(network(torch.contiguous_format).parameters())
    for contiguous, channels_last, first in zip(*steps, before, strict=True):
        assert (contiguous - channels_last).norm() < 0.02 * (contiguous - first).norm()


def test_all_other_parameters_take_the_steps_of_adamw():
    model = network(torch.channels_last)
    twin = copy.deepcopy(model)
    optimizer, adamw = Muon(model, 0.01, 0.1), torch.optim.AdamW(twin.parameters(), 0.01, weight_decay=0.1)
    backward(model)
    backward(twin)
    optimizer.step()
    adamw.step()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        is_kernel = name in ("2.weight", "3.weight")  # the first kernel has 3 < MIN_CHANNELS input channels
        assert torch.allclose(ours, theirs, atol=1e-6) != is_kernel
    assert MIN_CHANNELS > 3


def test_a_kernel_without_a_gradient_is_unchanged():
    model = network(torch.channels_last)
    optimizer = Muon(model, 0.01, 0.1)
    before = model[3].weight.detach().clone()
    backward(model)
    model[3].weight.grad = None
    optimizer.step()
    assert torch.equal(model[3].weight, before)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_restored_muon_takes_the_same_steps():
    model = network(torch.channels_last)
    optimizer = Muon(model, 0.01, 0.1)
    backward(model)
    optimizer.step()
    twin = copy.deepcopy(model)
    restored = Muon(twin, 0.01, 0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network_, steps in ((model, optimizer), (twin, restored)):
        steps.zero_grad()
        backward(network_, 2)
        steps.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_restoring_moments_keeps_the_settings_of_the_optimizer():
    """The settings come from the configuration, which is compared with the file when a run is resumed."""
    model = network(torch.channels_last)
    optimizer = Muon(model, 0.01, 0.1)
    backward(model)
    optimizer.step()
    other = Muon(copy.deepcopy(model), 0.5, 0.3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {(group["lr"], group["weight_decay"]) for group in other.param_groups} == {(0.5, 0.3)}


@pytest.mark.parametrize("part", ["muon", "adamw"])
@pytest.mark.parametrize("damage", [lambda v: v[..., :1], lambda v: v * float("nan")])
def test_moments_with_a_wrong_shape_or_nan_raise_an_error(part, damage):
    model = network(torch.channels_last)
    optimizer = Muon(model, 0.01, 0.1)
    backward(model)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    name = {"muon": "momentum_buffer", "adamw": "exp_avg"}[part]
    saved[part]["state"][0][name] = damage(saved[part]["state"][0][name])
    with pytest.raises(ValueError, match=f"{name} of parameter 0"):
        optimizer.load_state_dict(saved)


def test_a_learning_rate_set_in_the_groups_applies_to_both_optimizers():
    model = network(torch.channels_last)
    optimizer = Muon(model, 0.01, 0.0)
    before = copy.deepcopy(model)
    backward(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(map(torch.equal, model.parameters(), before.parameters()))


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "muon"])
def test_every_optimizer_reduces_the_loss(name):
    model = network(torch.channels_last)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, lr=0.01))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(torch.ones(2, 3, 9, 9)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
