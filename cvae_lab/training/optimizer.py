"""Optimizers by name: Adam, AdamW and Adamax of PyTorch, and Muon for convolution kernels."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from cvae_lab.config import TrainConfig

MIN_CHANNELS = 8  # AdamW updates kernels with fewer input or output channels


def make_optimizer(model: nn.Module, config: TrainConfig) -> "torch.optim.Optimizer | Muon":
    """Return the optimizer with the name `config.optimizer`. Adam and AdamW have the fused implementation."""
    if config.optimizer == "muon":
        return Muon(model, config.lr, config.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer != "adamax":
        options["fused"] = True
    return kinds[config.optimizer](model.parameters(), **options)


_MOMENTS = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "Adamax": {"step", "exp_avg", "exp_inf"},
    "Muon": {"momentum_buffer"},
}


def restore_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the moments of a saved optimizer state, but keep the current learning rate and other settings.

    Raises ValueError if the moments do not belong to these parameters or are not finite.
    """
    current = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = _MOMENTS[type(optimizer).__name__]
    for index, values in saved["state"].items():
        if set(values) != names or not all(isinstance(value, Tensor) for value in values.values()):
            raise ValueError(f"moments of parameter {index}: {sorted(values)} instead of {sorted(names)}")
        for name, value in values.items():
            expected = torch.Size() if name == "step" else parameters[index].shape
            if value.shape != expected or not value.isfinite().all():
                raise ValueError(f"{name} of parameter {index} has the wrong shape or is not finite")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": current["param_groups"]})


class Muon:
    """`torch.optim.Muon` for convolution kernels, and AdamW for all other parameters.

    Muon orthogonalises the momentum of a matrix (Jordan et al. 2024). The parameters of Muon must be matrices, so every
    kernel is passed as a view with one row per output channel. Steps of Muon are scaled to the size of AdamW steps, so
    that both have the same learning rate (Liu et al. 2025, section 2.2).
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        self.kernels = [p for p in model.parameters() if p.ndim == 4 and min(p.shape[:2]) >= MIN_CHANNELS]
        self.matrices = [_as_matrix(kernel, kernel.detach()) for kernel in self.kernels]
        kernels = {id(kernel) for kernel in self.kernels}
        others = [p for p in model.parameters() if id(p) not in kernels]
        self.muon = torch.optim.Muon(
            self.matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, lr, weight_decay=weight_decay, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of both optimizers, in which a schedule sets the learning rates."""
        return [*self.muon.param_groups, *self.adamw.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Moments of both optimizers, by parameter or matrix."""
        return {**self.muon.state, **self.adamw.state}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients."""
        for parameter in itertools.chain(self.kernels, self.matrices):
            parameter.grad = None
        self.adamw.zero_grad(set_to_none)

    def step(self) -> None:
        """Take one step of both optimizers; a kernel without a gradient stays unchanged."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel, kernel.grad)
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        restore_moments(self.muon, state["muon"])
        restore_moments(self.adamw, state["adamw"])


def _as_matrix(kernel: Tensor, values: Tensor) -> Tensor:
    """Reshape values to (output channels, rest). The result of a kernel is a view of the same memory."""
    if kernel.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.view(len(kernel), -1) if values.is_contiguous() else values.reshape(len(kernel), -1)
