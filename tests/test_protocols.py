"""The two protocols of the course's network equal a training loop that is written out by hand."""

import copy
import time
from fractions import Fraction

import pytest
import torch
from torch import nn

from cvae_lab.__main__ import main
from cvae_lab.config import PROTOCOLS, ConfigError, RunConfig, TrainConfig
from cvae_lab.data import load
from cvae_lab.schedules import beta_at, tf_ratio_at
from cvae_lab.training import TrainState, fit
from cvae_lab.training.loop import _set_lr
from cvae_lab.training.state import Clock

NARROW = {"width": 16, "label_width": 8, "decoder_width": 16, "latents": 4, "device": "cpu"}
STEPS = {"assignment": 2, "tuned": 2}  # steps per epoch


def recorded_training(protocol, **changes):
    """Train a narrow network for three epochs; return initial model, state, inputs of every step, and records."""
    clips = STEPS[protocol] * PROTOCOLS[protocol]["batch_size"]
    config = RunConfig.from_params(
        "tiny", protocol=protocol, clips_per_epoch=clips, eval_every=1000, **NARROW, **changes
    )
    state, inputs = TrainState.create(config.model, config.train), []
    initial = copy.deepcopy(state.model)
    state.network.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    records = []
    for record in fit(state, load("tiny", progress=False), config.train):
        records.append(record)
        if len(records) == 3:
            break
    return initial, state, inputs, records


def assignment_kl(mu, logvar):
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / len(mu)


def step_by_hand(model, batch, eps, beta, teacher_forcing):
    """Return the loss of the assignment: mean squared error and weighted KL, averaged over the frames of a clip."""
    loss, previous = 0.0, batch.x[:, 0]
    for t in range(1, batch.x.shape[1]):
        label = model.label_transformation(batch.p[:, t])
        mu, logvar = model.Gaussian_Predictor(model.frame_transformation(batch.x[:, t]), label)
        logvar = logvar.clamp(-model.config.logvar_bound, model.config.logvar_bound)
        z = mu + torch.exp(logvar / 2) * eps[:, t - 1]
        decoded = model.Decoder_Fusion(model.frame_transformation(previous), label, z)
        prediction = model.Generator(decoded)
        loss = loss + nn.functional.mse_loss(prediction, batch.x[:, t]) + beta * assignment_kl(mu, logvar)
        previous = batch.x[:, t] if teacher_forcing else prediction
    return loss / (batch.x.shape[1] - 1)


def train_by_hand(model, inputs, optimizer, beta, teacher_forcing, after_step, clip=0.0):
    """Train on recorded inputs; return the losses.

    Args:
        beta, after_step: functions of the step number.
    """
    losses = []
    model.train()
    for index, (batch, eps, _) in enumerate(inputs):
        loss = step_by_hand(model, batch, eps, beta(index), teacher_forcing)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        after_step(index)
        losses.append(float(loss.detach()))
    return losses


def epoch_means(losses, per_epoch):
    return torch.tensor(losses).view(-1, per_epoch).mean(1).tolist()


def assert_equal_weights(trained, expected, initial):
    """Compare weights. The largest difference may be one per cent of the largest change in training.

    The bias before the batch norm is not compared. Batch norm subtracts it again, so its gradient is only
    rounding error, and Adam scales this to full steps.
    """
    wanted, start = expected.state_dict(), initial.state_dict()  # tensors without gradient
    largest = max(float((wanted[name] - start[name]).abs().max()) for name, _ in trained.named_parameters())
    assert largest > 0
    for name, _ in trained.named_parameters():
        weights = trained.state_dict()[name]
        if name != "label_transformation.1.bias":
            assert float((weights - wanted[name]).abs().max()) < 0.01 * largest, name


def test_the_assignment_protocol_equals_a_loop_written_by_hand():
    per_epoch = STEPS["assignment"]
    initial, state, inputs, records = recorded_training("assignment")
    by_hand = copy.deepcopy(initial)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 5], gamma=0.1)
    losses = train_by_hand(
        by_hand,
        inputs,
        optimizer,
        beta=lambda step: (step // per_epoch % 7) / 7,
        teacher_forcing=True,
        after_step=lambda step: scheduler.step() if step % per_epoch == per_epoch - 1 else None,
    )
    assert len(inputs) == 3 * per_epoch
    assert {tuple(batch.x.shape) for batch, *_ in inputs} == {(2, 16, 3, 32, 64)}
    assert [record["loss"] for record in records] == pytest.approx(epoch_means(losses, per_epoch), rel=1e-3)
    assert_equal_weights(state.model, by_hand, initial)


def test_the_tuned_protocol_equals_a_loop_written_by_hand():
    per_epoch = STEPS["tuned"]
    initial, state, inputs, records = recorded_training("tuned", epochs=3)
    by_hand = copy.deepcopy(initial)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * per_epoch)
    losses = train_by_hand(
        by_hand,
        inputs,
        optimizer,
        beta=lambda step: 1.0,
        teacher_forcing=False,
        after_step=lambda step: cosine.step(),
        clip=1.0,
    )
    assert {tuple(batch.x.shape) for batch, *_ in inputs} == {(4, 16, 3, 32, 64)}
    assert [record["loss"] for record in records] == pytest.approx(epoch_means(losses, per_epoch), rel=1e-3)
    assert_equal_weights(state.model, by_hand, initial)


def test_the_learning_rate_of_the_assignment_equals_multisteplr_in_every_epoch():
    config = RunConfig.from_params("tiny", protocol="assignment", **NARROW)
    state = TrainState.create(config.model, config.train)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 5], gamma=0.1)
    for state.epoch in range(70):
        lr = _set_lr(state, config.train, state.epoch / 70)
        assert lr == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert lr == pytest.approx(1e-5)


def test_the_schedules_of_the_assignment_change_once_per_epoch():
    train = RunConfig.from_params("tiny", protocol="assignment").train
    options = {"beta_max": 1.0, "n_cycles": train.n_cycles, "ratio": train.cycle_ratio}
    betas = [beta_at(Fraction(epoch, train.epochs), train.kl_strategy, **options) for epoch in range(70)]
    assert betas == pytest.approx([(epoch % 7) / 7 for epoch in range(70)])
    ratios = [
        tf_ratio_at(
            e, train.tf_strategy, start=train.tf_start, first_decay=train.tf_first_decay, step=train.tf_step
        )
        for e in range(1, 71)
    ]
    assert ratios == pytest.approx([1.0] * 10 + [max(0.0, 0.9 - 0.1 * k) for k in range(60)])
    assert (train.kl_per, train.tf_per) == ("epoch", "epoch")


def test_a_protocol_is_for_the_network_of_the_course():
    assert RunConfig.from_params("tiny", protocol="tuned").model.name == "handout"
    assert RunConfig.from_params("tiny", "handout", protocol="tuned", lr=2e-4).train.lr == 2e-4
    with pytest.raises(ConfigError, match="protocol tuned is for preset handout"):
        RunConfig.from_params("tiny", "compact", protocol="tuned")
    with pytest.raises(ConfigError, match=r"protocol = 'fast' is not one of .*assignment.*tuned"):
        RunConfig.from_params("tiny", protocol="fast")


def test_a_protocol_is_described_and_names_its_own_command(capsys):
    for name in PROTOCOLS:
        command = RunConfig.from_params("tiny", protocol=name, stop_after=4.0).command()
        assert command.endswith(f"--data tiny -p protocol {name} -p stop_after 4.0")
    assert main(["params", "protocol"]) == 0
    assert capsys.readouterr().out.startswith('protocol: assignment | tuned; default ""')


def test_a_run_stops_after_its_time_and_keeps_the_schedules_of_its_epochs():
    config = RunConfig.from_params(
        "tiny", width=8, latents=2, epochs=1000, clips_per_epoch=10, stop_after=0.01
    )
    state = TrainState.create(config.model, config.train)
    records = list(fit(state, load("tiny", progress=False), config.train))
    assert 0 < len(records) < 1000
    assert records[-1]["seconds"] >= 0.6
    assert records[-1]["lr"] == pytest.approx(
        config.train.lr * min(1.0, (state.epoch - 1) / 20), rel=0.05
    )  # warm-up lasts 20 of 1000 epochs
    with pytest.raises(ConfigError, match="give only one of the two"):
        TrainConfig(minutes=1.0, stop_after=1.0)


def test_cpu_time_does_not_include_waiting():
    state = TrainState.create(RunConfig.from_params("tiny", width=8).model, TrainConfig())
    clocks = {kind: Clock(TrainConfig(minutes=1.0, clock=kind), state, 1) for kind in ("wall", "cpu")}
    time.sleep(0.3)
    assert clocks["wall"].elapsed() >= 0.3
    assert clocks["cpu"].elapsed() < 0.5 * clocks["wall"].elapsed()
