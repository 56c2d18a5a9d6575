"""The network: the five modules of the course's code, smaller versions of these modules, and the complete model."""

from cvae_lab.models.cvae import CVAE, reparameterise

__all__ = ["CVAE", "reparameterise"]
