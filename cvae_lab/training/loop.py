"""The training loop: one optimizer step, and a generator that yields a record after each epoch."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch
from jaxtyping import Bool
from torch import Tensor

from cvae_lab.config import ConfigError, TrainConfig
from cvae_lab.data.clips import Clip, ClipBatch, ClipSampler, Dataset
from cvae_lab.evaluation.scoring import evaluate
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import reduced_precision
from cvae_lab.objective import handout_beta, kl_cost, psnr_weights, squared_error
from cvae_lab.rollout import Feedback
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.schedules import beta_at, controlled_beta, lr_factor_at, tf_ratio_at
from cvae_lab.training import distributed
from cvae_lab.training.augment import augment
from cvae_lab.training.meter import EpochMeter
from cvae_lab.training.state import Clock, Record, StepResult, TrainState

COLUMNS = (
    "epoch", "step", "beta", "tf_ratio", "lr", "loss", "mse", "kl_nats", "val_psnr_prior", "val_psnr_posterior",
    "heldout_psnr", "skipped", "seconds", "frames_per_s",
)  # fmt: skip
"""Keys of a record and columns of history.csv, in order."""

OnStep = Callable[[Record, float], None]


def train_step(
    state: TrainState, batch: ClipBatch, config: TrainConfig, beta: float, feedback: Feedback
) -> StepResult:
    """Take one optimizer step on a batch of clips; return loss, mse and KL.

    The loss is the assignment's, mean squared error + beta * KL, with the sums and units of `objective`, averaged over
    clips and over the T - 1 predicted frames. With `weighting = "psnr"`, each frame's error is weighted first. Where
    the loss or the gradient is not finite on any rank, the step is skipped (`TrainState.take_step`).

    Source: course assignment, section 4; Kingma & Welling 2014, equation 10.
    """
    model, dims, device = state.model, batch.x[0, 0].numel(), batch.x.device
    eps = _noise_like_latents(model, batch.x, state.generators["noise"])
    with reduced_precision(config, device):
        out = state.network(batch, eps, feedback)
    error = squared_error(out.prediction, batch.x[:, 1:]) / dims
    mse = error.mean()
    mean_mse = distributed.summed(mse) / distributed.world()
    frame_weights = psnr_weights(error, mean_mse) if config.weighting == "psnr" else 1.0
    kl = kl_cost(out.mu, out.logvar, out.prior)
    cost = kl_cost(out.mu, out.logvar, out.prior, free_bits=config.free_bits, balance=config.kl_balance)
    weight = handout_beta(beta, config.scale, dims, config.sigma, mean_mse)
    loss = (frame_weights * error).mean() + weight * cost
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
    values = torch.stack([loss, mse, kl, norm]).detach()
    is_finite = bool(distributed.summed(values).isfinite().all())
    state.take_step(is_finite)
    return StepResult(*values[:3].tolist(), is_finite)


def fit(
    state: TrainState,
    data: Dataset,
    config: TrainConfig,
    on_step: OnStep | None = None,
) -> Iterator[Record]:
    """Train from the current `state` to the end; yield one record after each epoch.

    A record has the keys of COLUMNS: beta, tf_ratio and lr at the end of the epoch; loss, mse and kl_nats (nats per
    frame) as means over its clips; val_psnr_prior, val_psnr_posterior and heldout_psnr in dB, nan in an epoch without
    evaluation; steps skipped; seconds since the start; training frames per second.

    Args:
        on_step: called after every step with a short record and the fraction of training done.

    Raises TrainingDivergedError when many steps in a row are not finite.
    """
    device = next(state.model.parameters()).device
    if config.batch_size < distributed.world():
        raise ConfigError(
            f"batch_size = {config.batch_size} is less than the {distributed.world()} processes; raise it."
        )
    train, heldout = data.train, ()
    if config.holdout:
        train, kept_out = data.train.hold_out(config.holdout, config.n_frames)
        heldout = kept_out.as_clips()
    sampler = ClipSampler(
        train, config.n_frames, config.batch_size, state.generators["clips"], device,
        clips_per_epoch=config.clips_per_epoch or None, reference_frame=config.reference_frame,
    )  # fmt: skip
    clock = Clock(config, state, len(sampler))
    every = 1 if config.tf_strategy == "adaptive" else config.eval_every  # adaptive needs a score per epoch
    last = clock.over()
    while not last:
        with _seeded(config.seed, state.epoch, device):
            record = _train_epoch(state, sampler, config, clock, on_step)
        last = clock.over()
        if last or state.epoch % every == 0:
            with reduced_precision(config, device):
                record |= _scores(state.evaluation_model(), data.val.as_clips(), heldout)
            last = last or clock.over()  # evaluation takes time, too
        state.elapsed = clock.elapsed()
        record["seconds"] = state.elapsed
        state.history.append(record)
        yield record


def _noise_like_latents(model: CVAE, x: Tensor, generator: torch.Generator) -> Tensor:
    shape = (x.shape[0], x.shape[1] - 1, *model.latent_shape(*x.shape[-2:]))
    return torch.randn(shape, generator=generator, device=x.device)


def _feedback(
    batch: ClipBatch, config: TrainConfig, teacher_forced: Bool[Tensor, "b s"], generator: torch.Generator
) -> Feedback:
    """The teacher-forcing mask of a batch, with noise for the predictions that are fed back."""
    noise = None
    if config.feedback_noise and not bool(teacher_forced.all()):
        noise = torch.randn(batch.x[:, 1:].shape, generator=generator, device=batch.x.device)
        noise = config.feedback_noise * noise
    return Feedback(teacher_forced, config.bptt, noise)


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global random state for one epoch: dropout has no other source. It is restored afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(1_000_003 * seed + epoch)
        yield


def _train_epoch(
    state: TrainState, sampler: ClipSampler, config: TrainConfig, clock: Clock, on_step: OnStep | None
) -> Record:
    state.model.train()
    at_start = clock.progress()
    ratio = _tf_ratio(config, state.epoch + 1, [record["val_psnr_prior"] for record in state.history])
    epoch_is_forced = bool(torch.rand((), generator=state.generators["teacher_forcing"]) < ratio)
    meter = EpochMeter(state)
    for index, batch in enumerate(sampler.epoch()):
        clock.step_in_epoch = index
        progress = clock.progress()
        beta = _beta(config, at_start if config.kl_per == "epoch" else progress, state)
        lr = _set_lr(state, config, progress)
        batch, teacher_forced = _augmented_shard(batch, config, ratio, epoch_is_forced, state.generators)
        if not len(batch.x):  # a last batch with fewer clips than ranks
            continue
        feedback = _feedback(batch, config, teacher_forced, state.generators["noise"])
        result = train_step(state, batch, config, beta, feedback)
        meter.add(result, len(batch.x))
        if config.kl_target and result.is_finite:
            kl = float(distributed.summed(torch.tensor(result.kl))) / distributed.world()
            state.kl_weight = controlled_beta(state.kl_weight, kl, config.kl_target)
        frames_per_s = meter.clips_per_second * (config.n_frames - 1)
        settings = {"beta": beta, "tf_ratio": ratio, "lr": lr, "frames_per_s": frames_per_s}
        if on_step:
            on_step({"loss": meter.loss, **settings}, float(progress))
        if config.minutes and clock.over():
            break
    loss, mse, kl = meter.means()
    clock.step_in_epoch = 0
    state.epoch += 1
    record = {"epoch": state.epoch, "step": state.step, "loss": loss, "mse": mse, "kl_nats": kl}
    return dict.fromkeys(COLUMNS, math.nan) | record | settings | {"skipped": meter.skipped}


def _tf_ratio(config: TrainConfig, epoch: int, scores: Sequence[float]) -> float:
    return tf_ratio_at(
        epoch, config.tf_strategy, start=config.tf_start, first_decay=config.tf_first_decay,
        step=config.tf_step, decay=config.tf_decay, scores=scores,
    )  # fmt: skip


def _beta(config: TrainConfig, progress: float | Fraction, state: TrainState) -> float:
    if config.kl_target:
        return state.kl_weight
    return beta_at(
        progress, config.kl_strategy, beta_max=config.beta_max, n_cycles=config.n_cycles,
        ratio=config.cycle_ratio, shape=config.cycle_shape, stages=config.stages,
    )  # fmt: skip


def _set_lr(state: TrainState, config: TrainConfig, progress: float | Fraction) -> float:
    factor = lr_factor_at(
        progress,
        config.lr_schedule,
        warmup=config.lr_warmup,
        milestones=config.lr_milestones,
        gamma=config.lr_gamma,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * factor
    return config.lr * factor


def _augmented_shard(
    batch: ClipBatch,
    config: TrainConfig,
    ratio: float,
    epoch_is_forced: bool,
    generators: dict[str, torch.Generator],
) -> tuple[ClipBatch, Bool[Tensor, "b s"]]:
    """Augment the whole batch and draw its teacher-forcing mask, the same on every rank; return this rank's shard."""
    batch = augment(batch, config, generators["augment"])
    mask = sample_teacher_forcing(
        ratio,
        len(batch.x),
        config.n_frames - 1,
        config.tf_per,
        generators["teacher_forcing"],
        epoch_is_forced,
    )
    return ClipBatch(*(distributed.shard(part) for part in batch)), distributed.shard(mask)


def _scores(model: CVAE, validation: Sequence[Clip], heldout: Sequence[Clip]) -> Record:
    """Mean PSNR on the validation clips, and on held-out segments and validation together.

    A segment counts by its frames among all segments, because a short recording leaves only a few frames.
    """
    scores = evaluate(model, [*validation, *heldout])
    count = len(validation)
    mean = {kind: [float(curve.mean()) for curve in curves[:count]] for kind, curves in scores.items()}
    segments = float(torch.cat(scores["prior"][count:]).mean()) if heldout else 0.0
    return {
        "val_psnr_prior": sum(mean["prior"]) / count,
        "val_psnr_posterior": sum(mean["posterior"]) / count,
        "heldout_psnr": (sum(mean["prior"]) + len(heldout) * segments) / (count + len(heldout)),
    }
