"""A step asks the device for its loss once and for nothing else, so Python stays ahead of it."""

from contextlib import nullcontext

import pytest
import torch

from cvae_lab import CVAE, training
from cvae_lab.config import RunConfig
from cvae_lab.data import load
from cvae_lab.data.clips import ClipSampler
from cvae_lab.rollout import Unroll
from cvae_lab.state import TrainState

EVERYTHING = {"n_frames": 4, "batch_size": 3, "tf_per": "step", "ema": 0.9}
EVERYTHING |= {"flip": True, "paste": 0.5, "shift": 2, "jitter": 0.1, "feedback_noise": 0.02}


def a_step(state, config, device, ratio):
    """Draw a batch, its augmentation and coins, and train on it; what `fit` does with each."""
    generators = {
        name: torch.Generator().manual_seed(index) for index, name in enumerate(("augment", "coins"))
    }
    draws = torch.Generator().manual_seed(0)
    sampler = ClipSampler(
        load("tiny", progress=False).train, config.n_frames, config.batch_size, draws, device
    )
    for batch in sampler.epoch():
        drawn, tossed = training._drawn(batch, config, ratio, False, generators)
        feed = training.make_feed(drawn, config, tossed, state)
        yield training.train_step(state, drawn, config, 1e-4, feed)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "options", [{"preset": "handout"}, {"width": 8}, {"width": 8, "prior": "learned", "bptt": 1}]
)
def test_a_step_looks_at_the_device_once(options, ratio, monkeypatch):
    """On the meta device, whose tensors have shapes and no values: whoever asks for one is refused."""
    looks = []
    monkeypatch.setattr(
        training, "_looked_at", lambda values: looks.append(values) or torch.ones(len(values))
    )
    monkeypatch.setattr(training, "reduced_precision", lambda config, device: nullcontext())
    run = RunConfig.from_params("tiny", **EVERYTHING, **options)
    model = CVAE(run.model).to("meta").train()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    state = TrainState(
        model, Unroll(model), torch.optim.SGD(model.parameters()), {"noise": torch.Generator()}, average
    )
    results = list(a_step(state, run.train, torch.device("meta"), ratio))
    assert len(looks) == len(results) == state.step > 1
    assert all(values.device.type == "meta" for values in looks)
    with pytest.raises((RuntimeError, NotImplementedError)):
        looks[0].cpu()  # as it would have, had anything else looked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_step_on_a_gpu_waits_once(ratio, monkeypatch):
    look = training._looked_at

    def allowed(values):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return look(values)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    run = RunConfig.from_params("tiny", device="cuda", width=8, **EVERYTHING)
    state = TrainState.create(run.model, run.train)
    steps = a_step(state, run.train, torch.device("cuda"), ratio)
    next(steps)  # libraries choose their kernels in the first
    monkeypatch.setattr(training, "_looked_at", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(steps)) > 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
