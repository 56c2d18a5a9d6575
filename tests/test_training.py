"""One step against a hand computation; fit, evaluate, time budgets, seeds."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cvae_lab import ModelConfig, TrainConfig
from cvae_lab.data import Clip, ClipBatch, Dataset, Video
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.objective import kl_standard_normal
from cvae_lab.rollout import Feedback, predict, reference_unroll
from cvae_lab.schedules import controlled_beta
from cvae_lab.training import TrainState, evaluate, fit, train_step
from cvae_lab.training import state as state_module
from cvae_lab.training.meter import MAX_SKIPPED, TrainingDivergedError
from cvae_lab.training.optimizer import Muon

NARROW = ModelConfig.preset("compact", width=8, latents=2)
H, W = 8, 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quick(**changes):
    """Three epochs of three steps."""
    values = {
        "epochs": 3,
        "n_frames": 4,
        "batch_size": 4,
        "clips_per_epoch": 12,
        "holdout": 0.2,
        "device": "cpu",
    }
    values |= {"precision": "float32", "eval_every": 1}
    return TrainConfig(**values | changes)


def video(n, boundaries=(), seed=0):
    frames, labels = torch.randint(0, 256, (2, n, 3, H, W), generator=seeded(seed), dtype=torch.uint8)
    return Video(frames, labels, cuts, f"v{seed}")


@pytest.fixture(scope="module")
def data():
    return Dataset("noise", video(40, (20,)), video(8, seed=1), ())


def batch_of(clips=2, frames=4, seed=0):
    x, p = torch.rand(2, clips, frames, 3, H, W, generator=seeded(seed))
    return ClipBatch(x, p)


def free_running(batch):
    shape = (len(batch.x), batch.x.shape[1] - 1)
    return Feedback(torch.zeros(shape, dtype=torch.bool).index_fill(1, torch.tensor([0]), True))


def weights_of(state):
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def moving(state):
    """All that a step changes, by name."""
    optimiser, average = state.optimizer, {f"average of {k}": v for k, v in state.average.items()}
    halves = (optimiser.muon, optimiser.adamw) if isinstance(optimiser, Muon) else (optimiser,)
    moments = {
        f"{name} {half} {index}": value
        for half, part in enumerate(halves)
        for index, values in enumerate(part.state_dict()["state"].values())
        for name, value in values.items()
    }
    return {name: value.clone() for name, value in {**weights_of(state), **average, **moments}.items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_one_batch_can_be_learnt_by_heart():
    state = TrainState.create(NARROW, quick(lr=1e-2))
    flat = torch.rand(2, 3, 3, 1, 1, generator=seeded(1)).expand(-1, -1, -1, H, W).contiguous()
    batch = batch_of(frames=3)._replace(x=flat)
    losses = [
        float(train_step(state, batch, quick(lr=1e-2), 1e-6, free_running(batch))[0]) for _ in range(300)
    ]
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize("weighting", ["equal", "psnr"])
@pytest.mark.parametrize("options", [{}, {"scale": "elbo", "sigma": 0.2}, {"scale": "elbo", "sigma": 0.0}])
@pytest.mark.parametrize("preset", ["compact", "handout"])
def test_the_loss_is_the_one_computed_by_hand(preset, options, weighting):
    model_config = NARROW if preset == "compact" else ModelConfig.preset("handout")
    config, batch, beta = quick(**options, weighting=weighting), batch_of(), 0.01
    state, twin = (TrainState.create(model_config, config) for _ in range(2))
    model, dims = twin.model.train(), 3 * H * W
    eps = torch.randn(2, 3, *model.latent_shape(H, W), generator=twin.generators["noise"])
    out = reference_unroll(model, batch.x, batch.p, eps, free_running(batch))
    errors = ((out.prediction - batch.x[:, 1:]) ** 2).mean(dim=(2, 3, 4)).flatten().tolist()
    mse = sum(errors) / 6
    part = mse if weighting == "equal" else sum(mse * e / (e + 0.1 * mse + 1e-4) for e in errors) / 6
    kl = sum(kl_standard_normal(out.mu, out.logvar).flatten().tolist()) / 6
    variance = config.sigma**2 or mse
    weight = beta if config.scale == "handout" else 2 * variance * beta / dims
    found = train_step(state, batch, config, beta, free_running(batch)).tolist()
    assert found == pytest.approx([part + weight * kl, mse, kl], rel=1e-4)
    assert state.step == 1


@pytest.mark.parametrize("target", [1e-4, 50.0])
def test_a_controller_moves_beta_by_the_kl_of_every_step(data, target):
    config = quick(kl_target=target, beta_max=1e-5, epochs=6, clips_per_epoch=4)  # one step an epoch
    records = list(fit(TrainState.create(NARROW, config), data, config))
    beta = 1e-5
    for record in records:
        assert record["beta"] == pytest.approx(beta)
        beta = controlled_beta(beta, record["kl_nats"], target)
    assert (beta < 1e-5) == (target == 50.0)


@pytest.mark.parametrize("options", [{"free_bits": 1e-4}, {"kl_balance": 0.8}])
def test_ways_to_a_live_latent_train_with_a_learned_prior(options):
    config, batch = quick(**options), batch_of()
    state = TrainState.create(replace(NARROW, prior="learned"), config)
    before = [value.clone() for value in state.model.Prior_Predictor.parameters()]
    for _ in range(3):
        assert train_step(state, batch, config, 1e-3, free_running(batch)).isfinite().all()
    after = state.model.Prior_Predictor.parameters()
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True) if pair[0].ndim > 1)


def test_bfloat16_is_near():
    batch = batch_of()
    losses = [
        train_step(TrainState.create(NARROW, c), batch, c, 1e-3, free_running(batch))[0].item()
        for c in (quick(precision="float32"), quick(precision="bfloat16"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("answers", [True, False])
def test_a_step_that_is_not_finite_is_skipped(optimiser, answers, monkeypatch):
    """Bit for bit, and at the very first step too, whether or not the device is asked whether it was."""
    monkeypatch.setattr(state_module, "answers_at_once", lambda device: answers)
    config, batch = quick(optimizer=optimiser), batch_of()
    broken = batch._replace(x=torch.full_like(batch.x, math.nan))
    state, twin = (TrainState.create(NARROW, config) for _ in range(2))
    for x in (broken, batch, batch, broken):
        before, noise = moving(state), state.generators["noise"].get_state()
        values = train_step(state, x, config, 1.0, free_running(batch))
        assert values.isfinite().all() == (x is batch)
        assert values.isnan().all() == (x is broken)
        after = moving(state)
        stood = [torch.equal(before.get(k, torch.zeros_like(value)), value) for k, value in after.items()]
        assert all(stood) == (x is broken)
        if x is batch:
            twin.generators["noise"].set_state(noise)
            twin.step = state.step - 1
            train_step(twin, batch, config, 1.0, free_running(batch))
    assert same(moving(state), moving(twin))
    assert state.step == 4


@pytest.mark.parametrize("clips_per_epoch", [26, 6])
def test_training_that_diverged_stops(data, clips_per_epoch):
    """Ten skipped steps in a row: within one epoch of 13 steps, or over several epochs of 3."""
    config = quick(clips_per_epoch=clips_per_epoch, batch_size=2, epochs=20)
    state, steps = TrainState.create(NARROW, config), []
    with torch.no_grad():
        next(state.model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match="step"):
        list(fit(state, data, config, lambda record, progress: steps.append(record)))
    assert len(steps) == MAX_SKIPPED - 1


def test_an_epoch_without_a_finite_step_has_no_loss(data):
    config = quick(epochs=1)
    state = TrainState.create(NARROW, config)
    with torch.no_grad():
        next(state.model.parameters()).fill_(math.nan)
    record = next(fit(state, data, config))
    assert record["skipped"] == 3
    assert math.isnan(record["loss"])


def test_the_average_by_hand():
    config, batch = quick(ema=0.2), batch_of()
    state = TrainState.create(NARROW, config)
    expected = {name: value.double() for name, value in weights_of(state).items()}
    for decay in (2 / 11, 0.2, 0.2):  # (1 + n) / (10 + n) for n = 1, 2, 3, at most 0.2
        train_step(state, batch, config, 1.0, free_running(batch))
        for name, value in state.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in state.evaluation_model().state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
    assert TrainState.create(NARROW, quick(ema=0.0)).average is None


COLUMNS = {
    "epoch", "step", "beta", "tf_ratio", "lr", "loss", "mse", "kl_nats", "val_psnr_prior", "val_psnr_posterior",
    "heldout_psnr", "skipped", "seconds", "frames_per_s",
}  # fmt: skip
UNTIMED = sorted(COLUMNS - {"seconds", "frames_per_s"})


def run(data, config):
    state = TrainState.create(NARROW, config)
    records = [{name: r[name] for name in UNTIMED} for r in fit(state, data, config)]
    return state, records


def test_a_record_per_epoch(data):
    config, steps = quick(eval_every=2), []
    state = TrainState.create(NARROW, config)
    records = list(fit(state, data, config, lambda record, progress: steps.append((record, progress))))
    assert all(set(record) == COLUMNS for record in records)
    assert records == state.history
    assert [(r["epoch"], r["step"], r["skipped"]) for r in records] == [(1, 3, 0), (2, 6, 0), (3, 9, 0)]
    assert [math.isnan(r["val_psnr_prior"]) for r in records] == [True, False, False]
    assert [progress for _, progress in steps] == pytest.approx([k / 9 for k in range(9)])


@pytest.mark.parametrize(
    ("per", "expected"),
    [("epoch", [0] * 3 + [2 / 3] * 3 + [1] * 3), ("iteration", [min(1, k / 4.5) for k in range(9)])],
)
def test_beta_moves_per_epoch_or_per_iteration(data, per, expected):
    config, betas = quick(kl_strategy="monotonic", kl_per=per), []
    list(fit(TrainState.create(NARROW, config), data, config, lambda r, progress: betas.append(r["beta"])))
    assert betas == pytest.approx(expected)


BUSY = {"tf_strategy": "constant", "tf_start": 0.5, "flip": True, "shift": 1, "jitter": 0.1, "epochs": 2}


@pytest.mark.parametrize("options", [BUSY, {"dropout": 0.3, "epochs": 2}])
def test_a_seed_fixes_a_run(data, options, monkeypatch):
    options = dict(options)
    if dropout := options.pop("dropout", 0):
        monkeypatch.setitem(
            globals(), "NARROW", ModelConfig.preset("compact", width=8, latents=2, dropout=dropout)
        )
    (one, first), (two, second), (_, other) = (run(data, quick(seed=seed, **options)) for seed in (3, 3, 4))
    assert first == second
    assert same(weights_of(one), two.model.state_dict())
    assert [r["loss"] for r in first] != [r["loss"] for r in other]


def test_the_callers_random_state_is_left_alone(data):
    before = torch.get_rng_state()
    state = TrainState.create(NARROW, quick())
    assert torch.equal(torch.get_rng_state(), before)
    list(fit(state, data, quick()))
    assert torch.equal(torch.get_rng_state(), before)


class Watch:
    """A clock on which each look takes a second."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def watch(monkeypatch):
    clock = Watch()
    for room in (state_module, tally):
        monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_a_time_budget_replaces_epochs(data, watch):
    config, seen = quick(epochs=1, minutes=2.0, kl_strategy="monotonic", lr_warmup=0.0), []
    state = TrainState.create(NARROW, config)
    records = list(fit(state, data, config, lambda record, progress: seen.append((progress, record["lr"]))))
    assert len(records) > 2
    assert 118 <= records[-1]["seconds"] < 140
    assert records[-1]["beta"] == 1
    assert seen[0][1] > 0.9 * config.lr
    assert seen[-1][1] < 0.1 * config.lr
    assert not math.isnan(records[-1]["val_psnr_prior"])


def test_the_last_epoch_of_a_budget_is_evaluated_whoever_took_the_time(data, watch):
    config, records = quick(minutes=1.0, eval_every=2), []
    for record in fit(TrainState.create(NARROW, config), data, config):
        records.append(record)
        watch.now += 60  # the caller saves, plots, and so uses the budget up
    assert not math.isnan(records[-1]["val_psnr_prior"])


def test_held_out_stretches_weigh_by_their_frames(data):
    """Beside validation, which weighs as one of them."""
    unequal, config = replace(data, train=video(60, (45,))), quick(epochs=1)
    state = TrainState.create(NARROW, config)
    (record,) = fit(state, unequal, config)
    (validation,), (long, short) = data.val.as_clips(), unequal.train.hold_out(0.2, 4)[1].as_clips()
    assert (len(long.labels), len(short.labels)) == (9, 4)
    of_val, of_long, of_short = evaluate(state.evaluation_model(), [validation, long, short])["prior"]
    stretches = (of_long.sum() + of_short.sum()) / (8 + 3)
    assert record["heldout_psnr"] == pytest.approx(float(of_val.mean() + 2 * stretches) / 3, abs=1e-4)
    assert abs(of_long.mean() - of_short.mean()) > 1e-3  # or the weights would not matter


def clip(frames, seed):
    made = video(frames, seed=seed)
    return Clip(str(seed), made.frames[0], made.labels, made.frames)


@pytest.fixture
def without_z():
    """A model that ignores z, in train mode but for one part."""
    model = TrainState.create(NARROW, quick()).model.train()
    model.Generator.eval()
    with torch.no_grad():
        model.Decoder_Fusion.join_z.weight.zero_()
    return model


def test_a_short_clip_beside_a_longer_one_scores_as_alone(without_z):
    short, long = clip(4, 1), clip(7, 2)
    modes = [module.training for module in without_z.modules()]
    both = evaluate(without_z, [short, long])
    assert [module.training for module in without_z.modules()] == modes
    for kind in ("prior", "posterior"):
        assert [len(curve) for curve in both[kind]] == [3, 6]
        for k, one in enumerate((short, long)):
            torch.testing.assert_close(both[kind][k], evaluate(without_z, [one])[kind][0], atol=1e-3, rtol=0)


def test_evaluate_is_psnr_of_predict(without_z):
    one = clip(6, 1)
    x, p = one.answer[None].float() / 255, one.labels[None].float() / 255
    wanted = psnr(predict(without_z, x[:, 0], p), x[:, 1:])[0]
    torch.testing.assert_close(evaluate(without_z, [one])["prior"][0], wanted, atol=1e-3, rtol=0)
