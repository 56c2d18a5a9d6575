"""Muon's steps against orthogonal matrices and against AdamW alone."""

import copy
import math

import pytest
import torch
from torch import nn

from cvae_lab import TrainConfig
from cvae_lab.training.optimizer import JointMuon, Muon, make_optimizer, orthogonalised


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
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


SHAPES = [(8, 8), (8, 30), (30, 8), (8, 21), (12, 12), (12, 40), (20, 12)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def as_written(matrix, steps, eps):
    """The iteration of Jordan et al. 2024, line by line, in double precision."""
    a, b, c = COEFFICIENTS
    x = matrix.double() if len(matrix) <= len(matrix.T) else matrix.double().T
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if len(matrix) <= len(matrix.T) else x.T


@pytest.mark.parametrize("decades", [0.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalised_together_as_each_alone(steps, decades):
    """Square, wide and tall, some of equal sides; singular values alike, or over decades; nought stays nought."""
    draws = torch.Generator().manual_seed(0)
    matrices = [
        torch.randn(shape, generator=draws) * torch.logspace(0, -decades, shape[1]) for shape in SHAPES
    ]
    matrices.append(torch.zeros(8, 30))
    found = orthogonalised(matrices, COEFFICIENTS, steps, 1e-7)
    for ours, matrix in zip(found, matrices, strict=True):
        torch.testing.assert_close(ours.double(), as_written(matrix, steps, 1e-7), atol=2e-3, rtol=0)
    assert found[-1].abs().max() == 0


def test_steps_are_the_librarys():
    """To its bfloat16, over several steps, at learning rates that change, with decay; the library can go on."""
    ours = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate(SHAPES)]
    start, theirs = [m.clone() for m in ours], [m.clone() for m in ours]
    joint = JointMuon(ours, 0.01, weight_decay=0.1)
    library = torch.optim.Muon(theirs, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    draws = torch.Generator().manual_seed(9)
    for step in range(6):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = other.grad = torch.randn(mine.shape, generator=draws)
        for optimiser in (joint, library):
            optimiser.param_groups[0]["lr"] = 0.01 * (step + 1)
            optimiser.step()
        if step == 3:
            library.load_state_dict(copy.deepcopy(joint.state_dict()))
    for mine, other, first in zip(ours, theirs, start, strict=True):
        assert (mine - other).norm() < 0.02 * (other - first).norm()


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
    optimiser = make_optimizer(model, TrainConfig(optimizer=name, lr=0.01))
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        x = torch.ones(2, 3, 9, 9)
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
