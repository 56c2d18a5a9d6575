"""What the latents of finished runs do, one row per run: the diagnosis, the variety of samples, the probes."""

from typing import Any

import numpy as np
import torch

from cvae_lab import checkpoint
from cvae_lab.cvae import CVAE, reparameterise
from cvae_lab.data import EMBEDDED, load, stage
from cvae_lab.data.clips import Clip
from cvae_lab.diagnostics import diagnose, posteriors
from cvae_lab.rollout import evaluating
from cvae_lab.runs.record import RunError, RunFolder
from cvae_lab.variety import Probe, probe, samples, variety

SAMPLES, FRAMES = 8, 100  # films per clip, and frames that are diagnosed; the probes take whole clips


def latent_row(run: RunFolder, seed: int = 0) -> dict[str, Any]:
    """Columns for a table of runs; the probes of hidden factors on embedded data only, where these are known.

    Test clips are those of the run's own data; answers are needed, so a folder without them is refused.
    """
    model = checkpoint.load_model(run.path / "best.pt")
    source = run.config.data
    clips = [clip for clip in load(source, progress=False).tests if clip.answer is not None]
    if not clips:
        raise RunError(
            f"{run.path}: its data, {source}, has no test clip with an answer, so nothing can be diagnosed."
        )
    length = min(FRAMES + 1, *map(len, clips))
    films = [Clip(clip.name, clip.first, clip.labels[:length], clip.answer[:length]) for clip in clips]
    found = diagnose(model, films, seed)
    row = {
        "run": run.path.name, "psnr_mean": run.result["psnr_mean"], "kl": found.kl, "active": found.active,
        "units": found.units, "gap": found.scores["posterior"].free - found.scores["prior"].free,
        "swap": found.scores["mean"].free - found.scores["swapped"].free, "sigma": found.sigma,
        "growth": found.growth, "loses": sum(frame is not None for frame in found.loses),
    }  # fmt: skip
    row |= _variety_row(model, films, seed)
    if source in EMBEDDED:
        row |= _probe_row(model, clips, stage.hidden_factors(source), seed)
    where = {name: run.result[name] for name in ("hardware", "commit")}
    return row | where | {"verdict": found.verdict}


def _variety_row(model: CVAE, clips: list[Clip], seed: int) -> dict[str, float]:
    x = torch.stack([clip.answer for clip in clips]).float() / 255
    p = torch.stack([clip.labels for clip in clips]).float() / 255
    found = variety(samples(model, x[:, 0], p, SAMPLES, torch.Generator().manual_seed(seed)), x[:, 1:])
    return {
        "one_sample": float(found.best_of[0]), "best_of_8": float(found.best_of[-1]), "average_of_8": found.mean,
        "spread": found.spread, "error": found.error, "match": found.match,
    }  # fmt: skip


def _probe_row(model: CVAE, clips: list[Clip], factors: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """Sway and flicker, told from a draw of the posterior by a regression fitted on the first half of the clips.

    A draw, as the decoder gets it: a regression has no sense of scale, and finds in the mean of a dead latent what
    its own noise drowns a hundred times over.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = [_codes(model, clip, generator) for clip in clips]
    row: dict[str, float] = {}
    for index, name in enumerate(("sway", "flicker")):
        truth = [factors[f"test{k}"][1 : len(clip), index] for k, clip in enumerate(clips)]
        found = probe(codes, truth, len(clips) // 2) if min(map(len, truth)) > 120 else Probe(np.nan, np.nan)
        row |= {f"{name}_correlation": found.correlation, f"{name}_p": found.p_value}
    return row


def _codes(model: CVAE, clip: Clip, generator: torch.Generator) -> np.ndarray:
    x, p = clip.answer[None].float() / 255, clip.labels[None].float() / 255
    with evaluating(model), torch.no_grad():
        mu, logvar = posteriors(model, x, p)
        z = reparameterise(mu, logvar, torch.randn(mu.shape, generator=generator))
    return z[0].flatten(1).numpy()
