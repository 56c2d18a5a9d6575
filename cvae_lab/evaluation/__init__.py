"""Scores of a model on clips, diagnostics of its latent, sample quality, and test-time corrections."""

from cvae_lab.evaluation.scoring import evaluate, predict_clips

__all__ = ["evaluate", "predict_clips"]
