"""Compare the training step with a computation by hand; test the loop, evaluation, time limits and seeds."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cvae_lab import ModelConfig, TrainConfig
from cvae_lab.config import ConfigError
from cvae_lab.data import Clip, ClipBatch, Dataset, Video
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.evaluation.scoring import evaluate
from cvae_lab.objective import kl_standard_normal
from cvae_lab.rollout import Feedback, predict, reference_unroll
from cvae_lab.schedules import controlled_beta
from cvae_lab.training import TrainState, distributed, fit, loop, meter, train_step
from cvae_lab.training import state as state_module
from cvae_lab.training.augment import augment, mirroring
from cvae_lab.training.loop import CONTROL_RANGE
from cvae_lab.training.meter import MAX_SKIPPED, TrainingDivergedError
from cvae_lab.training.optimizer import Muon
from cvae_lab.training.state import STREAMS, stream_seed

NARROW = ModelConfig.preset("compact", width=8, latents=2)
H, W = 8, 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quick(**changes):
    """Return a configuration of three epochs with three steps each."""
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
    return Video(frames, labels, boundaries, f"v{seed}")


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
    """Return all values that a step changes, by name."""
    optimizer, average = state.optimizer, state.average.module.state_dict()
    parts = (optimizer.muon, optimizer.adamw) if isinstance(optimizer, Muon) else (optimizer,)
    average = {f"average of {name}": value for name, value in average.items()}
    moments = {
        f"{name} {number} {index}": value
        for number, part in enumerate(parts)
        for index, values in enumerate(part.state_dict()["state"].values())
        for name, value in values.items()
    }
    return {name: value.clone() for name, value in {**weights_of(state), **average, **moments}.items()}


def are_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_on_one_repeated_batch_falls_to_a_twentieth():
    state = TrainState.create(NARROW, quick(lr=1e-2))
    flat = torch.rand(2, 3, 3, 1, 1, generator=seeded(1)).expand(-1, -1, -1, H, W).contiguous()
    batch = batch_of(frames=3)._replace(x=flat)
    losses = [train_step(state, batch, quick(lr=1e-2), 1e-6, free_running(batch)).loss for _ in range(300)]
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
    found = train_step(state, batch, config, beta, free_running(batch))
    assert found.is_finite
    assert found.values.tolist() == pytest.approx([part + weight * kl, mse, kl], rel=1e-4)
    assert state.step == 1


@pytest.mark.parametrize("target", [1e-4, 50.0])
def test_the_controller_changes_beta_after_every_step_by_the_kl_of_that_step(data, target):
    config = quick(kl_target=target, beta_max=1e-5, epochs=6, clips_per_epoch=4)  # one step per epoch
    records = list(fit(TrainState.create(NARROW, config), data, config))
    beta = 1e-5
    for record in records:
        assert record["beta"] == pytest.approx(beta)
        beta = controlled_beta(beta, record["kl_nats"], target, bounds=(1e-9, 1e-1))
    assert (beta < 1e-5) == (target == 50.0)


@pytest.mark.parametrize("options", [{"free_bits": 1e-4}, {"kl_balance": 0.8}])
def test_free_bits_and_kl_balance_train_a_learned_prior(options):
    config, batch = quick(**options), batch_of()
    state = TrainState.create(replace(NARROW, prior="learned"), config)
    before = [value.clone() for value in state.model.Prior_Predictor.parameters()]
    for _ in range(3):
        assert train_step(state, batch, config, 1e-3, free_running(batch)).is_finite
    after = state.model.Prior_Predictor.parameters()
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True) if pair[0].ndim > 1)


def test_the_loss_in_bfloat16_is_within_five_percent_of_float32():
    batch = batch_of()
    losses = [
        train_step(TrainState.create(NARROW, c), batch, c, 1e-3, free_running(batch)).loss
        for c in (quick(precision="float32"), quick(precision="bfloat16"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_non_finite_step_changes_only_the_step_counter(optimizer):
    """Weights, optimizer state and average do not change by a single bit, even if the first step is not finite."""
    config, batch = quick(optimizer=optimizer), batch_of()
    broken = batch._replace(x=torch.full_like(batch.x, math.nan))
    state, twin = (TrainState.create(NARROW, config) for _ in range(2))
    for x in (broken, batch, batch, broken):
        before, noise = moving(state), state.generators["noise"].get_state()
        result = train_step(state, x, config, 1.0, free_running(batch))
        assert result.is_finite == (x is batch)
        assert math.isnan(result.loss) == (x is broken)
        assert are_equal(before, moving(state)) == (x is broken)
        if x is batch:
            twin.generators["noise"].set_state(noise)
            twin.step = state.step - 1
            train_step(twin, batch, config, 1.0, free_running(batch))
    assert are_equal(moving(state), moving(twin))
    assert state.step == 4


@pytest.mark.parametrize("clips_per_epoch", [26, 6])
def test_training_stops_after_ten_skipped_steps_in_a_row(data, clips_per_epoch):
    """The ten steps are in one epoch of 13 steps, or in several epochs of 3 steps."""
    config = quick(clips_per_epoch=clips_per_epoch, batch_size=2, epochs=20)
    state, steps = TrainState.create(NARROW, config), []
    with torch.no_grad():
        next(state.model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match="step"):
        list(fit(state, data, config, lambda record, progress: steps.append(record)))
    assert len(steps) == MAX_SKIPPED - 1


def test_a_last_epoch_without_a_finite_step_has_no_loss_and_raises_an_error(data):
    config = quick(epochs=1)
    state = TrainState.create(NARROW, config)
    with torch.no_grad():
        next(state.model.parameters()).fill_(math.nan)
    records = fit(state, data, config)
    record = next(records)
    assert record["skipped"] == 3
    assert math.isnan(record["loss"])
    with pytest.raises(TrainingDivergedError, match="All steps of the last epoch were skipped"):
        next(records)


def test_the_weight_average_follows_its_formula():
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
    "epoch", "step", "beta", "kl_weight", "tf_ratio", "lr", "loss", "mse", "kl_nats",
    "val_psnr_prior", "val_psnr_posterior", "heldout_psnr", "skipped", "seconds", "frames_per_s",
}  # fmt: skip
UNTIMED = sorted(COLUMNS - {"seconds", "frames_per_s"})


def run(data, config):
    state = TrainState.create(NARROW, config)
    records = [{name: r[name] for name in UNTIMED} for r in fit(state, data, config)]
    return state, records


def test_fit_yields_one_record_per_epoch(data):
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
def test_beta_changes_per_epoch_or_per_iteration(data, per, expected):
    config, betas = quick(kl_strategy="monotonic", kl_per=per), []
    list(fit(TrainState.create(NARROW, config), data, config, lambda r, progress: betas.append(r["beta"])))
    assert betas == pytest.approx(expected)


BUSY = {"tf_strategy": "constant", "tf_start": 0.5, "flip": True, "shift": 1, "jitter": 0.1, "epochs": 2}


@pytest.mark.parametrize("options", [BUSY, {"dropout": 0.3, "epochs": 2}])
def test_a_seed_determines_every_number_of_a_run(data, options, monkeypatch):
    options = dict(options)
    if dropout := options.pop("dropout", 0):
        monkeypatch.setitem(
            globals(), "NARROW", ModelConfig.preset("compact", width=8, latents=2, dropout=dropout)
        )
    (one, first), (two, second), (_, other) = (run(data, quick(seed=seed, **options)) for seed in (3, 3, 4))
    assert first == second
    assert are_equal(weights_of(one), two.model.state_dict())
    assert [r["loss"] for r in first] != [r["loss"] for r in other]


def test_the_global_random_state_is_unchanged(data):
    before = torch.get_rng_state()
    state = TrainState.create(NARROW, quick())
    assert torch.equal(torch.get_rng_state(), before)
    list(fit(state, data, quick()))
    assert torch.equal(torch.get_rng_state(), before)


class SteppedClock:
    """A clock that advances by one second each time it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def stepped_clock(monkeypatch):
    clock = SteppedClock()
    for module in (state_module, meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.usefixtures("stepped_clock")
def test_a_time_limit_replaces_the_number_of_epochs(data):
    config, seen = quick(epochs=1, minutes=2.0, kl_strategy="monotonic", lr_warmup=0.0), []
    state = TrainState.create(NARROW, config)
    records = list(fit(state, data, config, lambda record, progress: seen.append((progress, record["lr"]))))
    assert len(records) > 2
    assert 118 <= records[-1]["seconds"] < 140
    assert records[-1]["beta"] == 1
    assert seen[0][1] > 0.9 * config.lr
    assert seen[-1][1] < 0.1 * config.lr
    assert not math.isnan(records[-1]["val_psnr_prior"])


def test_the_last_epoch_is_evaluated_if_the_time_limit_is_reached_between_epochs(data, stepped_clock):
    config, records = quick(minutes=1.0, eval_every=2), []
    for record in fit(TrainState.create(NARROW, config), data, config):
        records.append(record)
        stepped_clock.now += 60  # the caller saves and plots until the time limit is reached
    assert not math.isnan(records[-1]["val_psnr_prior"])


def test_held_out_segments_are_weighted_by_their_frames(data):
    """The held-out PSNR is the mean over the frames of all held-out segments, without the validation clip."""
    unequal, config = replace(data, train=video(60, (45,))), quick(epochs=1)
    state = TrainState.create(NARROW, config)
    (record,) = fit(state, unequal, config)
    (validation,), (long, short) = data.val.as_clips(), unequal.train.hold_out(0.2, 4)[1].as_clips()
    assert (len(long.labels), len(short.labels)) == (9, 4)
    of_val, of_long, of_short = evaluate(state.evaluation_model(), [validation, long, short])["prior"]
    segments = (of_long.sum() + of_short.sum()) / (8 + 3)
    assert record["heldout_psnr"] == pytest.approx(float(segments), abs=1e-4)
    assert record["val_psnr_prior"] == pytest.approx(float(of_val.mean()), abs=1e-4)
    assert abs(of_long.mean() - of_short.mean()) > 1e-3  # otherwise the test could not detect wrong weights


def test_the_selection_score_does_not_depend_on_the_validation_clips(data):
    records = [
        run(replace(data, val=validation), quick(epochs=1))[1][0]
        for validation in (data.val, video(12, seed=5), video(0))
    ]
    assert len({record["heldout_psnr"] for record in records}) == 1
    assert len({record["loss"] for record in records}) == 1
    assert records[0]["val_psnr_prior"] != records[1]["val_psnr_prior"]
    assert math.isnan(records[2]["val_psnr_prior"])


@pytest.mark.parametrize(
    ("options", "train", "reason"),
    [({"holdout": 0.0}, video(40), "holdout is 0"), ({}, video(6), "no training recording is long enough")],
)
def test_if_nothing_can_be_held_out_validation_clips_select_checkpoints_with_a_warning(
    data, caplog, options, train, reason
):
    config = quick(epochs=1, clips_per_epoch=2, batch_size=2, **options)
    record = next(fit(TrainState.create(NARROW, config), replace(data, train=train), config))
    assert record["heldout_psnr"] == record["val_psnr_prior"]
    (message,) = caplog.messages
    assert message.startswith(
        "Checkpoints are selected by their PSNR on the validation clips, because " + reason
    )
    with pytest.raises(ConfigError, match=f"There are no frames to select checkpoints on: {reason}"):
        next(fit(TrainState.create(NARROW, config), replace(data, train=train, val=video(0)), config))


def test_the_adaptive_ratio_uses_held_out_segments_if_there_is_no_validation_clip(data):
    config = quick(tf_strategy="adaptive", tf_start=0.5, tf_first_decay=2, tf_step=0.25, epochs=4)
    _, records = run(replace(data, val=video(0)), config)
    scores = [record["heldout_psnr"] for record in records]
    expected = 0.5 - 0.25 if scores[1] > scores[0] else 0.5 + 0.25
    assert records[2]["tf_ratio"] == expected


def test_flip_is_switched_off_with_a_warning_if_the_label_colours_are_unknown(data, caplog):
    unknown = replace(data)
    object.__setattr__(unknown, "palette", None)
    assert mirroring(unknown) is None
    (message,) = caplog.messages
    assert message.startswith("flip is switched off: the labels of noise have other colours")
    batch = batch_of(8)
    assert all(map(torch.equal, augment(batch, quick(shift=0), seeded(), None), batch))
    assert not torch.equal(augment(batch, quick(shift=0), seeded()).x, batch.x)


@pytest.mark.parametrize(("scale", "sigma"), [("handout", 0.0), ("elbo", 0.2)])
def test_the_history_holds_the_weight_that_multiplies_the_kl(data, scale, sigma):
    config = quick(epochs=1, scale=scale, sigma=sigma, beta_max=0.01, kl_strategy="constant")
    _, (record,) = run(data, config)
    expected = 0.01 if scale == "handout" else 2 * 0.2**2 * 0.01 / (3 * H * W)
    assert record["kl_weight"] == pytest.approx(expected)
    assert record["beta"] == 0.01


def test_the_controller_stays_within_its_range(data):
    """If the KL stays far from the target, the weight reaches a bound and stays there."""
    config = quick(kl_target=1e6, beta_max=1e-3, epochs=1)
    state = TrainState.create(NARROW, config)
    state.kl_weight = 1e-3 / CONTROL_RANGE
    list(fit(state, data, config))
    assert state.kl_weight == 1e-3 / CONTROL_RANGE


def test_a_controller_at_its_bound_reacts_to_the_first_kl_on_the_other_side():
    """After 10,000 steps at the bound, one step is enough to leave it, because no error has accumulated."""
    beta = 1.0
    for _ in range(10_000):
        beta = controlled_beta(beta, 100.0, 1.0, bounds=(0.01, 2.0))
    assert beta == 2.0
    assert controlled_beta(beta, 0.01, 1.0, rate=0.02, bounds=(0.01, 2.0)) == pytest.approx(
        2 * math.exp(-0.02)
    )


def test_all_random_streams_of_a_run_are_independent():
    """Streams are children of one SeedSequence. No two are equal, for all epochs, ranks and seeds."""
    keys = [(stream,) for stream in ("weights", "clips", "teacher_forcing", "augment")]
    keys += [
        (stream, epoch, rank) for stream in ("noise", "dropout") for epoch in range(20) for rank in range(4)
    ]
    seeds = [stream_seed(seed, *key) for seed in range(5) for key in keys]
    assert len({value % 2**32 for value in seeds}) == len(seeds)  # the CPU generator uses 32 bits of a seed
    spawned = np.random.SeedSequence(3).spawn(len(STREAMS))[STREAMS.index("noise")].spawn(3)[2].spawn(2)[1]
    assert stream_seed(3, "noise", 2, 1) == int(spawned.generate_state(1, np.uint64)[0] >> 1)


def test_dropout_and_noise_differ_between_epochs_and_ranks(data, monkeypatch):
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        state = TrainState.create(NARROW, quick())
        for state.epoch in range(2):
            with loop._seeded(0, state, torch.device("cpu")):
                drawn += [float(torch.rand(())), float(torch.rand((), generator=state.generators["noise"]))]
    assert len(set(drawn)) == len(drawn)


def clip(frames, seed):
    made = video(frames, seed=seed)
    return Clip(str(seed), made.frames[0], made.labels, made.frames)


@pytest.fixture
def without_z():
    """A model whose output does not depend on z. All modules except Generator are in train mode."""
    model = TrainState.create(NARROW, quick()).model.train()
    model.Generator.eval()
    with torch.no_grad():
        model.Decoder_Fusion.join_z.weight.zero_()
    return model


def test_the_score_of_a_clip_does_not_depend_on_a_longer_clip_in_the_batch(without_z):
    short, long = clip(4, 1), clip(7, 2)
    modes = [module.training for module in without_z.modules()]
    both = evaluate(without_z, [short, long])
    assert [module.training for module in without_z.modules()] == modes
    for kind in ("prior", "posterior"):
        assert [len(curve) for curve in both[kind]] == [3, 6]
        for k, one in enumerate((short, long)):
            torch.testing.assert_close(both[kind][k], evaluate(without_z, [one])[kind][0], atol=1e-3, rtol=0)


def test_evaluate_returns_the_psnr_of_predict(without_z):
    one = clip(6, 1)
    x, p = one.answer[None].float() / 255, one.labels[None].float() / 255
    expected = psnr(predict(without_z, x[:, 0], p), x[:, 1:])[0]
    torch.testing.assert_close(evaluate(without_z, [one])["prior"][0], expected, atol=1e-3, rtol=0)
