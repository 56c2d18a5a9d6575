"""The network: the course's five modules, a compact version of them, and how they are connected."""

from cvae_lab.models.cvae import CVAE, reparameterise

__all__ = ["CVAE", "reparameterise"]
