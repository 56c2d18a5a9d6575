"""Prediction and training steps replayed from a CUDA graph on a GPU, or from an emulated graph on a CPU."""

import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from cvae_lab.config import ModelConfig, TrainConfig
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import Feedback, cuda_graph, reference_predict, reference_unroll
from cvae_lab.training import distributed
from cvae_lab.training.state import uses_graphs

fast = sys.modules["cvae_lab.rollout.predict"]  # the module; the package exports a function of this name

FRAMES = 40


class Recorder(TorchDispatchMode):
    """Emulated CUDA graph: it records operations on fixed memory once and repeats them."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, held in self.tape:
            again = func(*args, **kwargs)
            pairs = zip(_tensors(held), _tensors(again), strict=True)
            for kept, new in pairs:
                kept.copy_(
                    new.reshape(kept.shape)
                )  # an operation such as squeeze_ changes the shape of `kept`


def _tensors(tree):
    found = []
    tree_map_only(torch.Tensor, found.append, tree)
    return found


@pytest.fixture
def emulated(monkeypatch):
    """Replace CUDA graphs by emulated ones, and return the list of recorded graphs."""
    recorded = []

    @contextmanager
    def record(recorder):
        recorded.append(recorder)
        with recorder:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fake = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda aside: nullcontext(),
        CUDAGraph=Recorder,
        graph=record,
    )
    monkeypatch.setattr(cuda_graph, "torch", SimpleNamespace(cuda=fake))
    monkeypatch.setattr(fast, "uses_cuda_graphs", lambda device: True)
    monkeypatch.setattr(fast, "folds", lambda model, device: False)
    return recorded


def build(preset, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CVAE(ModelConfig.preset(preset, **settings))
        with torch.no_grad():
            for value in model.parameters():
                value += 0.03 * torch.randn_like(value)
    return model


CASES = [("handout", {}, (4, 6)), ("compact", {"width": 8, "latents": 2}, (8, 16))]
CASES += [("compact", {"width": 8, "latents": 2, "prior": "learned"}, (8, 16))]


def inputs(size, frames=FRAMES, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, *size, generator=generator)
    return x.to(device), torch.rand(2, frames, 3, *size, generator=generator).to(device)


@pytest.mark.parametrize(("preset", "settings", "size"), CASES)
def test_replayed_steps_equal_the_reference_loop(emulated, preset, settings, size):
    model, (first, labels) = build(preset, **settings), inputs(size)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    ours = fast.predict(model, first, labels, seeds[0])
    assert len(emulated) == 1  # one recording for all steps
    wanted = reference_predict(model.eval(), first, labels, seeds[1])
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_short_clips_are_predicted_without_a_graph(emulated):
    model, (first, labels) = build(*CASES[1][:1], **CASES[1][1]), inputs((8, 16), fast.MIN_FRAMES_FOR_GRAPH)
    fast.predict(model, first, labels)
    assert emulated == []


def test_results_are_not_overwritten_by_the_next_replay(emulated):
    captured = cuda_graph.CudaGraphFunction(lambda a, b: (a + b, a * b), [torch.zeros(2), torch.zeros(2)])
    total, product = captured(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    captured(torch.tensor([9.0, 9.0]), torch.tensor([9.0, 9.0]))
    assert total.tolist() == [4, 6]
    assert product.tolist() == [3, 8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("preset", "settings", "size"), CASES)
def test_on_a_gpu_replayed_steps_equal_the_reference_loop(preset, settings, size):
    model, (first, labels) = build(preset, **settings).cuda(), inputs(size, device="cuda")
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    ours = fast.predict(model, first, labels, seeds[0])
    wanted = reference_predict(model.eval(), first, labels, seeds[1])
    torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-3)


@pytest.fixture
def emulated_training(monkeypatch):
    """Replace `make_graphed_callables` by an emulation on the CPU. Return the list of emulated recordings."""
    recorded = []

    def make(network, example, allow_unused_input):
        assert not torch.is_autocast_enabled("cpu")  # torch refuses to record with autocast's cache
        parameters = tuple(network.parameters())
        for _ in range(3):
            network(*example)
        forward, backward = Recorder(), Recorder()
        with forward:
            results = network(*example)
        slots = [torch.full_like(result, torch.nan) for result in results]
        with backward:
            gradients = torch.autograd.grad(results, parameters, slots, allow_unused=allow_unused_input)
        recorded.append((forward, backward))

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                for place, value in zip(example, inputs, strict=False):
                    place.copy_(value)
                forward.replay()
                return tuple(result.detach() for result in results)

            @staticmethod
            def backward(ctx, *incoming):
                for slot, value in zip(slots, incoming, strict=True):
                    slot.copy_(value)
                backward.replay()
                found = (None if g is None else g.detach() for g in gradients)
                return (*(None for _ in example), *found)

        return lambda *arguments: Replay.apply(*arguments, *parameters)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return recorded


def train(model, forward, forced, noise, steps=3):
    """Take SGD steps on different batches. Return the gradients of the last step, and all buffers."""
    optimizer, mask = torch.optim.SGD(model.parameters(), lr=1e-3), torch.full((2, 3), forced)
    mask[:, 0] = True
    kind = next(model.parameters()).dtype
    for step in range(steps):
        draws = torch.Generator().manual_seed(step)
        x, p = torch.rand(2, 2, 4, 3, 8, 16, generator=draws, dtype=kind)
        eps = torch.randn(2, 3, *model.latent_shape(8, 16), generator=draws, dtype=kind)
        added = 0.1 * torch.randn(2, 3, 3, 8, 16, generator=draws, dtype=kind) if noise else None
        out = forward(x, p, eps, Feedback(mask, noise=added))
        optimizer.zero_grad()
        losses = [out.prediction.square().mean(), out.mu.square().mean(), out.logvar.square().mean()]
        losses += [part.square().mean() for part in out.prior or ()]
        sum(losses).backward()
        optimizer.step()
    return {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("preset", "settings", "_"), CASES)
def test_replayed_training_steps_have_the_gradients_of_the_reference_loop(
    emulated_training, preset, settings, _, noise, forced
):
    model, same = (build(preset, **settings).double().train() for _ in range(2))
    ours = train(model, cuda_graph.GraphedUnroll(model), forced, noise)
    assert len(emulated_training) == 1  # one recording for three steps
    wanted = train(same, partial(reference_unroll, same), forced, noise)
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            ours[name], value, atol=1e-7, rtol=1e-4, msg=name
        )  # batch norm is in float32


def test_autocast_is_part_of_the_recording(emulated_training):
    model, same = (build(*CASES[1][:1], **CASES[1][1]).train() for _ in range(2))
    graphs = cuda_graph.GraphedUnroll(model)

    def reduced(forward):
        def run(*arguments):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(*arguments)

        return run

    ours = train(model, reduced(graphs), False, False)
    assert len(emulated_training) == 1
    wanted = train(same, reduced(partial(cuda_graph.unroll, same)), False, False)
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=1e-4, msg=name)
    train(model, graphs, False, False, steps=1)
    assert len(emulated_training) == 2  # without autocast, another graph is needed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": [[1, 0, 1], [1, 1, 0]]}, "the mask differs from step to step"),
        ({"eval": True}, "the model is not in training mode"),
        ({"dropout": 0.1}, "a recording must not draw random numbers"),
        ({"frames": 5}, "the batch has more than MAX_FRAMES frames"),
        ({"graphs": 0}, "the number of graphs is limited"),
    ],
)
def test_other_batches_run_without_a_graph(emulated_training, monkeypatch, change, reason):
    monkeypatch.setattr(cuda_graph, "MAX_FRAMES", change.get("frames", 256))
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", change.get("graphs", 4))
    model = build("compact", width=8, latents=2, dropout=change.get("dropout", 0.0))
    model.train(not change.get("eval"))
    x, p = torch.rand(2, 2, 4, 3, 8, 16)
    mask = torch.tensor(change.get("mask", [[1, 0, 0]] * 2), dtype=torch.bool)
    eps = torch.zeros(2, 3, *model.latent_shape(8, 16))
    cuda_graph.GraphedUnroll(model)(x, p, eps, Feedback(mask)).prediction.mean().backward()
    assert emulated_training == [], reason


def test_a_recording_that_fails_is_reported_once_and_training_continues(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    model, same = (build("handout").train() for _ in range(2))
    ours = train(model, cuda_graph.GraphedUnroll(model), False, False)
    assert caplog.text.count("operation not permitted") == 1
    wanted = train(same, partial(cuda_graph.unroll, same), False, False)
    for name, value in wanted.items():
        assert torch.equal(ours[name], value), name


def test_graphs_are_used_on_one_gpu_unless_they_are_turned_off(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert uses_graphs(TrainConfig(), gpu)
    assert not uses_graphs(TrainConfig(cuda_graphs=False), gpu)
    assert not uses_graphs(TrainConfig(), cpu)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert not uses_graphs(TrainConfig(), gpu)
