"""The training loop: one optimizer step, and a generator that yields a record after each epoch."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch
from jaxtyping import Bool
from torch import Tensor

from cvae_lab.config import ConfigError, TrainConfig
from cvae_lab.data.clips import Clip, ClipBatch, ClipSampler, Dataset, Video
from cvae_lab.evaluation.scoring import mean_scores
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import reduced_precision
from cvae_lab.objective import handout_beta, kl_cost, psnr_weights, squared_error
from cvae_lab.rollout import Feedback
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.schedules import beta_at, controlled_beta, lr_factor_at, tf_ratio_at
from cvae_lab.training import distributed
from cvae_lab.training.augment import Mirror, augment, mirroring
from cvae_lab.training.meter import EpochMeter, TrainingDivergedError
from cvae_lab.training.state import Clock, Record, StepResult, TrainState, stream_seed

COLUMNS = (
    "epoch", "step", "beta", "kl_weight", "tf_ratio", "lr", "loss", "mse", "kl_nats",
    "val_psnr_prior", "val_psnr_posterior", "heldout_psnr", "skipped", "seconds", "frames_per_s",
)  # fmt: skip
"""Keys of the record of an epoch, and columns of history.csv, in this order."""

CONTROL_RANGE = 1e4
"""The KL controller keeps the weight between beta_max / CONTROL_RANGE and beta_max * CONTROL_RANGE."""

_log = logging.getLogger(__name__)

OnStep = Callable[[Record, float], None]


def train_step(
    state: TrainState, batch: ClipBatch, config: TrainConfig, beta: float, feedback: Feedback
) -> StepResult:
    """Take one optimizer step on a batch of clips; return loss, mse and KL.

    The loss is mean squared error + beta * KL, as in the assignment, with the sums and units of `objective`. The loss
    is a mean over clips and predicted frames. With `weighting = "psnr"`, each frame error is first multiplied by a
    weight. If loss or gradient is not finite on any rank, the step is skipped (`TrainState.take_step`).

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
    is_finite = distributed.summed(values).isfinite().all()
    # One copy of all values to the host, because every copy waits for the GPU.
    loss, mse, kl, finite = torch.cat([values[:3], is_finite[None].to(values.dtype)]).tolist()
    state.take_step(bool(finite))
    return StepResult(loss, mse, kl, bool(finite), float(weight))


def fit(
    state: TrainState, data: Dataset, config: TrainConfig, on_step: OnStep | None = None
) -> Iterator[Record]:
    """Train from the current `state` to the end; yield one record after each epoch.

    A record has the keys of COLUMNS:
    - beta, kl_weight (beta converted to the scale of the loss), tf_ratio and lr: values at the end of the epoch;
    - loss, mse and kl_nats (nats per frame): means over the clips of the epoch;
    - val_psnr_prior, val_psnr_posterior and heldout_psnr: in dB; nan in an epoch without evaluation;
    - skipped: skipped steps; seconds: since the start; frames_per_s: training frames per second.

    Args:
        on_step: called after every step with a short record and the fraction of training done.

    Raises TrainingDivergedError if MAX_SKIPPED steps in a row, or all steps of the last epoch, are skipped.
    """
    device = next(state.model.parameters()).device
    train, heldout = _held_out(data, config)
    validation = data.val.as_clips()
    mirror = mirroring(data) if config.flip else None
    sampler = _sampler(train, config, state.generators["clips"], device)
    clock = Clock(config, state, len(sampler))
    every = 1 if config.tf_strategy == "adaptive" else config.eval_every  # `adaptive` needs every score
    last = clock.over()
    while not last:
        with _seeded(config.seed, state, device):
            record = _train_epoch(state, sampler, config, clock, mirror, on_step)
        last = clock.over()
        if last or state.epoch % every == 0:
            with reduced_precision(config, device):
                record |= mean_scores(state.evaluation_model(), validation, heldout)
            last = last or clock.over()  # the time of the evaluation is included
        state.elapsed = clock.elapsed()
        record["seconds"] = state.elapsed
        state.history.append(record)
        yield record
    if state.history and math.isnan(state.history[-1]["loss"]):
        raise TrainingDivergedError(
            "All steps of the last epoch were skipped, because the loss or the gradient was not finite; lower lr."
        )


def _sampler(
    video: Video, config: TrainConfig, generator: torch.Generator, device: torch.device
) -> ClipSampler:
    if config.batch_size < distributed.world():
        raise ConfigError(
            f"batch_size = {config.batch_size} is less than the number of processes, {distributed.world()}; increase "
            f"batch_size."
        )
    return ClipSampler(
        video, config.n_frames, config.batch_size, generator, device,
        clips_per_epoch=config.clips_per_epoch or None, reference_frame=config.reference_frame,
    )  # fmt: skip


def _held_out(data: Dataset, config: TrainConfig) -> tuple[Video, tuple[Clip, ...]]:
    """Return the frames to train on, and the held-out segments of the training recordings, which select checkpoints.

    If nothing can be held out, a warning is logged, and the validation clips select checkpoints.
    """
    reason = "holdout is 0"
    if config.holdout:
        try:
            train, segments = data.train.hold_out(config.holdout, config.n_frames)
        except ValueError:
            reason = f"no training recording is long enough to hold out {config.n_frames} frames"
        else:
            return _limited(train, config), segments.as_clips()
    if not len(data.val):
        raise ConfigError(
            f"There are no frames to select checkpoints on: {reason}, and the data set has no validation video; "
            "set holdout above 0, use shorter clips (n_frames), or add a validation video."
        )
    if not distributed.rank():
        _log.warning(f"Checkpoints are selected by their PSNR on the validation clips, because {reason}.")
    return _limited(data.train, config), ()


def _limited(video: Video, config: TrainConfig) -> Video:
    """Return the training frames that `train_frames` selects. Held-out segments do not depend on `train_frames`."""
    if not 0 < config.train_frames < len(video):
        return video
    return video.beginnings(config.train_frames)


def _noise_like_latents(model: CVAE, x: Tensor, generator: torch.Generator) -> Tensor:
    shape = (x.shape[0], x.shape[1] - 1, *model.latent_shape(*x.shape[-2:]))
    return torch.randn(shape, generator=generator, device=x.device)


def _feedback(
    batch: ClipBatch, config: TrainConfig, teacher_forced: Bool[Tensor, "b s"], generator: torch.Generator
) -> Feedback:
    """Return the teacher-forcing mask of a batch, and the noise for predictions that are fed back."""
    noise = None
    if config.feedback_noise and not bool(teacher_forced.all()):
        noise = torch.randn(batch.x[:, 1:].shape, generator=generator, device=batch.x.device)
        noise = config.feedback_noise * noise
    return Feedback(teacher_forced, config.bptt, noise)


@contextmanager
def _seeded(seed: int, state: TrainState, device: torch.device) -> Iterator[None]:
    """Seed noise and dropout for one epoch and rank, so that a resumed run continues exactly on every rank.

    Dropout draws from torch's global random state, which is restored afterwards.
    """
    key = (state.epoch, distributed.rank())
    state.generators["noise"].manual_seed(stream_seed(seed, "noise", *key))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", *key))
        yield


def _train_epoch(
    state: TrainState,
    sampler: ClipSampler,
    config: TrainConfig,
    clock: Clock,
    mirror: Mirror | None,
    on_step: OnStep | None,
) -> Record:
    state.model.train()
    at_start = clock.progress()
    ratio = _tf_ratio(config, state.epoch + 1, [_score(record) for record in state.history])
    epoch_is_forced = bool(torch.rand((), generator=state.generators["teacher_forcing"]) < ratio)
    meter = EpochMeter(state)
    for index, batch in enumerate(sampler.epoch()):
        clock.step_in_epoch = index
        progress = clock.progress()
        beta = _beta(config, at_start if config.kl_per == "epoch" else progress, state)
        lr = _set_lr(state, config, progress)
        batch, teacher_forced = _augmented_shard(
            batch, config, mirror, ratio, epoch_is_forced, state.generators
        )
        if not len(batch.x):  # a last batch with fewer clips than ranks
            continue
        feedback = _feedback(batch, config, teacher_forced, state.generators["noise"])
        result = train_step(state, batch, config, beta, feedback)
        meter.add(result, len(batch.x))
        if config.kl_target and result.is_finite:
            _control(state, config, result.kl)
        settings = {"beta": beta, "kl_weight": result.kl_weight, "tf_ratio": ratio, "lr": lr}
        settings["frames_per_s"] = meter.clips_per_second * (config.n_frames - 1)
        if on_step:
            on_step({"loss": meter.loss, **settings}, float(progress))
        if clock.out_of_time():
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


def _control(state: TrainState, config: TrainConfig, kl: float) -> None:
    """Update the KL weight of the controller from the KL of a step, averaged over ranks."""
    kl = float(distributed.summed(torch.tensor(kl))) / distributed.world()
    bounds = (config.beta_max / CONTROL_RANGE, config.beta_max * CONTROL_RANGE)
    state.kl_weight = controlled_beta(state.kl_weight, kl, config.kl_target, bounds=bounds)


def _set_lr(state: TrainState, config: TrainConfig, progress: float | Fraction) -> float:
    epochs = config.lr_milestone_epochs
    factor = lr_factor_at(
        progress,
        config.lr_schedule,
        warmup=config.lr_warmup,
        milestones=epochs or config.lr_milestones,
        gamma=config.lr_gamma,
        position=state.epoch if epochs else None,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * factor
    return config.lr * factor


def _augmented_shard(
    batch: ClipBatch,
    config: TrainConfig,
    mirror: Mirror | None,
    ratio: float,
    epoch_is_forced: bool,
    generators: dict[str, torch.Generator],
) -> tuple[ClipBatch, Bool[Tensor, "b s"]]:
    """Augment the batch and sample the mask, with equal results on all ranks; return this rank's shard of both."""
    batch = augment(batch, config, generators["augment"], mirror)
    mask = sample_teacher_forcing(
        ratio,
        len(batch.x),
        config.n_frames - 1,
        config.tf_per,
        generators["teacher_forcing"],
        epoch_is_forced,
    )
    return ClipBatch(*(distributed.shard(part) for part in batch)), distributed.shard(mask)


def _score(record: Record) -> float:
    """Return the PSNR for the adaptive teacher-forcing ratio: on validation clips, or else on held-out segments."""
    validation = record["val_psnr_prior"]
    return record["heldout_psnr"] if math.isnan(validation) else validation
