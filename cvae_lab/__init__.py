"""Pose-conditioned video prediction with a conditional VAE.

From one frame and 630 pose labels, predict the other 629 frames.

Notation, the same in maths, code and figures: `x` frames (b, t, 3, h, w) in [0, 1]; `p` pose labels, same shape;
`x[:, 0]` is the first frame, known at test time; `z` latents; `mu`, `logvar`; `beta` KL weight; `tf_ratio` probability
of feeding the true previous frame; PSNR in dB with peak 1; KL in nats per frame.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
    from cvae_lab.models.cvae import CVAE
    from cvae_lab.rollout.predict import predict
    from cvae_lab.training.checkpoint import load_model

if sys.platform == "darwin":  # torch reads it when it is imported: operations that mps lacks run on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = ["CVAE", "ModelConfig", "RunConfig", "TrainConfig", "load_model", "predict"]

_HOME = {
    "CVAE": "models.cvae",
    "ModelConfig": "config",
    "RunConfig": "config",
    "TrainConfig": "config",
    "load_model": "training.checkpoint",
    "predict": "rollout.predict",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name when it is first used, so that `cvae-lab --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
