"""Configuration of a run: model, training and data. Every parameter has a type, a range and a description.

Parameters are set in the parameters cell of a notebook, or with `-p NAME VALUE` on the command line.
`RunConfig.from_params` assigns each name to the model or to the training. pydantic checks types and ranges.
"""

from cvae_lab.config.checks import ConfigError, Parameter
from cvae_lab.config.model import ModelConfig, Preset
from cvae_lab.config.protocols import PROTOCOLS
from cvae_lab.config.run import PROTOCOL, RENAMED, RunConfig, current_names, parameters
from cvae_lab.config.train import KLStrategy, TFStrategy, TrainConfig

__all__ = [
    "PROTOCOL",
    "PROTOCOLS",
    "RENAMED",
    "ConfigError",
    "KLStrategy",
    "ModelConfig",
    "Parameter",
    "Preset",
    "RunConfig",
    "TFStrategy",
    "TrainConfig",
    "current_names",
    "parameters",
]
