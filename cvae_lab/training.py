"""Training: one step, one evaluation, and a generator that yields a record per epoch."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cvae_lab import augment, parallel
from cvae_lab.config import ConfigError, TrainConfig
from cvae_lab.cvae import CVAE
from cvae_lab.data.clips import Clip, ClipBatch, ClipSampler, Dataset
from cvae_lab.device import reduced_precision
from cvae_lab.metrics import psnr
from cvae_lab.objective import handout_beta, kl_cost, psnr_weights, squared_error
from cvae_lab.optimiser import Muon
from cvae_lab.rollout import Feed, Latents, evaluating, posterior_latents, prior_latents, rollout
from cvae_lab.schedules import beta_at, coins, controlled_beta, lr_factor_at, tf_ratio_at
from cvae_lab.state import Clock, Record, TrainState
from cvae_lab.tally import LOOK_EVERY, Tally

COLUMNS = (
    "epoch", "step", "beta", "tf_ratio", "lr", "loss", "mse", "kl_nats", "val_psnr_prior", "val_psnr_posterior",
    "heldout_psnr", "skipped", "seconds", "frames_per_s",
)  # fmt: skip
"""Of a record and of history.csv, in order."""

OnStep = Callable[[Record, float], None]


def train_step(
    state: TrainState, batch: ClipBatch, config: TrainConfig, beta: float, feed: Feed
) -> Float[Tensor, "3"]:
    """One optimiser step; returns loss, mse, KL in nats per frame, on the device: nobody waits for them.

    Where they or the gradient were not finite on any rank, they are nan and nothing moved.

    The loss is the handout's, mean squared error + beta * KL, summed over a frame's pixels or latents as
    `objective` says, then averaged over clips and over the T - 1 predicted frames, here and nowhere else; with
    weighting `psnr` the frames' errors are weighted before that.
    """
    model, dims, device = state.model, batch.x[0, 0].numel(), batch.x.device
    eps = _noise_like_latents(model, batch.x, state.generators["noise"])
    with reduced_precision(config, device):
        out = state.network(batch, eps, feed)
    error = squared_error(out.prediction, batch.x[:, 1:]) / dims
    mse = error.mean()
    joint = parallel.summed(mse) / parallel.world()  # over all ranks
    pull = psnr_weights(error, joint) if config.weighting == "psnr" else 1.0
    kl = kl_cost(*out[1:])
    cost = kl_cost(*out[1:], config.free_bits, config.kl_balance)
    loss = (pull * error).mean() + handout_beta(beta, config.scale, dims, config.sigma, joint) * cost
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
    values = torch.stack([loss, mse, kl, norm]).detach()
    fine = parallel.summed(values).isfinite().all()
    state.take_step(fine, config.ema)
    return values[:3].where(fine, math.nan)


def _noise_like_latents(model: CVAE, x: Tensor, generator: torch.Generator) -> Tensor:
    shape = (x.shape[0], x.shape[1] - 1, *model.latent_shape(*x.shape[-2:]))
    return torch.randn(shape, generator=generator, device=x.device)


def make_feed(batch: ClipBatch, config: TrainConfig, tossed: Bool[Tensor, "b s"], state: TrainState) -> Feed:
    """The coins of a batch, with feedback noise for the predictions they leave."""
    noise = None
    if config.feedback_noise and not bool(tossed.all()):
        noise = torch.randn(batch.x[:, 1:].shape, generator=state.generators["noise"], device=batch.x.device)
        noise = config.feedback_noise * noise
    return Feed(tossed, config.bptt, noise)


def evaluate(model: CVAE, clips: Sequence[Clip], seed: int = 0) -> dict[str, list[Float[Tensor, " s"]]]:
    """PSNR per frame of every clip, free-running, with z from the `prior` (a prediction) and the `posterior`.

    Clips of one length run as one batch, both kinds of z with them.
    """
    scores: dict[str, list] = {
        "prior": [torch.empty(0)] * len(clips),
        "posterior": [torch.empty(0)] * len(clips),
    }
    for length in sorted({len(clip.labels) for clip in clips}):
        places = [index for index, clip in enumerate(clips) if len(clip.labels) == length]
        for kind, curves in _evaluate_equal([clips[index] for index in places], model, seed).items():
            for index, curve in zip(places, curves, strict=True):
                scores[kind][index] = curve
    return scores


def _evaluate_equal(clips: Sequence[Clip], model: CVAE, seed: int) -> dict[str, Float[Tensor, "c s"]]:
    device = next(model.parameters()).device
    x = torch.stack([clip.answer for clip in clips]).to(device).float() / 255
    p = torch.stack([clip.labels for clip in clips]).to(device).float() / 255
    generators = [torch.Generator(device).manual_seed(seed + k) for k in range(2)]
    with evaluating(model):
        prior = prior_latents(model, x[:, 0], generators[0])
        posterior = posterior_latents(model, x, p, generators[1])
        both = x[:, 0].repeat(2, 1, 1, 1), p.repeat(2, 1, 1, 1, 1)
        frames = rollout(model, *both, lambda *step: _halves(step, prior, posterior))
    scores = psnr(frames, x[:, 1:].repeat(2, 1, 1, 1, 1)).cpu()
    return {"prior": scores[: len(clips)], "posterior": scores[len(clips) :]}


def _halves(step: tuple[int, Tensor, Tensor], *kinds: Latents) -> Tensor:
    """Each kind of z for its share of the batch."""
    number, previous, label = step
    shares = zip(kinds, previous.chunk(len(kinds)), label.chunk(len(kinds)), strict=True)
    return torch.cat([kind(number, *share) for kind, *share in shares])


def fit(
    state: TrainState,
    data: Dataset,
    config: TrainConfig,
    on_step: OnStep | None = None,
) -> Iterator[Record]:
    """Train from where `state` stands to the end; yields one record after each epoch.

    A record holds epoch, step (batches so far, skipped ones too), beta and tf_ratio at the epoch's end, lr, loss, mse,
    kl_nats (nats per frame), val_psnr_prior, val_psnr_posterior, heldout_psnr (dB, nan where the epoch had no
    evaluation; held-out clips choose the best checkpoint), skipped, seconds since the start, frames_per_s. `on_step`
    gets a short record, its loss as of the tally's last look, and the progress in [0, 1] after every step. Raises
    TrainingDivergedError.
    """
    device = next(state.model.parameters()).device
    if config.batch_size < parallel.world():
        raise ConfigError(
            f"batch_size = {config.batch_size} is less than the {parallel.world()} processes; raise it."
        )
    train, heldout = (
        data.train.hold_out(config.holdout, config.n_frames) if config.holdout else (data.train, None)
    )
    sampler = ClipSampler(
        train, config.n_frames, config.batch_size, state.generators["clips"], device,
        clips_per_epoch=config.clips_per_epoch or None, given=config.given,
    )  # fmt: skip
    clock = Clock(config, state, len(sampler))
    every = 1 if config.tf_strategy == "adaptive" else config.eval_every  # it moves by each epoch's score
    last = clock.over()
    while not last:
        with _seeded(config.seed, state.epoch, device):
            record = _train_epoch(state, sampler, config, clock, on_step)
        last = clock.over()
        if last or state.epoch % every == 0:
            with reduced_precision(config, device):
                record |= _scores(state.averaged_model(), data, heldout)
            last = last or clock.over()  # looking takes time, too
        state.elapsed = clock.elapsed()
        record["seconds"] = state.elapsed
        state.history.append(record)
        yield record


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global state alone: lend it a seed of the run's own, an epoch at a time."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(1_000_003 * seed + epoch)
        yield


def _train_epoch(
    state: TrainState, sampler: ClipSampler, config: TrainConfig, clock: Clock, on_step: OnStep | None
) -> Record:
    state.model.train()
    at_start = clock.progress()
    ratio = _tf_ratio(config, state.epoch + 1, [record["val_psnr_prior"] for record in state.history])
    coin = bool(torch.rand((), generator=state.generators["coins"]) < ratio)
    tally = Tally(state, every=0 if config.kl_target else LOOK_EVERY)  # a controller asks after every step
    for index, batch in enumerate(sampler.epoch()):
        clock.step_in_epoch = index
        progress = clock.progress()
        beta = _beta(config, at_start if config.kl_per == "epoch" else progress, state)
        lr = _set_lr(state.optimiser, config, progress)
        batch, tossed = _drawn(batch, config, ratio, coin, state.generators)
        if not len(batch.x):  # a last batch with fewer clips than ranks
            continue
        feed = make_feed(batch, config, tossed, state)
        values = train_step(state, batch, config, beta, feed)
        tally.add(values, len(batch.x))
        if config.kl_target and not state.skipped_in_a_row:
            kl = float(parallel.summed(torch.tensor(tally.kl))) / parallel.world()
            state.kl_weight = controlled_beta(state.kl_weight, kl, config.kl_target)
        pace = tally.clips_per_second * (config.n_frames - 1)
        settings = {"beta": beta, "tf_ratio": ratio, "lr": lr, "frames_per_s": pace}
        if on_step:
            on_step({"loss": tally.loss, **settings}, float(progress))
        if config.minutes and clock.over():
            break
    loss, mse, kl = tally.means()
    clock.step_in_epoch = 0
    state.epoch += 1
    record = {"epoch": state.epoch, "step": state.step, "loss": loss, "mse": mse, "kl_nats": kl}
    return dict.fromkeys(COLUMNS, math.nan) | record | settings | {"skipped": tally.skipped}


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


def _set_lr(
    optimiser: torch.optim.Optimizer | Muon, config: TrainConfig, progress: float | Fraction
) -> float:
    factor = lr_factor_at(
        progress,
        config.lr_schedule,
        warmup=config.lr_warmup,
        milestones=config.lr_milestones,
        gamma=config.lr_gamma,
    )
    for group in optimiser.param_groups:
        group["lr"] = config.lr * factor
    return config.lr * factor


def _drawn(
    batch: ClipBatch, config: TrainConfig, ratio: float, coin: bool, generators: dict[str, torch.Generator]
) -> tuple[ClipBatch, Bool[Tensor, "b s"]]:
    """Augmentation and coins, drawn alike on every rank for the joined batch; then this rank's share of both."""
    if config.flip:
        batch = augment.flip(batch, generators["augment"])
    if config.paste:
        batch = augment.paste(batch, config.paste, generators["augment"])
    if config.shift:
        batch = augment.shift(batch, config.shift, generators["augment"])
    if config.jitter:
        batch = augment.jitter(batch, config.jitter, generators["augment"])
    tossed = coins(ratio, len(batch.x), config.n_frames - 1, config.tf_per, generators["coins"], coin)
    return ClipBatch(*(parallel.share(part) for part in batch)), parallel.share(tossed)


def _scores(model: CVAE, data: Dataset, heldout: Any) -> Record:  # noqa: ANN401
    """Mean PSNR on the validation clips, and on held-out stretches and validation together.

    A stretch weighs as its frames do among all stretches: a short take leaves a handful, which say little.
    """
    validation = data.val.as_clips()
    others = heldout.as_clips() if heldout is not None else ()
    scores = evaluate(model, [*validation, *others])
    count = len(validation)
    mean = {kind: [float(curve.mean()) for curve in curves[:count]] for kind, curves in scores.items()}
    stretches = float(torch.cat(scores["prior"][count:]).mean()) if others else 0.0
    return {
        "val_psnr_prior": sum(mean["prior"]) / count,
        "val_psnr_posterior": sum(mean["posterior"]) / count,
        "heldout_psnr": (sum(mean["prior"]) + len(others) * stretches) / (count + len(others)),
    }
