"""Prediction steps and training unrolls as CUDA graphs. A graph runs with one launch instead of hundreds.

On a GPU, launching a small layer from Python takes longer than the layer itself. A CUDA graph removes the time for
launching.
"""

import logging
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout.reference import Feedback, UnrollOutput
from cvae_lab.rollout.step_groups import StepGroups
from cvae_lab.rollout.unroll import unroll

_log = logging.getLogger(__name__)

WARM_UP_CALLS = 3  # calls before recording, in which libraries choose kernels and allocate workspace
MAX_FRAMES = 256  # predicted frames per batch; with more, launching kernels takes less time than running them
MAX_GRAPHS = 4  # recorded training graphs; each keeps the memory of one forward and backward pass


class CudaGraphFunction:
    """CUDA graph of `function`. Calling it gives the same result as calling `function`. CUDA only.

    The constructor records the graph. A call copies its arguments into the recorded memory, replays the kernels and
    returns copies of the results.

    Args:
        function: a function from tensors to a tuple of tensors. It must not synchronise or draw random numbers.
        example: arguments with the shapes and dtypes of all later calls.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], example: Sequence[Tensor]) -> None:
        self.arguments = [tensor.clone() for tensor in example]
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP_CALLS):
                function(*self.arguments)
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = function(*self.arguments)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        for recorded, current in zip(self.arguments, arguments, strict=True):
            recorded.copy_(current)
        self.graph.replay()
        return tuple(result.clone() for result in self.results)


class GraphedUnroll:
    """The result and the gradients of `unroll`, computed by CUDA graphs where possible. CUDA only.

    One pair of graphs, forward and backward, is recorded at the first batch of each shape. `unroll` runs without graphs
    in four cases: some but not all steps after the first are teacher-forced, more than MAX_FRAMES frames, dropout, and
    MAX_GRAPHS other shapes are recorded. If recording fails, the reason is logged, and every later batch runs without
    graphs.
    """

    def __init__(self, model: CVAE) -> None:
        self.model = model
        self.graphs: dict[Hashable, Callable[..., tuple[Tensor, ...]]] = {}
        self.failed = False

    def __call__(self, x: Tensor, p: Tensor, eps: Tensor, feedback: Feedback) -> UnrollOutput:
        """Return the result of `unroll` for these arguments, in the autocast state of the caller."""
        key = self._key(x, feedback)
        if key is None or (key not in self.graphs and len(self.graphs) >= MAX_GRAPHS):
            return unroll(self.model, x, p, eps, feedback)
        arguments = [x, p, eps] if feedback.noise is None else [x, p, eps, feedback.noise]
        if key not in self.graphs:
            try:
                self.graphs[key] = self._record(arguments, feedback)
            except (RuntimeError, AssertionError) as error:
                self.failed = True
                _log.warning(f"Training runs without CUDA graphs, because recording failed: {error}")
                return unroll(self.model, x, p, eps, feedback)
        prediction, mu, logvar, *prior = self.graphs[key](*arguments)
        return UnrollOutput(prediction, mu, logvar, tuple(prior) or None)

    def _key(self, x: Tensor, feedback: Feedback) -> Hashable | None:
        """Return what a recorded graph depends on, or None if this batch must run without graphs."""
        later_steps = feedback.teacher_forced[:, 1:]
        all_forced, none_forced = bool(later_steps.all()), not bool(later_steps.any())
        frames, kind = x.shape[0] * (x.shape[1] - 1), x.device.type
        if self.failed or not self.model.training or not torch.is_grad_enabled() or self.model.config.dropout:
            return None
        if frames > MAX_FRAMES or not (all_forced or none_forced):
            return None
        precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        return (x.shape, all_forced, feedback.bptt, feedback.noise is None, *precision)

    def _record(self, arguments: Sequence[Tensor], feedback: Feedback) -> Callable[..., tuple[Tensor, ...]]:
        """Record the forward and the backward pass. Weights, buffers and gradients are the same afterwards."""
        kind = arguments[0].device.type
        network = _Unroll(self.model, feedback, arguments[0].device)
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        # The recorded function enables autocast, so that autocast's cache contains no tensors from outside the graph.
        with torch.autocast(kind, enabled=False):
            graphed = torch.cuda.make_graphed_callables(
                network, tuple(tensor.clone() for tensor in arguments), allow_unused_input=True
            )
        with torch.no_grad():  # the calls before recording update batch-norm statistics
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        return graphed


class _Unroll(nn.Module):
    """Module that computes `unroll` from tensors, with the mask and the autocast state of its construction."""

    def __init__(self, model: CVAE, feedback: Feedback, device: torch.device) -> None:
        super().__init__()
        self.model, self.feedback = model, feedback._replace(noise=None)
        self.groups = StepGroups.of(feedback.teacher_forced, device)
        kind = device.type
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def forward(self, x: Tensor, p: Tensor, eps: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        torch.clear_autocast_cache()
        with torch.autocast(*self.autocast):
            out = unroll(self.model, x, p, eps, self.feedback._replace(noise=noise), self.groups)
        torch.clear_autocast_cache()  # if contexts are nested, the inner one does not clear it
        return (*out[:3], *(out.prior or ()))
