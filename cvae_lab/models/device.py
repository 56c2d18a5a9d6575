"""Choice of the device and of the precision of convolutions."""

import os

import torch

from cvae_lab.config import ConfigError, TrainConfig

BFLOAT16_CAPABILITY = (8, 0)
"""Lowest compute capability of NVIDIA GPUs with bfloat16 units. Older GPUs (P100, V100, T4) emulate bfloat16 slowly."""


def pick_device(name: str = "auto") -> torch.device:
    """Return the device with this name. `auto` is CUDA if there is a GPU, otherwise the CPU.

    Under torchrun, each rank of a machine has its own GPU, unless `name` has a number. Raises ConfigError if this
    machine does not have the device.

    Args:
        name: `auto`, `cpu`, `cuda`, one GPU such as `cuda:1`, or `mps` (the GPU of an Apple computer).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device = 'mps', but torch finds no Apple GPU; set device = 'auto' or 'cpu'.")
    if not name.startswith("cuda"):
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}, but torch finds no CUDA GPU; set device = 'auto' or 'cpu'.")
    if name == "cuda":
        return torch.device(name, int(os.environ.get("LOCAL_RANK", 0)))
    device, count = torch.device(name), torch.cuda.device_count()
    if device.index >= count:
        present = "1 GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise ConfigError(f"device = {name!r}, but this machine has {present}; choose one of these.")
    return device


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions.

    `auto` is bfloat16 on GPUs and CPUs with bfloat16 instructions, and float32 elsewhere. Apple GPUs use float32.
    """
    if device.type == "mps":
        if config.precision == "bfloat16":
            raise ConfigError(
                "precision = 'bfloat16' is not supported on mps; set precision = 'auto' or 'float32'."
            )
        return torch.float32
    if config.precision != "auto":
        return getattr(torch, config.precision)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def precision_notice(config: TrainConfig, device: torch.device) -> str | None:
    """Return a sentence if the GPU has no bfloat16 units, so that float32 or emulated bfloat16 is used.

    float16 is not offered. The range of float16 ends at 65,504 and its smallest normal number is 6e-5, but KL weights
    of this project are as small as 1e-6. Every training step would need a scaled loss.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    gpu = f"The GPU (compute capability {major}.{minor}) has no bfloat16 units"
    if precision_of(config, device) == torch.bfloat16:
        return f"{gpu}, so precision = 'bfloat16' is emulated and slow; set precision = 'auto' for float32."
    return f"{gpu}, so the precision is float32."


def reduced_precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Return a context in which convolutions have the dtype of `precision_of`. Losses and norms have float32."""
    return torch.autocast(device.type, torch.bfloat16, precision_of(config, device) == torch.bfloat16)
