"""A step asks the device for nothing, so Python stays ahead of it."""

import math
from contextlib import nullcontext

import pytest
import torch

from cvae_lab import CVAE, training
from cvae_lab.config import RunConfig
from cvae_lab.data import load
from cvae_lab.data.clips import ClipSampler
from cvae_lab.optimiser import make_optimiser
from cvae_lab.rollout import Unroll
from cvae_lab.state import TrainState
from cvae_lab.tally import Tally

EVERYTHING = {"n_frames": 4, "batch_size": 3, "tf_per": "step", "ema": 0.9}
EVERYTHING |= {"flip": True, "paste": 0.5, "shift": 2, "jitter": 0.1, "feedback_noise": 0.02}


def a_step(state, config, device, ratio):
    """Draw a batch, its augmentation and coins, and train on it; what `fit` does with each."""
    generators = {
        name: torch.Generator().manual_seed(index) for index, name in enumerate(("augment", "coins"))
    }
    draws = torch.Generator().manual_seed(0)
    video, clips = load("tiny", progress=False).train, 3 * config.batch_size
    sampler = ClipSampler(video, config.n_frames, config.batch_size, draws, device, clips_per_epoch=clips)
    for batch in sampler.epoch():
        drawn, tossed = training._drawn(batch, config, ratio, False, generators)
        feed = training.make_feed(drawn, config, tossed, state)
        yield training.train_step(state, drawn, config, 1e-4, feed)


def unfused(kind):
    """The meta device has no fused kernels."""
    return lambda parameters, lr, weight_decay, fused: kind(parameters, lr, weight_decay=weight_decay)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "options", [{"preset": "handout"}, {"width": 8}, {"width": 8, "prior": "learned", "bptt": 1}]
)
def test_a_step_never_looks_at_the_device(options, ratio, monkeypatch):
    """On the meta device, whose tensors have shapes and no values: whoever asks for one is refused."""
    monkeypatch.setattr(training, "reduced_precision", lambda config, device: nullcontext())
    for name in ("Adam", "AdamW"):
        monkeypatch.setattr(torch.optim, name, unfused(getattr(torch.optim, name)))
    run = RunConfig.from_params("tiny", **EVERYTHING, **options)
    model = CVAE(run.model).to("meta").train()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = make_optimiser(model, run.train)
    state = TrainState(model, Unroll(model), optimiser, {"noise": torch.Generator()}, average)
    tally = Tally(state, every=60.0)
    for values in a_step(state, run.train, torch.device("meta"), ratio):
        tally.add(values, run.train.batch_size)
    assert len(tally.waiting) == state.step == 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        tally.look()  # as it would have, had anything looked before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_step_on_a_gpu_never_waits(ratio):
    run = RunConfig.from_params("tiny", device="cuda", width=8, **EVERYTHING)
    state = TrainState.create(run.model, run.train)
    tally, steps = Tally(state, every=60.0), a_step(state, run.train, torch.device("cuda"), ratio)
    next(steps)  # libraries choose their kernels in the first
    torch.cuda.set_sync_debug_mode("error")
    try:
        for values in steps:
            tally.add(values, run.train.batch_size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(tally.waiting) == 2
    assert all(math.isfinite(mean) for mean in tally.means())
