"""`npnet-train`: noise pairs to a checkpoint."""

from npnet_training.training.batch import TrainBatch
from npnet_training.training.settings import TrainSettings

__all__ = ["TrainBatch", "TrainSettings"]
