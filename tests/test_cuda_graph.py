"""Prediction steps replayed from a CUDA graph on a GPU, or from an emulated graph on a CPU."""

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from cvae_lab.config import ModelConfig
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import cuda_graph, reference_predict

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
                kept.copy_(new)


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
