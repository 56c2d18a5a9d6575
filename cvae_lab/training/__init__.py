"""Training: the training step, the loop over epochs, and checkpoints."""

from cvae_lab.training.checkpoint import CheckpointError, load_model
from cvae_lab.training.loop import fit, train_step
from cvae_lab.training.meter import TrainingDivergedError
from cvae_lab.training.state import TrainState

__all__ = ["CheckpointError", "TrainState", "TrainingDivergedError", "fit", "load_model", "train_step"]
