"""Optimisers by name: the library's, and Muon for networks made of convolutions."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
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
        self.muon = JointMuon(self.matrices, lr, weight_decay)
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

    def step(self) -> None:
        """One step of both; a kernel with no gradient stays as it is."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel, kernel.grad)
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Momentum of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


class JointMuon(torch.optim.Muon):
    """The library's Muon at the size of AdamW's steps, all matrices together and in their own precision.

    The library takes them one by one, in bfloat16, which on two CPU cores takes two and a half times as long. What
    it saves is the library's, so that a run of either goes on with the other.
    """

    def __init__(self, matrices: Sequence[Float[Tensor, "_ _"]], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self) -> None:
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            moved = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not moved:
                continue
            gradients = [matrix.grad for matrix in moved]
            momenta = [self._momentum(matrix) for matrix in moved]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            steps = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            steps = orthogonalised(steps, group["ns_coefficients"], group["ns_steps"], group["eps"])
            torch._foreach_mul_(steps, [-0.2 * math.sqrt(max(m.shape)) * group["lr"] for m in moved])
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moved, steps)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonalised(
    matrices: Sequence[Float[Tensor, "_ _"]], coefficients: tuple[float, float, float], steps: int, eps: float
) -> list[Float[Tensor, "_ _"]]:
    """Each matrix X as the Newton-Schulz iteration of Muon leaves it: with singular values near 1, or still 0.

    X / |X| is multiplied `steps` times by P = a + b G + c G G, where G = X X^T (Jordan et al. 2024). All P are
    polynomials of the first G, so here G goes on by itself, as P G P, and X meets the product of all P once: the small
    matrices between go as one batch of equal sizes.
    """
    a, b, c = coefficients
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    done = list(wide)
    for side in {len(matrix) for matrix in wide}:
        alike = [index for index, matrix in enumerate(wide) if len(matrix) == side]
        gram = torch.stack([wide[index] @ wide[index].T for index in alike])
        norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=eps)[:, None, None]
        gram, product = gram / norm.square(), torch.eye(side, dtype=gram.dtype, device=gram.device) / norm
        for _ in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            gram, product = factor @ gram @ factor, factor @ product
        for index, factor in zip(alike, product, strict=True):
            done[index] = factor @ wide[index]
    return [to if to.shape == like.shape else to.T for to, like in zip(done, matrices, strict=True)]


def _as_matrix(kernel: Tensor, values: Tensor) -> Tensor:
    """Values laid out like the kernel as (output channels, rest): of the kernel itself a view, never a copy."""
    if kernel.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.view(len(kernel), -1) if values.is_contiguous() else values.reshape(len(kernel), -1)
