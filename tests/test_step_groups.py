"""Step groups: every step occurs once, after the step that it depends on, and features are channels-last."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cvae_lab import CVAE, ModelConfig
from cvae_lab.rollout import Feedback, predict, unroll
from cvae_lab.rollout.step_groups import StepGroups, by_step
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing

BATCH, STEPS = 3, 9


@pytest.fixture(params=[0.0, 0.4, 1.0])
def teacher_forced(request):
    return sample_teacher_forcing(request.param, BATCH, STEPS, "step", torch.Generator().manual_seed(0))


def test_every_step_occurs_once_and_after_the_step_it_depends_on(teacher_forced):
    groups = StepGroups.of(teacher_forced, torch.device("cpu"))
    group_of = {}
    for number, (clips, steps, before) in enumerate(
        zip(groups.clips, groups.steps, groups.previous, strict=True)
    ):
        for row, step, place in zip(clips.tolist(), steps.tolist(), before.tolist(), strict=True):
            assert (row, step) not in group_of
            group_of[row, step] = number
            if teacher_forced[row, step]:
                assert number == 0
            else:  # this step gets the prediction of the previous step, which is in the previous group
                earlier = groups.clips[number - 1][place], groups.steps[number - 1][place]
                assert earlier == (row, step - 1)
    assert len(group_of) == BATCH * STEPS


def test_values_are_put_in_group_order_and_back(teacher_forced):
    groups = StepGroups.of(teacher_forced, torch.device("cpu"))
    values = torch.arange(1.0 * BATCH * STEPS).reshape(BATCH, STEPS)
    grouped = groups.in_group_order(by_step(values))
    joined = zip(torch.cat(list(groups.clips)), torch.cat(list(groups.steps)), strict=True)
    assert grouped.tolist() == [float(values[row, step]) for row, step in joined]
    assert torch.equal(groups.in_group_order(by_step(values), 5), grouped[:5])
    assert torch.equal(groups.in_step_order(grouped), by_step(values))
    assert groups.orders_agree == (teacher_forced[:, 1:].all() or not teacher_forced[:, 1:].any())


class Layouts(TorchDispatchMode):
    """Record the shapes of convolution inputs that are not channels-last."""

    def __init__(self):
        super().__init__()
        self.seen, self.others = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packed = torch.ops.mkldnn._convolution_pointwise.default  # convolutions of the folded decoder
        if func in (torch.ops.aten.convolution.default, packed):
            self.seen += 1
            if not args[0].is_contiguous(memory_format=torch.channels_last):
                self.others.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["handout", "compact"])
def test_features_stay_channels_last(preset, teacher_forced):
    """Every convolution converts features with another layout. Only frames and labels may have another layout."""
    model = CVAE(ModelConfig.preset(preset)).to(memory_format=torch.channels_last)
    x, p = torch.rand(2, BATCH, STEPS + 1, 3, 16, 16)
    eps = torch.randn(BATCH, STEPS, *model.latent_shape(16, 16))
    for path in (
        lambda: unroll(model, x, p, eps, Feedback(teacher_forced)),
        lambda: predict(model, x[:, 0], p),
    ):
        with Layouts() as layouts, torch.no_grad():
            path()
        assert layouts.seen > 20
        assert all(shape[1] in (3, 12) for shape in layouts.others)  # a frame, or its cells of 2 x 2 pixels
