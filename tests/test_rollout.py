"""Frames through time: the fast paths against the literal loops, and who may see what."""

import inspect

import pytest
import torch

from cvae_lab import CVAE, ModelConfig
from cvae_lab.models.cvae import reparameterise
from cvae_lab.models.modules import StepwiseBatchNorm2d
from cvae_lab.rollout import (
    PART,
    Feedback,
    UnrollOutput,
    evaluating,
    posterior_latents,
    predict,
    prior_latents,
    reconstruct,
    reference_predict,
    reference_unroll,
    rollout,
    unroll,
    zero_latents,
)
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing

SMALL = {
    "handout": {},
    "compact": {"width": 8, "latents": 2},
    "learned prior": {"width": 8, "latents": 2, "prior": "learned"},
}
SIZE = {"handout": (4, 6), "compact": (8, 16), "learned prior": (8, 16)}
BATCH, FRAMES = 2, 6


def build(preset, seed=0):
    """A model whose weights are all random: a fresh `compact` block is its skip alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        name = "handout" if preset == "handout" else "compact"
        model = CVAE(ModelConfig.preset(name, **SMALL[preset]))
        with torch.no_grad():
            for value in model.parameters():
                value += 0.03 * torch.randn_like(value)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


def clips(preset, frames=FRAMES):
    """Frames and labels."""
    return tuple(rand(BATCH, frames, 3, *SIZE[preset], seed=seed) for seed in range(2))


def trained_by(way, model, feed):
    """Outputs, gradients of a loss on all of them, and buffers after one unroll in train mode."""
    model.train()
    preset = "handout" if model.config.name == "handout" else "compact"
    x, p = (part.double() for part in clips(preset))
    shape = (BATCH, FRAMES - 1, *model.latent_shape(*x.shape[-2:]))
    eps = torch.randn(shape, generator=seeded(2), dtype=torch.float64)
    out = way(model, x, p, eps, feed)
    weights = 1 + torch.arange(FRAMES - 1)[:, None, None, None]
    loss = (weights * (out.prediction - x[:, 1:]).square()).mean()
    loss = loss + (weights * (out.mu.square() + out.logvar.sin())).mean()
    if out.prior is not None:
        loss = loss + (weights * (out.prior[0].square() + out.prior[1].sin())).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    out = [*out[:3], *(out.prior or ())]
    return out, gradients, [buffer.clone() for buffer in model.buffers()]


@pytest.fixture
def double(monkeypatch):
    """Models that compute, and stay, in double precision: what is left then is no rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return torch.float64


def close(ours, theirs):
    """Close relative to the largest value of all."""
    scale = max(float(value.detach().abs().max()) for value in theirs)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert float((mine - wanted).detach().abs().max()) <= 1e-9 * scale


def compare(preset, way, other, feed):
    """Outputs, gradients and buffers alike."""
    ours, theirs = (trained_by(each, build(preset).double(), feed) for each in (way, other))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert len(mine) == len(wanted)
        if wanted:
            close(mine, wanted)


def hand_loop(model, x, p, eps, feed):
    """The protocol once more, with the cuts of the gradient written out."""
    previous, predictions, mus, logvars, priors = x[:, 0], [], [], [], []
    anchor = model.anchor(x[:, 0], p[:, 0])
    for t in range(1, x.shape[1]):
        label = model.label_transformation(p[:, t])
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), label)
        now = model.decode(previous, label, reparameterise(mu, logvar, eps[:, t - 1]), anchor)
        for kept, new in zip((predictions, mus, logvars), (now, mu, logvar), strict=True):
            kept.append(new)
        cut = feed.bptt >= 0 and t % (feed.bptt + 1) == 0  # at most bptt links in a row
        if model.Prior_Predictor is not None:
            priors.append(model.Prior_Predictor(model.frame_transformation(previous), label))
        previous = now.detach() if cut else now
    prior = tuple(torch.stack(part, 1) for part in zip(*priors, strict=True)) or None
    return UnrollOutput(*(torch.stack(part, 1) for part in (predictions, mus, logvars)), prior)


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize(
    ("ratio", "bptt", "noisy"),
    [(0.0, -1, True), (0.5, -1, False), (0.5, -1, True), (1.0, -1, True), (0.5, 0, True), (0.5, 2, True)],
)
def test_unroll_is_the_literal_loop(preset, ratio, bptt, noisy, double):
    forced = sample_teacher_forcing(ratio, BATCH, FRAMES - 1, "step", seeded(4))
    noise = 0.1 * torch.randn(BATCH, FRAMES - 1, 3, *SIZE[preset], generator=seeded(5), dtype=double)
    compare(preset, unroll, reference_unroll, Feedback(forced, bptt, noise if noisy else None))


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize("bptt", [-1, 0, 2])
def test_gradients_stop_where_bptt_says(preset, bptt, double):
    compare(
        preset,
        unroll,
        hand_loop,
        Feedback(sample_teacher_forcing(0.0, BATCH, FRAMES - 1, "step", seeded()), bptt),
    )


def test_bptt_changes_gradients_and_nothing_else(double):
    feeds = [
        Feedback(sample_teacher_forcing(0.0, BATCH, FRAMES - 1, "step", seeded()), bptt)
        for bptt in (-1, 0, 2)
    ]
    results = [trained_by(unroll, build("compact").double(), feed) for feed in feeds]
    for out, gradients, _ in results[1:]:
        assert torch.equal(out[0], results[0][0][0])
        assert any(not torch.allclose(a, b) for a, b in zip(gradients, results[0][1], strict=True))


@pytest.mark.parametrize("frames", [2, 5, 70])
@pytest.mark.parametrize("preset", SMALL)
def test_predict_is_the_literal_loop_at_any_length(preset, frames):
    model = build(preset)
    x, p = clips(preset, frames)
    ours, wanted = (way(model, x[:, 0], p, seeded(3)) for way in (predict, reference_predict))
    assert ours.shape == (BATCH, frames - 1, 3, *SIZE[preset])
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", SMALL)
def test_predict_by_parts_is_the_literal_loop(preset, monkeypatch):
    model, (x, p) = build(preset), (part.repeat(3, 1, 1, 1, 1)[:5] for part in clips(preset))
    monkeypatch.setitem(PART, model.config.name, 2)  # 2, 2 and 1
    ours, wanted = (way(model, x[:, 0], p, seeded(3)) for way in (predict, reference_predict))
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_predict_is_never_given_the_future():
    assert list(inspect.signature(predict).parameters) == [
        "model",
        "first",
        "labels",
        "generator",
        "batch_statistics",
    ]
    assert list(inspect.signature(rollout).parameters) == ["model", "first", "labels", "latents"]


@pytest.mark.parametrize("preset", SMALL)
def test_later_labels_leave_earlier_predictions_as_they_were(preset):
    model, (x, p) = build(preset), clips(preset)
    t, altered = 3, p.clone()
    altered[:, t:] = 1 - altered[:, t:]
    before, after = (predict(model, x[:, 0], labels, seeded(3)) for labels in (p, altered))
    assert torch.equal(before[:, : t - 1], after[:, : t - 1])
    assert (before[:, t - 1] != after[:, t - 1]).any()


@pytest.mark.parametrize("preset", SMALL)
def test_reconstruct_sees_a_true_frame_at_its_own_step_and_not_before(preset):
    model, (x, p) = build(preset), clips(preset)
    t, altered = 3, x.clone()
    altered[:, t:] = 1 - altered[:, t:]
    before, after = (reconstruct(model, frames, p, seeded(3)) for frames in (x, altered))
    assert torch.equal(before[:, : t - 1], after[:, : t - 1])
    assert (before[:, t - 1] != after[:, t - 1]).any()


def test_reconstruct_with_the_mean_needs_no_generator():
    model, (x, p) = build("compact"), clips("compact")
    assert torch.equal(reconstruct(model, x, p, mean=True), reconstruct(model, x, p, mean=True))
    assert not torch.equal(reconstruct(model, x, p, mean=True), reconstruct(model, x, p, seeded()))


@pytest.mark.parametrize("preset", SMALL)
def test_the_same_generator_gives_the_same_video(preset):
    model, (x, p) = build(preset), clips(preset)
    before = torch.get_rng_state()
    one, same, other = (predict(model, x[:, 0], p, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(predict(model, x[:, 0], p), predict(model, x[:, 0], p, seeded(0)))  # nothing hidden
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("preset", SMALL)
def test_predictions_lie_within_0_and_1(preset):
    model, (x, p) = build(preset), clips(preset)
    with torch.no_grad():
        for value in model.Generator.parameters():
            value.mul_(1.2)
    frames = predict(model, x[:, 0], p, seeded())
    assert frames.isfinite().all()
    assert frames.min() >= 0
    assert frames.max() <= 1


def test_latents_of_three_kinds():
    model, (x, p) = build("compact").eval(), clips("compact")
    draw, twin = prior_latents(model, x[:, 0], seeded(3)), seeded(3)
    frame, label = model.frame_transformation(x[:, 2]), model.label_transformation(p[:, 2])
    for step in range(3):
        assert torch.equal(
            draw(step, frame, label),
            torch.randn(BATCH, *model.latent_shape(*SIZE["compact"]), generator=twin),
        )
    assert not zero_latents(model, x[:, 0])(0, frame, label).any()
    with torch.no_grad():
        mean = posterior_latents(model, x, p, mean=True)(1, frame, label)
        assert torch.equal(mean, model.posterior(frame, label)[0])


def test_a_learned_prior_draws_around_its_own_mean():
    model, (x, p) = build("learned prior").eval(), clips("learned prior")
    frame, label = model.frame_transformation(x[:, 0]), model.label_transformation(p[:, 1])
    with torch.no_grad():
        mu, logvar = model.prior(frame, label)
        draw = prior_latents(model, x[:, 0], seeded(3))
        drawn = torch.stack([draw(0, frame, label) for _ in range(4000)])
    assert mu.abs().max() > 0.01
    scaled = (drawn - mu) / (logvar / 2).exp()
    assert scaled.mean().abs() < 0.01  # 4,000 draws of some 8 values: standard error 0.005 at most
    assert (scaled.var() - 1).abs() < 0.03


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_gives_every_module_its_own_mode_back(fails):
    model = build("handout").train()
    model.Generator.eval()
    model.Decoder_Fusion[1].eval()
    before = [module.training for module in model.modules()]
    try:
        with evaluating(model, batch_statistics=True):
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == before
    norms = [module for module in model.modules() if isinstance(module, StepwiseBatchNorm2d)]
    assert norms
    assert not any(layer.batch_statistics for layer in norms)


def test_batch_statistics_predict_as_the_course_does():
    """The course predicts in train mode without knowing: one label at a time, statistics of that batch."""
    model, (x, p) = build("handout"), clips("handout")
    ours = predict(model, x[:, 0], p, seeded(3), batch_statistics=True)
    buffers = [buffer.clone() for buffer in model.buffers()]
    assert (ours - predict(model, x[:, 0], p, seeded(3))).abs().max() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    model.train()
    draw, frames = prior_latents(model, x[:, 0], seeded(3)), [x[:, 0]]
    with torch.no_grad():
        for t in range(1, FRAMES):
            label = model.label_transformation(p[:, t])
            frames.append(model.decode(frames[-1], label, draw(t - 1, frames[-1], label)))
    torch.testing.assert_close(ours, torch.stack(frames[1:], 1).clamp(0, 1), atol=1e-4, rtol=0)


def test_compact_has_no_batch_statistics():
    model, (x, p) = build("compact"), clips("compact")
    ours, course = (predict(model, x[:, 0], p, seeded(3), batch_statistics=flag) for flag in (False, True))
    assert torch.equal(ours, course)
