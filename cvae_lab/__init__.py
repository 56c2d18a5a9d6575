"""Pose-conditioned video prediction with a conditional VAE.

From one frame and 630 pose labels, predict the other 629 frames.

Notation, the same in maths, code and figures: `x` frames (b, t, 3, 32, 64) in [0, 1]; `p` pose labels, same
shape; `x[:, 0]` is given; `z` latents; `mu`, `logvar`; `beta` KL weight; `tf_ratio` probability of feeding
the true previous frame; PSNR in dB with peak 1; KL in nats per frame.
"""

import os

from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
from cvae_lab.cvae import CVAE

__all__ = ["CVAE", "ModelConfig", "RunConfig", "TrainConfig"]

# oneDNN keeps what it has compiled for 1024 shapes, and waves of changing sizes have more: it would compile them
# anew at every step. Read at a process's first convolution.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
