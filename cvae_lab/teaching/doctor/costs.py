"""Measure the change in PSNR by each mistake, in a small trainer on a synthetic data set.

`cvae-lab doctor --measure CSV` trains the same tiny network with the same seeds, and writes the differences in PSNR.
`doctor` reads the file COSTS of the package. The numbers are valid for this small setting only. In a full training, the
mistakes may change the PSNR by other amounts.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cvae_lab.config import ModelConfig
from cvae_lab.data import load
from cvae_lab.data.clips import ClipSampler, Dataset
from cvae_lab.data.files import write_text
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.models.cvae import CVAE, reparameterise

COSTS = Path(__file__).with_name("costs.csv")
BETA, LEARNING_RATE, BATCH, FRAMES = 1e-5, 4e-3, 4, 6
TF_RATIO = 0.5  # probability that a batch is teacher-forced

TRAINING = (
    "uniform noise",
    "logvar used as a standard deviation",
    "posterior of the previous frame",
    "label of another frame",
    "loss of the last frame only",
    "clips in fixed order",
    "gradients never reset",
    "KL averaged over latents",
)
"""Mistakes that change the trained network. The score of the network is that of a right prediction, except for
`uniform noise` and `label of another frame`, which students make in the prediction, too."""

REPORTING = (
    "posterior z in evaluation",
    "teacher forcing in evaluation",
    "PSNR mean over one frame too few",
    "pixels wrap around",
)
"""Mistakes in the evaluation of a network that was trained without mistakes."""


class Setting(NamedTuple):
    """Size of the experiment."""

    data: str = "tiny"
    steps: int = 200
    width: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)


def measure(setting: Setting, path: Path, log: Callable[[str], None]) -> None:
    """Write a row per mistake: mean PSNR in dB over seeds with and without the mistake, the difference and its range.

    The table is written again after each mistake, so that an interrupted measurement keeps the finished rows.
    """
    rows = []
    for row in _rows(setting):
        rows.append(row)
        log(f"{row['mistake']}: {row['difference']:+.2f} dB (without it {row['psnr_without']:.2f} dB)")
        write_text(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"))


def _rows(setting: Setting) -> Iterator[dict[str, Any]]:
    data = load(setting.data)
    right = {seed: _train("", data, setting, seed) for seed in setting.seeds}
    base = [_score(right[seed], "", data, seed) for seed in setting.seeds]
    for mistake in (*REPORTING, *TRAINING):
        models = right
        if mistake in TRAINING:
            models = {seed: _train(mistake, data, setting, seed) for seed in setting.seeds}
        scores = [_score(models[seed], mistake, data, seed) for seed in setting.seeds]
        differences = [score - other for score, other in zip(scores, base, strict=True)]
        yield {
            "mistake": mistake, "changes": "network" if mistake in TRAINING else "reported score",
            "psnr_without": sum(base) / len(base), "psnr_with": sum(scores) / len(scores),
            "difference": sum(differences) / len(differences),
            "lowest": min(differences), "highest": max(differences), "seeds": len(scores),
            "data": setting.data, "steps": setting.steps, "width": setting.width, "beta": BETA,
        }  # fmt: skip


def measured() -> tuple[dict[str, str], str]:
    """Return a sentence for each mistake in COSTS, by the name of its rule, and a sentence about the conditions."""
    if not COSTS.exists():
        return {}, ""
    sentences, rows = {}, pd.read_csv(COSTS).to_dict("records")
    for row in rows:
        what = "Change of PSNR" if row["changes"] == "network" else "Change of the reported PSNR"
        sentences[row["mistake"]] = (
            f"{what} in a small experiment: {row['difference']:+.1f} dB "
            f"({row['seeds']} seeds: {row['lowest']:+.1f} to {row['highest']:+.1f} dB)."
        )
    conditions = (
        "Small experiment: a network of preset compact with width {width}, trained for {steps} steps with {seeds} "
        "seeds on the synthetic data set {data}. Without a mistake, the test clips have a mean PSNR of "
        "{psnr_without:.1f} dB. The change is different for another network, data set or training time."
    ).format(**rows[0])
    return sentences, conditions


def _train(mistake: str, data: Dataset, setting: Setting, seed: int) -> CVAE:
    """Train a network with the method of the assignment and one mistake."""
    torch.manual_seed(seed)
    model = CVAE(
        ModelConfig.preset("compact", width=setting.width, latents=2, anchor=False, output="linear")
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    sampler = ClipSampler(data.train, FRAMES, BATCH, generator, torch.device("cpu"))
    for step, (x, p) in enumerate(_batches(sampler, data, mistake, setting.steps)):
        if mistake != "gradients never reset" or step == 0:
            optimizer.zero_grad()
        _loss(model, x, p, mistake, bool(torch.rand(()) < TF_RATIO)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def _batches(sampler: ClipSampler, data: Dataset, mistake: str, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Yield random clips; with the mistake `clips in fixed order`, clips in order from the first frame on."""
    if mistake == "clips in fixed order":
        starts = [FRAMES * k for k in range(len(data.train.frames) // FRAMES)]
        groups = [starts[k : k + BATCH] for k in range(0, len(starts) - BATCH + 1, BATCH)]
        chosen = [groups[step % len(groups)] for step in range(steps)]
        sources = (data.train.frames, data.train.labels)
        cut = [[torch.stack([part[s : s + FRAMES] for s in group]) for part in sources] for group in chosen]
        return [(to_float(x), to_float(p)) for x, p in cut]
    batches: list[tuple[Tensor, Tensor]] = []
    while len(batches) < steps:
        batches += [(batch.x, batch.p) for batch in sampler.epoch()]
    return batches[:steps]


def _noise(like: Tensor, mistake: str) -> Tensor:
    return torch.rand_like(like) if mistake == "uniform noise" else torch.randn_like(like)


def _loss(
    model: CVAE, x: Float[Tensor, "b t 3 h w"], p: Float[Tensor, "b t 3 h w"], mistake: str, forced: bool
) -> Float[Tensor, ""]:
    """Return the loss of the assignment, summed over the frames of a clip, in a loop over frames."""
    last, total = x[:, 0], 0.0
    for t in range(1, x.shape[1]):
        label = model.label_transformation(p[:, t - 1 if mistake == "label of another frame" else t])
        seen = x[:, t - 1 if mistake == "posterior of the previous frame" else t]
        mu, logvar = model.posterior(model.frame_transformation(seen), label)
        eps = _noise(mu, mistake)
        wrong = mistake == "logvar used as a standard deviation"
        z = mu + logvar * eps if wrong else reparameterise(mu, logvar, eps)
        last = model.decode(x[:, t - 1] if forced else last, label, z)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
        kl = kl.mean() if mistake == "KL averaged over latents" else kl.sum() / len(x)
        loss = (last - x[:, t]).square().mean() + BETA * kl
        total = loss if mistake == "loss of the last frame only" else total + loss
    return total


@torch.no_grad()
def _score(model: CVAE, mistake: str, data: Dataset, seed: int) -> float:
    """Return the mean PSNR in dB over the predicted frames of the test clips, with a mistake in prediction or score."""
    torch.manual_seed(seed)
    means = []
    for clip in data.tests:
        x, p = to_float(clip.answer)[None], to_float(clip.labels)[None]
        scores = psnr(_predict(model, x, p, mistake), x[0, 1:])
        short = mistake == "PSNR mean over one frame too few"
        means.append(float(scores.sum()) / (len(scores) - short))
    return sum(means) / len(means)


def _predict(
    model: CVAE, x: Float[Tensor, "1 t 3 h w"], p: Float[Tensor, "1 t 3 h w"], mistake: str
) -> Float[Tensor, "s 3 h w"]:
    last, frames = x[:, 0], []
    for t in range(1, x.shape[1]):
        label = model.label_transformation(p[:, t - 1 if mistake == "label of another frame" else t])
        z = _noise(torch.empty(1, *model.latent_shape(*x.shape[-2:])), mistake)
        if mistake == "posterior z in evaluation":
            z = reparameterise(*model.posterior(model.frame_transformation(x[:, t]), label), z)
        last = model.decode(x[:, t - 1] if mistake == "teacher forcing in evaluation" else last, label, z)
        frames.append(last)
    whole = torch.cat(frames)
    return whole.mul(255).remainder(256) / 255 if mistake == "pixels wrap around" else whole.clamp(0, 1)
