"""One row of a table about the latent of a trained model: diagnosis, sample quality and probes."""

from typing import Any

import numpy as np
import torch

from cvae_lab.data import SYNTHETIC, DataError, load
from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float
from cvae_lab.data.synthetic.dataset import hidden_factors
from cvae_lab.evaluation.latent import diagnose, posteriors
from cvae_lab.evaluation.samples import Probe, probe, samples, variety
from cvae_lab.models.cvae import CVAE, reparameterise
from cvae_lab.rollout import evaluating

SAMPLES, FRAMES = 8, 100  # samples per clip, and frames per clip for the diagnosis; the probes use all frames


def latent_row(model: CVAE, source: str, seed: int = 0) -> dict[str, Any]:
    """Diagnose a model on the test clips of the data set `source` and return one row of a table.

    The row contains probes of the hidden factors only for synthetic data, because the factors of other data are
    unknown. Raises DataError if no test clip has true frames.
    """
    tests = load(source, progress=False, height=model.config.height).tests
    clips = [clip for clip in tests if clip.answer is not None]
    if not clips:
        raise DataError(
            f"{source}: no test clip has true frames, so the latent cannot be diagnosed; give a data set "
            f"with true frames"
        )
    length = min(FRAMES + 1, *map(len, clips))
    videos = [Clip(clip.name, clip.first, clip.labels[:length], clip.answer[:length]) for clip in clips]
    found = diagnose(model, videos, seed)
    row = {
        "kl": found.kl, "active": found.active,
        "units": found.units, "gap": found.gap,
        "swap": found.swap, "sigma": found.sigma,
        "growth": found.growth, "loses": sum(frame is not None for frame in found.behind_from),
    }  # fmt: skip
    row |= _variety_row(model, videos, seed)
    if source in SYNTHETIC:
        row |= _probe_row(model, clips, hidden_factors(source), seed)
    return row | {"summary": found.summary}


def _variety_row(model: CVAE, clips: list[Clip], seed: int) -> dict[str, float]:
    x = to_float(torch.stack([clip.answer for clip in clips]))
    p = to_float(torch.stack([clip.labels for clip in clips]))
    found = variety(samples(model, x[:, 0], p, SAMPLES, torch.Generator().manual_seed(seed)), x[:, 1:])
    return {
        "one_sample": float(found.best_of[0]), "best_of_8": float(found.best_of[-1]), "average_of_8": found.mean,
        "spread": found.spread, "error": found.error, "match": found.match,
    }  # fmt: skip


def _probe_row(model: CVAE, clips: list[Clip], factors: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """Return how well a linear regression predicts sway and flicker from z.

    The regression is fitted on the first half of the clips and tested on the others. The input of the regression is a
    sample of z, like the input of the decoder. The posterior mean is not suitable: in a collapsed latent, the mean may
    still contain the factor, but the noise of z is then much larger.
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
    x, p = to_float(clip.answer[None]), to_float(clip.labels[None])
    with evaluating(model), torch.no_grad():
        mu, logvar = posteriors(model, x, p)
        z = reparameterise(mu, logvar, torch.randn(mu.shape, generator=generator))
    return z[0].flatten(1).numpy()
