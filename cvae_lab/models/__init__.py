"""The network: the five modules of the course's code, a smaller version of them, and the model that connects them."""

from cvae_lab.models.cvae import CVAE, reparameterise

__all__ = ["CVAE", "reparameterise"]
