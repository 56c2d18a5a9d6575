"""Posterior collapse and drift: what a latent does, and whether it can do anything at all."""

from jaxtyping import Float
from torch import Tensor


def collapse_beta(residuals: Float[Tensor, "n d"], iterations: int = 50) -> float:
    """The handout-scale beta above which the best linear latent is dead, from residuals a latent could explain.

    A linear VAE's latent survives while sigma^2 = beta D / 2 is below the largest eigenvalue of the residuals'
    covariance (Lucas et al. 2019, section 4), so the threshold is 2 lambda_max / D. Residuals are one row per frame,
    D values each; their mean is removed. The eigenvalue is found by power iteration.
    """
    centred = residuals - residuals.mean(0)
    direction = centred[centred.square().sum(1).argmax()]
    for _ in range(iterations):
        direction = centred.T @ (centred @ (direction / direction.norm()))
    return 2 * float(direction.norm()) / len(centred) / residuals.shape[1]
