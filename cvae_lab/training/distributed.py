"""Data-parallel training of one run over several processes or machines under `torchrun`.

Every rank draws the same clips, teacher-forcing mask and augmentation, and then trains on its own shard of the batch.
Only the noise differs between ranks. Gradients are averaged over ranks, so a step equals a step of one process on the
whole batch. Two values are computed by each rank from its own shard only: the batch-norm statistics of `handout`, and
the mean KL that is clamped for free bits. With one process, the functions of this module have no effect.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, from 0. Only rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started, by NCCL for CUDA and Gloo for CPU; do nothing without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # otherwise every rank would use the first GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        dist.barrier()  # the first rank that ends would close connections that other ranks still use
    finally:
        gc.collect()  # a discarded DDP object in a reference cycle would keep threads of the group alive until exit
        dist.destroy_process_group()


def data_parallel(network: nn.Module) -> nn.Module:
    """Wrap the network so that its gradients are averaged over ranks. With one process, return it unchanged."""
    return DistributedDataParallel(network) if world() > 1 else network


def shard(rows: Tensor) -> Tensor:
    """Return this rank's rows of a batch: every n-th row, where n is the number of processes.

    All ranks have the same number of rows. The rows that remain are dropped.
    """
    whole = len(rows) // world() * world()
    return rows[rank() : whole : world()]


def from_rank_0(value: float) -> float:
    """Return the value of rank 0 on every rank, so that all ranks take the same decision."""
    if world() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def summed(values: Tensor) -> Tensor:
    """Return the sum over ranks of a small tensor, on the same device."""
    if world() == 1:
        return values.detach()
    shared = values.detach().clone()
    dist.all_reduce(shared)
    return shared
