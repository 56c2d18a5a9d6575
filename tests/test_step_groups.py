"""Waves: every step once, after the step it needs, in the layout that convolutions like."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cvae_lab import CVAE, ModelConfig
from cvae_lab.rollout import Feedback, predict, unroll
from cvae_lab.rollout.step_groups import StepGroups, by_step
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing

BATCH, STEPS = 3, 9


@pytest.fixture(params=[0.0, 0.4, 1.0])
def tossed(request):
    return sample_teacher_forcing(request.param, BATCH, STEPS, "step", torch.Generator().manual_seed(0))


def test_every_step_comes_once_and_after_the_step_it_is_fed(tossed):
    order = StepGroups.of(tossed, torch.device("cpu"))
    wave_of = {}
    for number, (rows, at, before) in enumerate(zip(order.clips, order.steps, order.previous, strict=True)):
        for row, step, place in zip(rows.tolist(), at.tolist(), before.tolist(), strict=True):
            assert (row, step) not in wave_of
            wave_of[row, step] = number
            if tossed[row, step]:
                assert number == 0
            else:  # fed the prediction of the step before, which `before` finds in the wave before
                earlier = order.clips[number - 1][place], order.steps[number - 1][place]
                assert earlier == (row, step - 1)
    assert len(wave_of) == BATCH * STEPS


def test_arranged_is_by_wave_and_restored_again(tossed):
    order = StepGroups.of(tossed, torch.device("cpu"))
    values = torch.arange(1.0 * BATCH * STEPS).reshape(BATCH, STEPS)
    arranged = order.in_group_order(by_step(values))
    joined = zip(torch.cat(list(order.clips)), torch.cat(list(order.steps)), strict=True)
    assert arranged.tolist() == [float(values[row, step]) for row, step in joined]
    assert torch.equal(order.in_group_order(by_step(values), 5), arranged[:5])
    assert torch.equal(order.in_step_order(arranged), by_step(values))
    assert order.orders_agree == (tossed[:, 1:].all() or not tossed[:, 1:].any())


class Layouts(TorchDispatchMode):
    """Shapes of what convolutions are given in another layout than channels-last."""

    def __init__(self):
        super().__init__()
        self.seen, self.others = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen += 1
            if not args[0].is_contiguous(memory_format=torch.channels_last):
                self.others.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["handout", "compact"])
def test_features_stay_channels_last(preset, tossed):
    """A convolution would turn them round, forwards and again backwards; frames and labels are small."""
    model = CVAE(ModelConfig.preset(preset)).to(memory_format=torch.channels_last)
    x, p = torch.rand(2, BATCH, STEPS + 1, 3, 16, 16)
    eps = torch.randn(BATCH, STEPS, *model.latent_shape(16, 16))
    for path in (lambda: unroll(model, x, p, eps, Feedback(tossed)), lambda: predict(model, x[:, 0], p)):
        with Layouts() as layouts, torch.no_grad():
            path()
        assert layouts.seen > 20
        assert all(
            shape[1] in (3, 12) for shape in layouts.others
        )  # a picture, or one folded to half its size
