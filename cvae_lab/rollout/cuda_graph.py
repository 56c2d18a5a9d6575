"""Functions of tensors as CUDA graphs. A graph runs with one launch instead of hundreds.

On a GPU, small layers finish faster than Python can launch them. A CUDA graph removes this overhead.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # calls before recording, in which libraries choose kernels and allocate workspace


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
