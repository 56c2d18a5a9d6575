"""Checks of the fast paths on a GPU.

The result of a check is passed or failed, and a sentence with measured numbers.
"""

import itertools
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cvae_lab.bench.measure import in_own_process
from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
from cvae_lab.data.clips import ClipBatch, Dataset, Video
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import pick_device
from cvae_lab.objective import kl_cost
from cvae_lab.rollout import Feedback, predict, reference_predict, reference_unroll, unroll
from cvae_lab.rollout.cuda_graph import GraphedUnroll
from cvae_lab.rollout.predict import uses_cuda_graphs
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.training import TrainState, checkpoint, fit, train_step
from cvae_lab.training.state import TrainingForward

FRAMES = 40  # frames per clip in the rollout check; more than MIN_FRAMES_FOR_GRAPH
ROLLOUT_TOLERANCE = 1e-3  # largest difference of a pixel value in [0, 1], in float32 without TF32
GRADIENT_TOLERANCE = 1e-3  # relative error; the two sums are rounded in different orders
SYNCHRONISATIONS = 1  # per training step, caused by the test whether loss and gradient are finite
SYNCHRONISES = re.compile("synchronizing CUDA operation")


class Check(NamedTuple):
    """Result of a check. `passed` is None if this machine cannot run the check."""

    passed: bool | None
    detail: str


def checks(device: torch.device, models: dict[str, ModelConfig]) -> Iterator[tuple[str, Check]]:
    """Yield the name and the result of every check. A check that raises an error has failed.

    Args:
        models: networks by name, for the checks of rollout and gradients.
    """
    learned = ModelConfig(width=8, latents=2, prior="learned")
    tasks: dict[str, Callable[[], Check]] = {}
    for name, model in {**models, "learned prior": learned}.items():
        tasks[f"rollout equals the reference loop, {name}"] = lambda model=model: rollout(device, model)
    for name, model in models.items():
        tasks[f"gradients equal the reference loop, {name}"] = lambda model=model: gradients(device, model)
    tasks["one host synchronisation per training step"] = lambda: synchronisations(device)
    for name, model in {**models, "learned prior": learned}.items():
        tasks[f"captured gradients equal the reference loop, {name}"] = lambda model=model: captured(
            device, model
        )
    tasks["a resumed run equals an uninterrupted one"] = lambda: resumed(device)
    tasks["DDP on one rank equals no DDP"] = lambda: Check(*in_own_process(ddp, str(device), timeout=120))
    for name, task in tasks.items():
        try:
            yield name, task()
        except Exception as error:
            yield (
                name,
                Check(False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"),
            )


def rollout(device: torch.device, config: ModelConfig) -> Check:
    """Check that `predict` returns the frames of `reference_predict`. On a GPU, `predict` replays a CUDA graph."""
    model, draws = perturbed(config).to(device).eval(), torch.Generator().manual_seed(1)
    size = (3, config.height, 2 * config.height)
    first = torch.rand(2, *size, generator=draws).to(device)
    labels = torch.rand(2, FRAMES, *size, generator=draws).to(device)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    with exact_float32():
        ours = predict(model, first, labels, seeds[0])
        wanted = reference_predict(model, first, labels, seeds[1])
    difference = float((ours - wanted).abs().max())
    path = "CUDA graph" if uses_cuda_graphs(device) else "no CUDA graph"
    return Check(
        difference < ROLLOUT_TOLERANCE, f"largest difference {difference:.1e} in {FRAMES - 1} frames, {path}"
    )


def gradients(device: torch.device, config: ModelConfig) -> Check:
    """Check that the batched unroll has the gradients of the reference loop, at teacher-forcing ratio 0.5."""
    batch = random_batch(device, clips=3, frames=5, height=config.height)
    mask = sample_teacher_forcing(0.5, 3, 4, "step", torch.Generator().manual_seed(2))
    found = []
    for path in (unroll, reference_unroll):
        model = perturbed(config).to(device).train()
        shape = (3, 4, *model.latent_shape(config.height, 2 * config.height))
        eps = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(device)
        with exact_float32():
            path(model, *batch, eps, Feedback(mask)).prediction.square().mean().backward()
        found.append(flat([p.grad for p in model.parameters() if p.grad is not None]))
    difference = relative(*found)
    return Check(difference < GRADIENT_TOLERANCE, f"relative difference {difference:.1e}")


def captured(device: torch.device, config: ModelConfig) -> Check:
    """Check gradients and batch-norm statistics of recorded training steps, with and without teacher forcing.

    Pixels and weights of the second batch differ from those of the recorded batch, so a graph with old values fails
    this check.
    """
    if device.type != "cuda":
        return Check(None, "needs a CUDA device")
    differences = []
    for forced in (False, True):
        mask = torch.full((3, 4), forced)
        mask[:, 0] = True
        model = perturbed(config).to(device, memory_format=torch.channels_last).train()
        graphs = GraphedUnroll(model)
        found = [
            trained_twice(graphs, model, mask),
            trained_twice(None, perturbed(config).to(device).train(), mask),
        ]
        if not graphs.graphs:
            return Check(False, "no graph was recorded")
        differences.append(relative(*found))
    return Check(max(differences) < GRADIENT_TOLERANCE, f"relative difference {max(differences):.1e}")


def trained_twice(graphs: GraphedUnroll | None, model: CVAE, mask: Tensor) -> Tensor:
    """Return gradients and buffers after two SGD steps, by graphs or by the reference loop if `graphs` is None."""
    config, device = model.config, next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for seed in (5, 6):
        batch = random_batch(device, clips=3, frames=5, height=config.height, seed=seed)
        shape = (3, 4, *model.latent_shape(config.height, 2 * config.height))
        eps = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
        optimizer.zero_grad()
        with exact_float32():
            feedback = Feedback(mask)
            out = graphs(*batch, eps, feedback) if graphs else reference_unroll(model, *batch, eps, feedback)
            loss = (out.prediction - batch.x[:, 1:]).square().mean() + kl_cost(
                out.mu, out.logvar, out.prior
            ).mean() / 1e4
            loss.backward()
        optimizer.step()
    values = [p.grad for p in model.parameters() if p.grad is not None]
    return flat([*values, *(b for b in model.buffers() if b.is_floating_point())])


def synchronisations(device: torch.device) -> Check:
    """Count the host synchronisations of a training step, and list the lines of code with these synchronisations."""
    run = RunConfig.from_params("noise", device=str(device))
    state = TrainState.create(run.model, run.train)
    batch = random_batch(device, run.train.batch_size, run.train.n_frames)
    mask = sample_teacher_forcing(
        0.5, len(batch.x), run.train.n_frames - 1, "step", torch.Generator().manual_seed(0)
    )

    def step() -> None:
        train_step(state, batch, run.train, 1.0, Feedback(mask))

    if device.type != "cuda":
        return Check(None, "needs a CUDA device")
    for _ in range(3):
        step()
    places = synchronising_lines(step)
    lines = "; ".join(f"{place} x{places.count(place)}" for place in dict.fromkeys(places))
    return Check(len(places) == SYNCHRONISATIONS, f"{len(places)} synchronisations: {lines}")


def synchronising_lines(action: Callable[[], Any]) -> list[str]:
    """Return file and line of every operation of `action` that makes the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if SYNCHRONISES.search(str(w.message))]


def resumed(device: torch.device) -> Check:
    """Check that a stopped and resumed run ends with the weights of an uninterrupted run.

    Some GPU kernels add numbers in random order. The difference may therefore be up to 3 times the difference between
    two uninterrupted runs.
    """
    run = RunConfig.from_params(
        "noise", width=8, latents=2, epochs=4, n_frames=4, batch_size=4, clips_per_epoch=8, holdout=0.2, shift=1,
        device=str(device), precision="float32", eval_every=4,
    )  # fmt: skip
    data = noise_data()

    def train(state: TrainState, epochs: int | None = None) -> TrainState:
        for _ in itertools.islice(fit(state, data, run.train), epochs):
            pass
        return state

    with tempfile.TemporaryDirectory() as folder, exact_float32():
        whole, again = (weights(train(checkpoint.create_state(run))) for _ in range(2))
        checkpoint.save(Path(folder) / "last.pt", train(checkpoint.create_state(run), 2), run)
        parts = weights(train(checkpoint.resume(Path(folder) / "last.pt", run)))
    difference, noise = relative(parts, whole), relative(again, whole)
    return Check(
        difference <= 3 * noise + 1e-6,
        f"relative difference {difference:.1e}; of two uninterrupted runs {noise:.1e}",
    )


def ddp(device_name: str) -> Check:
    """Check that a training step has the same gradients with DistributedDataParallel (one rank) and without it."""
    device = pick_device(device_name)
    config = TrainConfig(device=device_name, precision="float32")
    mask = torch.ones(4, 3, dtype=torch.bool)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        try:
            for wrap in (False, True):
                state = TrainState.create(ModelConfig(width=8), config)
                if wrap:
                    state.network = DistributedDataParallel(TrainingForward(state.model))
                with exact_float32():
                    train_step(state, random_batch(device, 4, 4), config, 1.0, Feedback(mask))
                found.append(flat([p.grad for p in state.model.parameters()]))
        finally:
            dist.destroy_process_group()
    difference = relative(*found)
    return Check(difference < GRADIENT_TOLERANCE, f"relative difference {difference:.1e}, {backend}")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute convolutions in float32. The rounding of TF32 would differ between batch sizes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def perturbed(config: ModelConfig) -> CVAE:
    """Return a network without zero or identity layers. Some layers of a new network are zero or the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CVAE(config)
        with torch.no_grad():
            for value in model.parameters():
                value += 0.03 * torch.randn_like(value)
    return model


def random_batch(device: torch.device, clips: int, frames: int, height: int = 32, seed: int = 5) -> ClipBatch:
    """Return clips of random pixels, which are the same on every device."""
    draws = torch.Generator().manual_seed(seed)
    return ClipBatch(*torch.rand(2, clips, frames, 3, height, 2 * height, generator=draws).to(device))


def noise_data() -> Dataset:
    """Return a data set of random pixels: two recordings of 20 frames, and a validation video of 6 frames."""

    def video(frames: int, seed: int, boundaries: tuple[int, ...] = ()) -> Video:
        draws = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (2, frames, 3, 32, 64), generator=draws, dtype=torch.uint8)
        return Video(*pixels, boundaries, str(seed))

    return Dataset("noise", video(40, 0, (20,)), video(6, 1), ())


def weights(state: TrainState) -> Tensor:
    """Return all weights of the model as one vector."""
    return flat(list(state.model.state_dict().values()))


def flat(tensors: list[Tensor]) -> Tensor:
    """Concatenate tensors to one vector on the CPU, in double precision."""
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in tensors])


def relative(a: Tensor, b: Tensor) -> float:
    """Return the norm of a - b divided by the norm of b."""
    return float((a - b).norm() / b.norm())
