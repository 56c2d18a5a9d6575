#!/usr/bin/env bash
# torchmetrics 1.9.0: structural_similarity_index_measure also averages positions whose 11x11 window leaves the image,
# with the image reflected there. Wang et al. 2004 and scikit-image (gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False) average only positions whose window lies inside.
# On a 32x64 frame 42 % of all positions are border, so the two values of one frame pair differ visibly.
# Consequence here: evaluation.metrics computes the value of the valid region.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v && v/bin/pip install -q torch==2.13.0 torchmetrics==1.9.0 scikit-image==0.26.0 2>/dev/null
v/bin/python - <<'P'
import numpy as np, torch, torchmetrics, skimage
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

y, x = np.mgrid[:32, :64] / 32
truth = 0.5 + 0.3 * np.sin(6 * x + 2 * y)
prediction = truth + 0.2 * np.cos(40 * y) * (np.abs(x - 1) < 0.5)  # wrong in the middle, right at the left and right
ours = structural_similarity(
    truth, prediction, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
)
pair = [torch.tensor(a, dtype=torch.float64)[None, None] for a in (prediction, truth)]
theirs = float(structural_similarity_index_measure(*pair, data_range=1.0))
border = 1 - (32 - 10) * (64 - 10) / (32 * 64)
print("torchmetrics", torchmetrics.__version__, "scikit-image", skimage.__version__)
print(f"scikit-image {ours:.4f}, torchmetrics {theirs:.4f}, border {border:.0%} of all positions")
assert abs(ours - theirs) > 0.01
P
