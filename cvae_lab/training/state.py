"""State of training: weights, optimizer, average of weights, random generators and history."""

import copy
import logging
import math
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvae_lab.config import ConfigError, ModelConfig, TrainConfig
from cvae_lab.data.clips import ClipBatch
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import pick_device, precision_notice
from cvae_lab.rollout import Feedback, UnrollOutput
from cvae_lab.rollout.cuda_graph import GraphedUnroll
from cvae_lab.rollout.unroll import unroll
from cvae_lab.training import distributed
from cvae_lab.training.optimizer import Muon, make_optimizer, restore_moments

_log = logging.getLogger(__name__)

STREAMS = ("weights", "clips", "teacher_forcing", "augment", "noise", "dropout")
"""Independent random streams of a run. Noise and dropout have one stream for each epoch and rank."""

Record = dict[str, float | int]
"""The values of one epoch: a row of history.csv."""


def stream_seed(seed: int, stream: str, *key: int) -> int:
    """Return the seed of a random stream.

    A child of `SeedSequence(seed)` generates the seed. The index of the child is the position in STREAMS, followed by
    `key`.

    Args:
        key: further indices of the child; for noise and dropout, the epoch and the rank.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *key))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)  # torch accepts seeds up to 2^63 - 1


class StepResult(NamedTuple):
    """The result of one training step."""

    loss: float
    mse: float
    kl: float  # nats per frame
    is_finite: bool  # whether loss and gradient are finite on all ranks; if not, the step was skipped
    kl_weight: float = math.nan  # factor of the KL in the loss: beta, converted to the scale of the loss

    @property
    def values(self) -> Float[Tensor, "3"]:
        """Loss, mse and KL as one tensor."""
        return torch.tensor(self[:3])


class TrainingForward(nn.Module):
    """Module whose `forward` is the whole training unroll, because DistributedDataParallel needs one such module.

    Args:
        graphs: use CUDA graphs where possible. The model must be on a GPU.
    """

    def __init__(self, model: CVAE, graphs: bool = False) -> None:
        super().__init__()
        self.model = model
        self.graphs = GraphedUnroll(model) if graphs else None

    def forward(
        self, batch: ClipBatch, eps: Float[Tensor, "b s z hz wz"], feedback: Feedback
    ) -> UnrollOutput:
        if self.graphs is not None:
            return self.graphs(batch.x, batch.p, eps, feedback)
        return unroll(self.model, batch.x, batch.p, eps, feedback)


@dataclass
class TrainState:
    """All values that a checkpoint must contain so that training continues exactly."""

    model: CVAE
    network: nn.Module  # TrainingForward of the model; gradients are averaged over all ranks
    optimizer: torch.optim.Optimizer | Muon
    generators: dict[str, torch.Generator]
    average: "WeightAverage | None" = None  # exponential moving average of the weights
    epoch: int = 0
    step: int = 0
    elapsed: float = 0.0  # duration of training in seconds, including the time before a resume
    history: list[Record] = field(default_factory=list)
    skipped_in_a_row: int = 0
    kl_weight: float = 1.0  # beta of the controller; used only with `kl_target`

    @classmethod
    def create(cls, model_config: ModelConfig, config: TrainConfig) -> "TrainState":
        """Create new weights and generators from `config.seed`. The global random state is not changed."""
        device = pick_device(config.device)
        notice = precision_notice(config, device)
        if notice and not distributed.rank():
            _log.warning(notice)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "weights"))
            model = CVAE(model_config).to(device, memory_format=torch.channels_last)
        places = {"clips": "cpu", "teacher_forcing": "cpu", "augment": "cpu", "noise": device}
        generators = {
            name: torch.Generator(place).manual_seed(stream_seed(config.seed, name))
            for name, place in places.items()
        }
        generators["noise"].manual_seed(stream_seed(config.seed, "noise", 0, distributed.rank()))
        return cls(
            model,
            distributed.data_parallel(TrainingForward(model, uses_graphs(config, device))),
            make_optimizer(model, config),
            generators,
            WeightAverage(model, config.ema) if config.ema else None,
            kl_weight=config.beta_max,
        )

    def evaluation_model(self) -> CVAE:
        """Return a copy of the model with the averaged weights, or with its own weights if there is no average."""
        return copy.deepcopy(self.model if self.average is None else self.average.module)

    def take_step(self, is_finite: bool) -> None:
        """Take one optimizer step and update the weight average.

        A step with a non-finite loss or gradient increments the step counter and leaves weights, optimizer state and
        average unchanged.
        """
        self.step += 1
        if is_finite:
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers and strings, so that its file can be read with `weights_only=True`."""
        average = self.average
        return {
            "state_dict": self.model.state_dict(),
            "average": None if average is None else average.module.state_dict(),
            "n_averaged": 0 if average is None else average.count,
            "optimizer": self.optimizer.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "epoch": self.epoch,
            "step": self.step,
            "elapsed": self.elapsed,
            "kl_weight": self.kl_weight,
            "history": self.history,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.model.load_state_dict(state["state_dict"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
            self.average.count = int(state["n_averaged"])
        if isinstance(self.optimizer, Muon):
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            restore_moments(self.optimizer, state["optimizer"])
        for name, generator in self.generators.items():
            try:
                generator.set_state(state["generators"][name].cpu())
            except (RuntimeError, TypeError) as error:
                raise ConfigError(
                    "its random state cannot be restored, because the run was started on another kind of device "
                    "(CPU or CUDA) or the file is damaged; resume the run on the same kind of device, or start a "
                    "new run in another folder"
                ) from error
        threads = state.get("threads")
        if threads and threads != torch.get_num_threads() and not distributed.rank():
            _log.warning(
                f"The run used {threads} CPU threads and resumes with {torch.get_num_threads()}. Sums are rounded "
                f"differently, so the results will differ slightly from an uninterrupted run."
            )
        self.epoch, self.step, self.elapsed = state["epoch"], state["step"], state["elapsed"]
        self.history, self.kl_weight = list(state["history"]), state["kl_weight"]


def uses_graphs(config: TrainConfig, device: torch.device) -> bool:
    """Whether training uses CUDA graphs: on one GPU, unless the configuration turns them off."""
    return config.cuda_graphs and device.type == "cuda" and distributed.world() == 1


class WeightAverage:
    """Exponential moving average of the weights and buffers of a model.

    Update n uses the decay min(decay, (1 + n) / (10 + n)), so that the contribution of the initial weights decreases
    quickly. The number n is counted on the CPU. With `torch.optim.swa_utils.AveragedModel`, every update would wait for
    the GPU.
    """

    def __init__(self, model: CVAE, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.count = 1  # number of averaged models, including the initial weights

    @torch.no_grad()
    def update(self, model: CVAE) -> None:
        """Add the current weights. Buffers that are not floating-point numbers are copied."""
        pairs = zip(_values(self.module), _values(model), strict=True)
        averaged, current = [], []
        for target, value in pairs:
            if target.is_floating_point():
                averaged.append(target)
                current.append(value)
            else:
                target.copy_(value)
        weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(averaged, current, weight)  # one kernel on a GPU
        self.count += 1


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class Clock:
    """Progress of a run, measured in steps or in time if there is a time limit; the same on all ranks.

    With `clock` = cpu, time is the CPU time of this process, which does not depend much on other processes.
    """

    def __init__(self, config: TrainConfig, state: TrainState, steps_per_epoch: int) -> None:
        self.config, self.state, self.steps_per_epoch = config, state, steps_per_epoch
        self.now = time.process_time if config.clock == "cpu" else time.monotonic
        self.started = self.now() - state.elapsed
        self.step_in_epoch = 0

    def elapsed(self) -> float:
        """Duration of training in seconds, including the time before a resume."""
        return self.now() - self.started

    def progress(self) -> float | Fraction:
        """Fraction of training done, in [0, 1), for the schedules."""
        return min(self._done(), 1 - 1e-9) if self.config.minutes else self._done()

    def over(self) -> bool:
        """Whether all steps are done or the time limit is reached."""
        return self._done() >= 1 or self._stopped()

    def out_of_time(self) -> bool:
        """Whether the run has a time limit that is reached."""
        return (bool(self.config.minutes) and self._done() >= 1) or self._stopped()

    def _stopped(self) -> bool:
        limit = self.config.stop_after
        return bool(limit) and distributed.from_rank_0(self.elapsed() / (60 * limit)) >= 1

    def _done(self) -> float | Fraction:
        if self.config.minutes:
            return distributed.from_rank_0(self.elapsed() / (60 * self.config.minutes))
        done = self.state.epoch * self.steps_per_epoch + self.step_in_epoch
        return Fraction(done, self.config.epochs * self.steps_per_epoch)
