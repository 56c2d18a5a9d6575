"""The networks of both presets: parameter counts, names, bounds, and independence of the clips in a batch."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvae_lab import CVAE, ModelConfig
from cvae_lab.models import compact, modules
from cvae_lab.models.cvae import reparameterise
from cvae_lab.models.modules import StepwiseBatchNorm2d
from cvae_lab.objective import kl_standard_normal
from cvae_lab.rollout import Feedback, free_run, reference_unroll, zero_latents

PARTS = {
    "frame_transformation": ("RGB_Encoder", 193_568),
    "label_transformation": ("Label_Encoder", 16_832),
    "Gaussian_Predictor": ("Gaussian_Predictor", 8_289),
    "Decoder_Fusion": ("Decoder_Fusion", 617_768),
    "Generator": ("Generator", 749_163),
}
SMALL = {"handout": {}, "compact": {"width": 8, "latents": 2}}


def build(preset, seed=0, **changes):
    """Return a model with random numbers added to all weights.

    Without them, each block of `compact` would return its input unchanged.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CVAE(ModelConfig.preset(preset, **SMALL[preset] | changes))
        with torch.no_grad():
            for value in model.parameters():
                value += 0.05 * torch.randn_like(value)
    return model


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def listed_state():
    """Yield name and shape of every tensor of the course's network, read from handout_state.txt."""
    for line in (Path(__file__).parent / "handout_state.txt").read_text().splitlines()[1:]:
        layer, channels, size = line.split()
        if channels == "norm":
            yield from ((f"{layer}.{name}", (int(size),)) for name in ("weight", "bias"))
            yield from ((f"{layer}.running_{name}", (int(size),)) for name in ("mean", "var"))
            yield f"{layer}.num_batches_tracked", ()
        else:
            i, o = map(int, channels.split(">"))
            yield f"{layer}.weight", (o, i, *map(int, size.split("x")))
            yield f"{layer}.bias", (o,)


def test_handout_has_the_parameter_counts_of_the_course():
    model = CVAE(ModelConfig.preset("handout"))
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
    assert counts == {part: count for part, (_, count) in PARTS.items()}
    assert sum(p.numel() for p in model.parameters()) == 1_585_620


def test_handout_has_the_tensor_names_and_shapes_of_the_course_in_order():
    found = [(name, tuple(value.shape)) for name, value in build("handout").state_dict().items()]
    assert len(found) == 209
    assert found == list(listed_state())


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, (name, _) in PARTS.items()])
def test_the_modules_of_both_presets_have_the_same_names_and_signatures(part, name):
    ours, theirs = getattr(compact, name), getattr(modules, name)
    assert type(getattr(build("compact"), part)) is ours
    assert type(getattr(build("handout"), part)) is theirs
    mine, course = (list(inspect.signature(cls.forward).parameters.values()) for cls in (ours, theirs))
    assert [(p.kind, p.default) for p in mine] == [(p.kind, p.default) for p in course]
    if len(mine) > 2:
        assert [p.name for p in mine] == [p.name for p in course]


def test_compact_needs_at_most_a_twentieth_of_the_operations_of_handout():
    flops = {}
    for preset in ("handout", "compact"):
        model = CVAE(ModelConfig.preset(preset)).eval()
        x = rand(1, 2, 3, 32, 64)
        eps = torch.zeros(1, 1, *model.latent_shape(32, 64))
        feedback = Feedback(torch.ones(1, 1, dtype=torch.bool))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            reference_unroll(model, x, x, eps, feedback)
        flops[preset] = counter.get_total_flops()
    assert flops["handout"] == pytest.approx(7.25e9, rel=0.01)
    assert flops["compact"] * 20 <= flops["handout"]


@pytest.mark.parametrize("preset", SMALL)
def test_logvar_is_bounded_and_all_values_are_finite_at_the_bounds(preset):
    model = build(preset, logvar_bound=20.0)
    with torch.no_grad():
        list(model.Gaussian_Predictor.modules())[-1].weight.mul_(1e4)
    frame = model.frame_transformation(rand(2, 3, 8, 16))
    mu, logvar = model.posterior(frame, model.label_transformation(rand(2, 3, 8, 16)))
    assert (logvar.min(), logvar.max()) == (-20, 20)
    z = reparameterise(mu, logvar, torch.randn_like(mu))
    for value in (mu, z, kl_standard_normal(mu, logvar)):
        assert value.isfinite().all()
    for bound in (-20.0, 20.0):
        spread = torch.full((1, 2, 3, 4), bound, requires_grad=True)
        kl = kl_standard_normal(torch.zeros(1, 2, 3, 4), spread).sum()
        assert torch.autograd.grad(kl, spread)[0].isfinite().all()


def test_compact_predicts_values_in_0_to_1_for_extreme_inputs():
    model = build("compact")
    with torch.no_grad():
        model.Generator.out[2].weight.mul_(1e4)
    label = model.label_transformation(rand(2, 3, 8, 16, seed=1) * 100)
    first = rand(2, 3, 8, 16) * 100
    frame = model.decode(first, label, torch.full((2, 2, 1, 2), 50.0), model.anchor(first, first))
    assert frame.min() >= 0
    assert frame.max() <= 1
    assert frame.max() - frame.min() > 0.5


@pytest.mark.parametrize("preset", SMALL)
def test_clips_of_a_batch_are_independent_in_eval_mode(preset):
    model = build(preset).eval()
    p = rand(3, 4, 3, 8, 16)
    first = rand(3, 3, 8, 16, seed=1)
    together = free_run(model, first, p, zero_latents(model, first))
    for k in range(3):
        one = slice(k, k + 1)
        alone = free_run(model, first[one], p[one], zero_latents(model, first[one]))
        torch.testing.assert_close(together[one], alone, atol=2e-5, rtol=0)
    others = first.clone()
    others[1:] = 0.5
    assert torch.equal(free_run(model, others, p, zero_latents(model, first))[0], together[0])


def test_the_gated_feed_forward_matches_its_formula():
    """Compare values and gradients with the formula: the activated second half multiplies the first half."""
    block = modules.GatedFeedForward(6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.double, requires_grad=True)

    def formula(x):
        content, gate = block.conv(x).chunk(2, dim=1)
        return block.conv_out(content * F.leaky_relu(gate, 0.1)) + x

    wanted = [x, *block.parameters()]
    ours, theirs = block(x), formula(x)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for one, other in zip(
        *(torch.autograd.grad((y * weights).sum(), wanted) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_stepwise_batch_norm_equals_one_batch_norm_call_per_step(steps):
    ours, theirs = StepwiseBatchNorm2d(4), nn.BatchNorm2d(4)
    weights = {"weight": rand(4), "bias": rand(4, seed=1)}
    ours.load_state_dict(weights, strict=False)
    theirs.load_state_dict(weights, strict=False)
    for seed in range(2):
        x = (
            3 * rand(steps, 3, 4, 5, 6, seed=seed) + torch.arange(steps)[:, None, None, None, None]
        ).requires_grad_()
        y = x.detach().clone().requires_grad_()
        mine, plain = ours(x.flatten(0, 1), steps), torch.cat([theirs(part) for part in y])
        torch.testing.assert_close(mine, plain, atol=2e-5, rtol=1e-5)
        mine.pow(3).sum().backward()
        plain.pow(3).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, atol=2e-4, rtol=1e-4)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(
        ours.eval()(x.flatten(0, 1)), theirs.eval()(x.flatten(0, 1)), atol=1e-5, rtol=1e-5
    )


def test_batch_statistics_in_eval_mode_do_not_change_the_running_statistics():
    layer = StepwiseBatchNorm2d(4).eval()
    layer.batch_statistics = True
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = rand(3, 4, 5, 6)
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(4)(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_group_norm_matches_its_formula_at_every_precision(dtype):
    norm = compact.norm(16, "group").to(torch.float32 if dtype == torch.bfloat16 else dtype)
    x = torch.randn(3, 16, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    groups = x.double().reshape(3, 8, -1)
    wanted = (groups - groups.mean(-1, keepdim=True)) / (
        groups.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    assert norm(x).dtype == dtype
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(norm(x).double(), wanted.reshape(x.shape), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("height", "levels"), [(32, 3), (64, 4), (128, 5)])
def test_larger_frames_get_one_more_level_per_doubling(height, levels):
    model = build("compact", height=height)
    first, labels = rand(1, 3, height, 2 * height), rand(1, 2, 3, height, 2 * height)
    assert model.latent_shape(height, 2 * height) == (2, 4, 8)
    label = model.label_transformation(labels[:, 1])
    frame = model.frame_transformation(first)
    mu, logvar = model.posterior(frame, label)
    assert mu.shape == logvar.shape == (1, 2, 4, 8)
    pyramid = model.Decoder_Fusion(torch.cat([frame, model.anchor(first, labels[:, 0])], 1), label, mu)
    assert [level.shape[-2] for level in pyramid] == [height // 2 ** (1 + k) for k in range(levels)]
    assert model.Generator(pyramid).shape == first.shape


@pytest.mark.parametrize("height", [64, 128])
def test_every_weight_of_a_deeper_network_gets_a_gradient(height):
    model = build("compact", height=height, prior="learned")
    x, p = rand(1, 2, 3, height, 2 * height), rand(1, 2, 3, height, 2 * height, seed=1)
    eps = torch.ones(1, 1, *model.latent_shape(height, 2 * height))
    out = reference_unroll(model, x, p, eps, Feedback(torch.ones(1, 1, dtype=torch.bool)))
    loss = (out.prediction - x[:, 1:]).square().sum() + out.prior[0].square().sum() + out.prior[1].sum()
    loss.backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []


def test_the_network_for_32_rows_has_no_extra_levels():
    """A change of this number means that saved checkpoints no longer load; then raise `checkpoint.FORMAT`."""
    names = build("compact").state_dict().keys()
    assert not any("extra" in name for name in names)
    assert sum(value.numel() for value in CVAE(ModelConfig.preset("compact")).parameters()) == 674_252
