"""The loop: batches -> loss -> gradients -> new weights; schedules, checkpoints, metrics."""

from fastmixer.train.optimizer import AdamW
from fastmixer.train.trainer import NonFiniteError, Trainer, TrainResult, TrainSettings

__all__ = ["AdamW", "NonFiniteError", "TrainResult", "TrainSettings", "Trainer"]
