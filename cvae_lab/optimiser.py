"""Optimisers by name: the library's, and Muon for networks made of convolutions."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cvae_lab.config import TrainConfig


def make_optimiser(model: nn.Module, config: TrainConfig) -> "torch.optim.Optimizer | Muon":
    """Adam, AdamW, Adamax or Muon, fused where the library offers it."""
    if config.optimiser == "muon":
        return Muon(model, config.lr, config.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimiser != "adamax":
        options["fused"] = True
    return kinds[config.optimiser](model.parameters(), **options)


class Muon:
    """Orthogonalised momentum for convolutions, AdamW for biases, norms and whatever touches few channels.

    The library's Muon takes matrices only, so each kernel lends it a view of itself, one row per output channel
    (Jordan et al. 2024). Its steps are scaled to the size of AdamW's, so one learning rate serves both (Liu et al.
    2025, section 2.2).
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        self.kernels = [p for p in model.parameters() if p.ndim == 4 and min(p.shape[:2]) >= 8]
        self.matrices = [_as_matrix(kernel, kernel.detach()) for kernel in self.kernels]
        own = {id(kernel) for kernel in self.kernels}
        others = [p for p in model.parameters() if id(p) not in own]
        self.muon = torch.optim.Muon(
            self.matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, lr, weight_decay=weight_decay, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both, so that a schedule can set their learning rates."""
        return [*self.muon.param_groups, *self.adamw.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Momentum of both, by the parameter or matrix it belongs to."""
        return {**self.muon.state, **self.adamw.state}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in itertools.chain(self.kernels, self.matrices):
            parameter.grad = None
        self.adamw.zero_grad(set_to_none)

    def step(self, closure: Callable | None = None) -> None:
        """One step of both; a kernel with no gradient stays as it is."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel, kernel.grad)
        self.muon.step(closure)
        self.adamw.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Momentum of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def _as_matrix(kernel: Tensor, values: Tensor) -> Tensor:
    """Values laid out like the kernel as (output channels, rest): of the kernel itself a view, never a copy."""
    if kernel.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.view(len(kernel), -1) if values.is_contiguous() else values.reshape(len(kernel), -1)
