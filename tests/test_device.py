"""The choice of device and precision, and the compilation of convolutions on a CPU."""

import os
import subprocess
import sys

import pytest

SHAPES = """
import sys
import torch
from torch.nn import functional as F

if sys.argv[1] == "ours":
    import cvae_lab
    import cvae_lab.models.device
kernel = torch.zeros(16, 16, 3, 3)
for round in range(2):
    print("round", round, flush=True)
    for size in range(700):  # each shape needs about three primitives
        F.conv2d(torch.zeros(size % 30 + 1, 16, 4, size // 30 + 4), kernel)
"""
