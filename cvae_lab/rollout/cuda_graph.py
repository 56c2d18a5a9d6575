"""A function of tensors recorded as a CUDA graph, replayed with one launch instead of hundreds.

On a GPU, small layers finish faster than Python can launch them. A CUDA graph removes that overhead.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # before recording; libraries choose their kernels and allocate workspace in them


class CudaGraphFunction:
    """`function`, recorded when constructed and replayed by each call; equal to calling it. CUDA only.

    A call copies its arguments into the recorded memory, replays the kernels and copies the results out.

    Args:
        function: takes tensors, returns a tuple of tensors, does not synchronise and draws no random numbers.
        example: arguments of the shapes and dtypes that all calls will have.
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
