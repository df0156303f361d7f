"""The loop: batches -> loss -> gradients -> new weights; schedules, checkpoints, metrics."""

from fastmixer.train.embedder import EmbedderResult, EmbedderSettings, EmbedderTrainer
from fastmixer.train.optimizer import AdamW
from fastmixer.train.trainer import NonFiniteError, Trainer, TrainResult, TrainSettings

__all__ = [
    "AdamW", "EmbedderResult", "EmbedderSettings", "EmbedderTrainer", "NonFiniteError", "TrainResult", "TrainSettings",
    "Trainer",
]  # fmt: skip
