"""A function of tensors as a CUDA graph: one launch where Python makes hundreds, which small layers wait for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # calls before recording, in which libraries choose their kernels and set aside memory


class Captured:
    """`function`, recorded at construction and replayed by each call.

    Equal to calling it: a replay runs the recorded kernels on the recorded memory, into which a call copies its
    arguments and out of which it copies the results. All arguments are tensors of the shapes and types of
    `example`; `function` gives a tuple of tensors, waits for nothing and draws no numbers. CUDA only.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], example: Sequence[Tensor]) -> None:
        self.arguments = [tensor.clone() for tensor in example]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function(*self.arguments)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = function(*self.arguments)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        for held, given in zip(self.arguments, arguments, strict=True):
            held.copy_(given)
        self.graph.replay()
        return tuple(result.clone() for result in self.results)
