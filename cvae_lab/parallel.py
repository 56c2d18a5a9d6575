"""One run over several processes or machines under `torchrun`; with a single process all of this is nothing.

Every rank draws the same clips, coins and augmentation, then works on its own share of the batch; only the noise
differs by rank. Gradients are averaged, so a step equals that of one process with the joined batch; two things
are each rank's own, over its share: the statistics of the handout's batch norm, and the means that free bits clamp.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; rank 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started: nccl for what lies on GPUs, gloo for what lies on CPUs."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else every rank would take the first GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(network: nn.Module) -> nn.Module:
    """The network, with its gradients averaged over ranks where there are several."""
    return DistributedDataParallel(network) if world() > 1 else network


def share(rows: Tensor) -> Tensor:
    """This rank's rows of a joined batch: every world-th, equally many for each rank, a remainder dropped."""
    whole = len(rows) // world() * world()
    return rows[rank() : whole : world()]


def agreed(value: float) -> float:
    """Rank 0's value, so that clocks that differ by a moment do not part the ranks."""
    if world() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def summed(values: Tensor) -> Tensor:
    """The sum over ranks of a small tensor, where it lies."""
    if world() == 1:
        return values.detach()
    shared = values.detach().clone()
    dist.all_reduce(shared)
    return shared
