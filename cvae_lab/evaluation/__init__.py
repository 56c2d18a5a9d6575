"""Evaluation of a model: scores on clips, diagnostics of the latent, sample quality, and test-time corrections."""

from cvae_lab.evaluation.scoring import evaluate, predict_clips

__all__ = ["evaluate", "predict_clips"]
