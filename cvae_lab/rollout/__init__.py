"""Prediction of consecutive frames: the assignment's loop, the batched training unroll, and free-running prediction."""

from cvae_lab.rollout.latents import (
    Latents,
    NoiseSource,
    clip_noise,
    clip_streams,
    posterior_latents,
    prior_latents,
    prior_mean_latents,
    zero_latents,
)
from cvae_lab.rollout.predict import evaluating, free_run, predict, predict_in_chunks, predict_with_posterior
from cvae_lab.rollout.reference import Feedback, UnrollOutput, reference_predict, reference_unroll
from cvae_lab.rollout.unroll import unroll

__all__ = [
    "Feedback",
    "Latents",
    "NoiseSource",
    "UnrollOutput",
    "clip_noise",
    "clip_streams",
    "evaluating",
    "free_run",
    "posterior_latents",
    "predict",
    "predict_in_chunks",
    "predict_with_posterior",
    "prior_latents",
    "prior_mean_latents",
    "reference_predict",
    "reference_unroll",
    "unroll",
    "zero_latents",
]
