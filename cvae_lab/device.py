"""The machine at hand: where to compute, at which precision, with what memory."""

import ctypes
import os
import sys

import torch
from torch import Tensor

from cvae_lab.config import ConfigError, TrainConfig


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA where there is one, else the CPU. Under torchrun each rank of a machine has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch finds no CUDA GPU here; say device = 'auto' or 'cpu'.")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on CUDA and on CPUs with instructions for it (about 1.4 times faster), else float32."""
    if config.precision != "auto":
        return getattr(torch, config.precision)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    native = device.type == "cuda" or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def reduced_precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """A context in which convolutions run at the precision of `precision_of`; losses and norms stay float32."""
    return torch.autocast(device.type, torch.bfloat16, precision_of(config, device) == torch.bfloat16)


def answers_at_once(device: torch.device) -> bool:
    """Whether a value can be read without waiting for work that was sent ahead: not on a GPU."""
    return device.type == "cpu"


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on their way to `device`: a GPU fetches those of the CPU when it needs them, and nobody waits."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def keep_memory() -> bool:
    """Let this process keep what memory it frees, since the next step needs as much again; False: not possible here.

    By default glibc hands large blocks back to the system, which clears every page of them anew at the next step.
    For a process whose work is a run: it holds until the process ends (mallopt(3)).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    # As malloc.h numbers them: no block lies apart from the heap, and none of its end is given back.
    mmap_max, trim_threshold = (-4, 0), (-1, -1)
    return bool(mallopt and mallopt(*mmap_max) and mallopt(*trim_threshold))
