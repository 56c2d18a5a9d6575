"""Muon's steps against orthogonal matrices and against AdamW alone."""

import copy
import math

import pytest
import torch
from torch import nn

from cvae_lab import TrainConfig
from cvae_lab.optimiser import Muon, make_optimiser


def network(layout):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 24, 1)
    )
    return layers.to(memory_format=layout)


def backward(model, seed=1):
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kernels_step_is_nearly_orthogonal_and_of_adamws_size(layout):
    model, lr = network(layout), 0.01
    before = copy.deepcopy(model)
    optimiser = Muon(model, lr, weight_decay=0.0)
    backward(model)
    optimiser.step()
    for index in (2, 3):
        step = (model[index].weight - before[index].weight).detach().flatten(1)
        size = 0.2 * math.sqrt(max(step.shape)) * lr  # of every singular value; Newton-Schulz is coarse
        singular = torch.linalg.svdvals(step) / size
        assert singular.max() < 1.35
        assert singular.min() > 0.5
        assert (step * model[index].weight.grad.flatten(1)).sum() < 0  # downhill


def test_the_layout_in_memory_changes_nothing():
    steps = []
    for layout in LAYOUTS:
        model = network(layout)
        optimiser = Muon(model, 0.01, 0.1)
        for seed in range(3):
            optimiser.zero_grad()
            backward(model, seed)
            optimiser.step()
        steps.append([p.detach() for p in model.parameters()])
    for ours, theirs in zip(*steps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=0)  # it orthogonalises in bfloat16


def test_all_else_is_adamws():
    model = network(torch.channels_last)
    twin = copy.deepcopy(model)
    optimiser, adamw = Muon(model, 0.01, 0.1), torch.optim.AdamW(twin.parameters(), 0.01, weight_decay=0.1)
    backward(model)
    backward(twin)
    optimiser.step()
    adamw.step()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        is_kernel = name in ("2.weight", "3.weight")
        assert torch.allclose(ours, theirs, atol=1e-6) != is_kernel


def test_a_kernel_with_no_gradient_stays():
    model = network(torch.channels_last)
    optimiser = Muon(model, 0.01, 0.1)
    before = model[3].weight.detach().clone()
    backward(model)
    model[3].weight.grad = None
    optimiser.step()
    assert torch.equal(model[3].weight, before)
    optimiser.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "muon"])
def test_every_name_learns(name):
    model = network(torch.channels_last)
    optimiser = make_optimiser(model, TrainConfig(optimiser=name, lr=0.01))
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        x = torch.ones(2, 3, 9, 9)
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
