"""Compare the batched unroll and the fast prediction with the reference loops. Check which inputs affect a frame."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvae_lab import CVAE, ModelConfig
from cvae_lab.data.pixels import to_float, to_uint8
from cvae_lab.models.cvae import reparameterise
from cvae_lab.models.modules import StepwiseBatchNorm2d
from cvae_lab.rollout import (
    Feedback,
    UnrollOutput,
    clip_noise,
    clip_streams,
    evaluating,
    posterior_latents,
    predict,
    predict_in_chunks,
    predict_with_posterior,
    prior_latents,
    prior_mean_latents,
    reference_predict,
    reference_unroll,
    unroll,
    zero_latents,
)
from cvae_lab.rollout.predict import LABELS_PER_CALL, STREAMS_PER_CALL, folds
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing

SMALL = {
    "handout": {},
    "compact": {"width": 8, "latents": 2},
    "learned prior": {"width": 8, "latents": 2, "prior": "learned"},
}
SIZE = {"handout": (4, 6), "compact": (8, 16), "learned prior": (8, 16)}
BATCH, FRAMES = 2, 6


def build(preset, seed=0, **options):
    """Return a model with random numbers added to all weights.

    Without them, each block of `compact` would return its input unchanged.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        name = "handout" if preset == "handout" else "compact"
        model = CVAE(ModelConfig.preset(name, **SMALL[preset] | options))
        with torch.no_grad():
            for value in model.parameters():
                value += 0.03 * torch.randn_like(value)
    return model


def predicted_by_both(model, x, p):
    """Return the predictions of `predict` and of `reference_predict`, with equal seeds, in eval mode."""
    model.eval()
    return (way(model, x[:, 0], p, seeded(3)) for way in (predict, reference_predict))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


def clips(preset, frames=FRAMES):
    """Return random frames and labels."""
    return tuple(rand(BATCH, frames, 3, *SIZE[preset], seed=seed) for seed in range(2))


def trained_by(way, model, feed):
    """Return outputs, gradients of a loss on all outputs, and buffers after one unroll in train mode."""
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
    """Make models compute in double precision, so that differences are not rounding errors."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return torch.float64


def close(ours, theirs):
    """Compare with a tolerance relative to the largest absolute value."""
    scale = max(float(value.detach().abs().max()) for value in theirs)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert float((mine - wanted).detach().abs().max()) <= 1e-9 * scale


def compare(preset, way, other, feed):
    """Compare outputs, gradients and buffers of two ways to unroll."""
    ours, theirs = (trained_by(each, build(preset).double(), feed) for each in (way, other))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert len(mine) == len(wanted)
        if wanted:
            close(mine, wanted)


def hand_loop(model, x, p, eps, feed):
    """Independent implementation of the training protocol, with explicit truncation of gradients."""
    previous, predictions, mus, logvars, priors = x[:, 0], [], [], [], []
    anchor = model.anchor(x[:, 0], p[:, 0])
    for t in range(1, x.shape[1]):
        label = model.label_transformation(p[:, t])
        mu, logvar = model.posterior(model.frame_transformation(x[:, t]), label)
        now = model.decode(previous, label, reparameterise(mu, logvar, eps[:, t - 1]), anchor)
        for kept, new in zip((predictions, mus, logvars), (now, mu, logvar), strict=True):
            kept.append(new)
        cut = feed.bptt >= 0 and t % (feed.bptt + 1) == 0  # gradients pass through at most bptt frames
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
def test_unroll_equals_the_reference_loop(preset, ratio, bptt, noisy, double):
    forced = sample_teacher_forcing(ratio, BATCH, FRAMES - 1, "step", seeded(4))
    noise = 0.1 * torch.randn(BATCH, FRAMES - 1, 3, *SIZE[preset], generator=seeded(5), dtype=double)
    compare(preset, unroll, reference_unroll, Feedback(forced, bptt, noise if noisy else None))


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.parametrize("bptt", [-1, 0, 2])
def test_gradients_pass_through_bptt_predicted_frames(preset, bptt, double):
    compare(
        preset,
        unroll,
        hand_loop,
        Feedback(sample_teacher_forcing(0.0, BATCH, FRAMES - 1, "step", seeded()), bptt),
    )


def test_bptt_changes_gradients_only(double):
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
def test_predict_equals_the_reference_loop_at_any_length(preset, frames):
    model = build(preset)
    x, p = clips(preset, frames)
    ours, wanted = predicted_by_both(model, x, p)
    assert ours.shape == (BATCH, frames - 1, 3, *SIZE[preset])
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", SMALL)
def test_predict_in_several_smaller_batches_equals_the_reference_loop(preset, monkeypatch):
    model, (x, p) = build(preset), (part.repeat(3, 1, 1, 1, 1)[:5] for part in clips(preset))
    monkeypatch.setitem(STREAMS_PER_CALL, model.config.name, 2)  # 2, 2 and 1
    ours, wanted = predicted_by_both(model, x, p)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", SMALL)
def test_a_prediction_depends_on_its_inputs_only(preset, monkeypatch):
    """A prediction does not use values of an earlier call, such as its true frames."""
    model, (x, p) = build(preset), clips(preset)
    before = predict(model, x[:, 0].clone(), p, seeded(3))
    predict_with_posterior(model, x, p, seeded(4))
    monkeypatch.setattr(model, "posterior", lambda *_: pytest.fail("a prediction used the posterior"))
    assert torch.equal(predict(model, x[:, 0], p, seeded(3)), before)
    assert not torch.equal(predict(model, 1 - x[:, 0], p, seeded(3)), before)


@pytest.mark.parametrize("preset", SMALL)
def test_later_labels_do_not_change_earlier_predictions(preset):
    model, (x, p) = build(preset), clips(preset)
    t, altered = 3, p.clone()
    altered[:, t:] = 1 - altered[:, t:]
    before, after = (predict(model, x[:, 0], labels, seeded(3)) for labels in (p, altered))
    assert torch.equal(before[:, : t - 1], after[:, : t - 1])
    assert (before[:, t - 1] != after[:, t - 1]).any()


@pytest.mark.parametrize("preset", SMALL)
def test_predict_with_posterior_uses_a_true_frame_only_from_its_own_step_on(preset):
    model, (x, p) = build(preset), clips(preset)
    t, altered = 3, x.clone()
    altered[:, t:] = 1 - altered[:, t:]
    before, after = (predict_with_posterior(model, frames, p, seeded(3)) for frames in (x, altered))
    assert torch.equal(before[:, : t - 1], after[:, : t - 1])
    assert (before[:, t - 1] != after[:, t - 1]).any()


def test_predict_with_the_posterior_mean_draws_no_noise():
    model, (x, p) = build("compact"), clips("compact")
    assert torch.equal(
        predict_with_posterior(model, x, p, mean=True), predict_with_posterior(model, x, p, mean=True)
    )
    assert not torch.equal(
        predict_with_posterior(model, x, p, mean=True), predict_with_posterior(model, x, p, seeded())
    )


@pytest.mark.parametrize("preset", SMALL)
def test_equal_seeds_give_equal_videos_and_different_seeds_different_ones(preset):
    model, (x, p) = build(preset), clips(preset)
    before = torch.get_rng_state()
    one, same, other = (predict(model, x[:, 0], p, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(predict(model, x[:, 0], p), predict(model, x[:, 0], p, seeded(0)))  # the default seed
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


def test_latents_of_prior_zero_and_posterior_mean():
    model, (x, p) = build("compact").eval(), clips("compact")
    draw, noise = prior_latents(model, x[:, 0], seeded(3)), clip_noise(model, x[:, 0], seeded(3))
    frame, label = model.frame_transformation(x[:, 2]), model.label_transformation(p[:, 2])
    for step in range(3):
        assert torch.equal(draw(step, frame, label), next(noise))
    assert not zero_latents(model, x[:, 0])(0, frame, label).any()
    assert not prior_mean_latents(model, x[:, 0])(0, frame, label).any()
    with torch.no_grad():
        mean = posterior_latents(model, x, p, mean=True)(1, frame, label)
        assert torch.equal(mean, model.posterior(frame, label)[0])


@pytest.mark.parametrize("latents", [1, 2])
def test_the_noise_of_a_clip_does_not_depend_on_the_other_clips(latents):
    """This must hold for every size n of z. torch.randn(6, n) equals six calls of size n only if 16 divides n."""
    model = CVAE(ModelConfig.preset("compact", width=8, latents=latents))
    first = torch.zeros(6, 3, 8, 16)
    together = [next(noise) for noise in [clip_noise(model, first, seeded(3))] for _ in range(40)]
    for count in (1, 2, 5):
        noise = clip_noise(model, first[:count], seeded(3))
        assert all(torch.equal(next(noise), wanted[:count]) for wanted in together)
    values = torch.stack(together).flatten(2)  # (step, clip, value)
    assert values.unique().numel() == values.numel()
    assert values.mean().abs() < 0.2
    assert 0.8 < values.std() < 1.2


@pytest.mark.parametrize("preset", SMALL)
def test_the_prediction_of_a_clip_is_the_same_alone_and_in_a_batch(preset):
    model = build(preset)
    x, p = (part.repeat(2, 1, 1, 1, 1) for part in clips(preset, 20))
    x = x + 0.1 * rand(*x.shape, seed=9)
    together = predict(model, x[:, 0], p, clip_streams(seeded(3), 4))
    for k, stream in enumerate(clip_streams(seeded(3), 4)):
        alone = predict(model, x[k : k + 1, 0], p[k : k + 1], [stream])
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-4, rtol=0)


def test_a_list_of_generators_must_have_one_per_clip():
    model, (x, p) = build("compact"), clips("compact")
    with pytest.raises(ValueError, match="3 generators for 2 clips"):
        predict(model, x[:, 0], p, clip_streams(seeded(), 3))


def test_one_generator_gives_a_new_sample_at_every_call():
    model, (x, p), generator = build("compact"), clips("compact"), seeded(3)
    samples = [predict(model, x[:, 0], p, generator) for _ in range(2)]
    assert not torch.equal(*samples)


FOLDED = [{}, {"anchor": False}, {"norm": "none"}, {"output": "linear"}, {"invert_labels": False}]
FOLDED += [{"height": 64}, {"height": 128}]


@pytest.mark.parametrize("options", FOLDED)
def test_the_folded_decoder_equals_the_reference_loop(options):
    """This holds for every option of `compact`, and for more labels than one chunk."""
    model = build("compact", **options)
    height = model.config.height
    first = rand(2, 3, height, 2 * height)
    p = rand(2, LABELS_PER_CALL + 6, 3, height, 2 * height, seed=1)
    assert folds(model, first.device)
    ours, wanted = predicted_by_both(model, first[:, None], p)
    assert wanted.std() > 0.02
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_the_folded_decoder_at_bfloat16_stays_close_to_autocast():
    model, (x, p) = build("compact").eval(), clips("compact", 40)
    exact = reference_predict(model, x[:, 0], p, seeded(3))
    with torch.autocast("cpu", torch.bfloat16):
        ours, autocast = predicted_by_both(model, x, p)
    assert ours.dtype == torch.float32
    error, usual = (float((y - exact).square().mean().sqrt()) for y in (ours, autocast))
    assert 0 < error < 2 * usual


@pytest.mark.parametrize("preset", SMALL)
def test_chunks_and_uint8_labels_give_the_same_frames(preset):
    model, (x, p) = build(preset), clips(preset, 2 * LABELS_PER_CALL + 9)
    pixels = to_uint8(p)
    whole = predict(model, x[:, 0], to_float(pixels), seeded(3))
    chunks = list(predict_in_chunks(model, x[:, 0], pixels, seeded(3)))
    assert [chunk.shape[1] for chunk in chunks] == [LABELS_PER_CALL, LABELS_PER_CALL, 8]
    assert torch.equal(torch.cat(chunks, dim=1), whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_long_clip_is_predicted_in_bounded_memory():
    """With 3,000 frames of 32 x 64 pixels in float32, labels and predictions would need 74 MB each.

    VmHWM is the peak memory of this process only. The initial value of `ru_maxrss` is the memory of the process that
    called `exec`.
    """
    code = """
import re, torch
from pathlib import Path
from cvae_lab import CVAE, ModelConfig
from cvae_lab.rollout import predict_in_chunks
model = CVAE(ModelConfig.preset("compact", width=8, latents=2))
peak = lambda: int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
labels = torch.ones(1, 3_000, 3, 32, 64, dtype=torch.uint8)
list(predict_in_chunks(model, torch.zeros(1, 3, 32, 64), labels[:, :20]))  # libraries allocate their workspace
before, frames = peak(), 0
for chunk in predict_in_chunks(model, torch.zeros(1, 3, 32, 64), labels):
    frames += chunk.shape[1]
print(frames, peak() - before, peak())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frames, growth, peak = map(float, done.stdout.split())
    assert frames == 2_999
    assert growth < 50  # MiB
    assert peak < 400


def test_samples_of_a_learned_prior_have_its_mean_and_variance():
    model, (x, p) = build("learned prior").eval(), clips("learned prior")
    frame, label = model.frame_transformation(x[:, 0]), model.label_transformation(p[:, 1])
    with torch.no_grad():
        mu, logvar = model.prior(frame, label)
        draw = prior_latents(model, x[:, 0], seeded(3))
        drawn = torch.stack([draw(0, frame, label) for _ in range(4000)])
        assert torch.equal(prior_mean_latents(model, x[:, 0])(0, frame, label), mu)
    assert mu.abs().max() > 0.01
    scaled = (drawn - mu) / (logvar / 2).exp()
    assert scaled.mean().abs() < 0.01  # 4,000 draws of 8 values: the standard error is 0.006
    assert (scaled.var() - 1).abs() < 0.03


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_restores_the_mode_of_every_module(fails):
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


def test_predict_with_batch_statistics_equals_the_loop_of_the_course_s_code():
    """In that code, batch norm is in train mode during the test. Its statistics are those of the labels of one step."""
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


def test_batch_statistics_do_not_affect_compact():
    model, (x, p) = build("compact"), clips("compact")
    ours, course = (predict(model, x[:, 0], p, seeded(3), batch_statistics=flag) for flag in (False, True))
    assert torch.equal(ours, course)
