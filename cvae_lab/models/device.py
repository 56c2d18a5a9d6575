"""Where a model computes and at which precision."""

import os

import torch

from cvae_lab.config import ConfigError, TrainConfig


def pick_device(name: str = "auto") -> torch.device:
    """Return the device: for `auto`, CUDA where there is a GPU, otherwise the CPU.

    Under torchrun, each rank of a machine gets its own GPU. Raises ConfigError for `cuda` without a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch finds no CUDA GPU; set device = 'auto' or 'cpu'.")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions. `auto`: bfloat16 on CUDA and on CPUs with instructions for it, else float32."""
    if config.precision != "auto":
        return getattr(torch, config.precision)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    native = device.type == "cuda" or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def reduced_precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """A context in which convolutions run at the precision of `precision_of`; losses and norms stay float32."""
    return torch.autocast(device.type, torch.bfloat16, precision_of(config, device) == torch.bfloat16)
