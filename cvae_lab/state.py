"""All that changes while a model trains: weights, optimiser, averages, generators, history."""

import copy
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from cvae_lab import parallel
from cvae_lab.config import ConfigError, ModelConfig, TrainConfig
from cvae_lab.cvae import CVAE
from cvae_lab.device import answers_at_once, pick_device
from cvae_lab.optimiser import Muon, make_optimiser
from cvae_lab.rollout import Unroll

Record = dict[str, float | int]
"""What one epoch leaves behind; the columns of history.csv."""


@dataclass
class TrainState:
    """All that changes while a model trains, and so all that a checkpoint must hold."""

    model: CVAE
    network: nn.Module  # the model's unroll, its gradients averaged over ranks where there are several
    optimiser: torch.optim.Optimizer | Muon
    generators: dict[str, torch.Generator]
    average: dict[str, Tensor] | None = None
    epoch: int = 0
    step: int = 0
    elapsed: float = 0.0
    history: list[Record] = field(default_factory=list)
    skipped_in_a_row: int = 0
    kl_weight: float = 1.0  # beta where a controller moves it

    @classmethod
    def create(cls, model_config: ModelConfig, config: TrainConfig) -> "TrainState":
        """Fresh weights and generators, all from `config.seed`; the caller's random state is left as it was."""
        device = pick_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = CVAE(model_config).to(device, memory_format=torch.channels_last)
        places = {"clips": "cpu", "coins": "cpu", "augment": "cpu", "noise": device}
        generators = {
            name: torch.Generator(place).manual_seed(1000 * config.seed + index)
            for index, (name, place) in enumerate(places.items())
        }
        average = {k: v.clone() for k, v in model.state_dict().items()} if config.ema else None
        generators["noise"].manual_seed(1000 * config.seed + len(places) + 100_003 * parallel.rank())
        return cls(
            model,
            parallel.wrap(Unroll(model)),
            make_optimiser(model, config),
            generators,
            average,
            kl_weight=config.beta_max,
        )

    def averaged_model(self) -> CVAE:
        """A copy of the model with the averaged weights (its own where none are kept)."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average or self.model.state_dict())
        return model

    def take_step(self, fine: Bool[Tensor, ""], ema: float) -> None:
        """One step of the optimiser and of the average. Not `fine`: it counts, and weights, moments, average stay."""
        self.step += 1
        if answers_at_once(fine.device):
            if fine:
                self._move(ema)
            return
        # Made, and taken back on the device where it was not fine, so that nobody waits to know.
        before = self._bits()
        before = dict(zip(before, torch._foreach_add([*before.values()], 0), strict=True))
        self._move(ema)
        after = self._bits()  # moments are made, as noughts, at the first step
        old = [before[key] if key in before else torch.zeros_like(bits) for key, bits in after.items()]
        now = [*after.values()]
        torch._foreach_sub_(now, old)
        torch._foreach_mul_(now, fine.int())
        torch._foreach_add_(now, old)

    def _move(self, ema: float) -> None:
        self.optimiser.step()
        self.update_average(ema)

    def _bits(self) -> dict[int, Tensor]:
        """All that a step changes, by identity, as integers: 0 times nan is nan, but 0 times its bits is 0."""
        moments = [value for parts in self.optimiser.state.values() for value in parts.values()]
        moving = [*self.model.parameters(), *(self.average or {}).values(), *moments]
        device = moving[0].device
        return {
            id(part): part.detach().view(torch.int32)
            for part in moving
            if part.dtype == torch.float32 and part.device == device
        }

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Exponential moving average of the weights, its decay warmed up so that early weights do not linger."""
        if self.average is None:
            return
        weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        floats = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floats], [current[n] for n in floats], weight)
        for name in current.keys() - set(floats):
            self.average[name].copy_(current[name])

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that it loads with `weights_only=True`."""
        return {
            "state_dict": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "epoch": self.epoch,
            "step": self.step,
            "elapsed": self.elapsed,
            "kl_weight": self.kl_weight,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["state_dict"])
        if self.average is not None:
            device = next(self.model.parameters()).device
            self.average = {name: value.to(device) for name, value in state["average"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        for name, generator in self.generators.items():
            try:
                generator.set_state(state["generators"][name].cpu())
            except RuntimeError as error:
                raise ConfigError(
                    "the run was begun on another kind of device (CPU or CUDA), whose noise cannot go on here; "
                    "resume it on that kind, or start afresh in another folder."
                ) from error
        if parallel.rank():  # the file holds rank 0's noise; the others must not repeat it
            noise = self.generators["noise"]
            noise.manual_seed(noise.initial_seed() + 100_003 * parallel.rank() + state["step"])
        self.epoch, self.step, self.elapsed = state["epoch"], state["step"], state["elapsed"]
        self.history, self.kl_weight = list(state["history"]), state["kl_weight"]


class Clock:
    """Progress of a run, by steps or by a time budget that all ranks agree on."""

    def __init__(self, config: TrainConfig, state: TrainState, steps_per_epoch: int) -> None:
        self.config, self.state, self.per_epoch = config, state, steps_per_epoch
        self.started = time.monotonic() - state.elapsed
        self.step_in_epoch = 0

    def elapsed(self) -> float:
        """Seconds since the run began, those before a resumption included."""
        return time.monotonic() - self.started

    def progress(self) -> float | Fraction:
        """In [0, 1), as schedules want it: a step may begin when a time budget has just run out."""
        return min(self._spent(), 1 - 1e-9) if self.config.minutes else self._spent()

    def over(self) -> bool:
        """Whether all steps are done, or the budget is spent."""
        return self._spent() >= 1

    def _spent(self) -> float | Fraction:
        if self.config.minutes:
            return parallel.agreed(self.elapsed() / (60 * self.config.minutes))
        done = self.state.epoch * self.per_epoch + self.step_in_epoch
        return Fraction(done, self.config.epochs * self.per_epoch)
