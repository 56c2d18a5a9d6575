"""Pose-conditioned video prediction with a conditional VAE.

The input of the model is one frame and 630 pose labels. The output is the other 629 frames.

Notation in formulas, code and figures:

* `x`: frames (b, t, 3, h, w) in [0, 1]. `x[:, 0]` is the first frame, which is known at test time.
* `p`: pose labels, with the same shape as `x`.
* `z`: latents. `mu` and `logvar` are the mean and the log-variance of the distribution of `z`.
* `beta`: weight of the KL term. The KL is given in nats per frame.
* `tf_ratio`: probability that the true previous frame is the input of a step (teacher forcing).
* PSNR: peak signal-to-noise ratio in dB, with peak 1.
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

if sys.platform == "darwin":  # read when torch is imported: operations without an mps version run on the CPU
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
    """Import a public name at its first use, so that `cvae-lab --help` starts without importing torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
