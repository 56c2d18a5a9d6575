"""Scores of a model on clips, diagnostics of its latent, variety of its samples, corrections at test time."""

from cvae_lab.evaluation.scoring import evaluate, predict_clips

__all__ = ["evaluate", "predict_clips"]
