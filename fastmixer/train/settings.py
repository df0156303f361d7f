"""How to train: every setting checked on its own, and held to each other and to the model. Knows no loop and no data."""

import math
from dataclasses import dataclass

from fastmixer.model import ModelConfig
from fastmixer.ops.checks import check_choice, check_integer, check_number
from fastmixer.train.schedule import SCHEDULES

MINIMUM_PART = 10  # the learning rate ends at a tenth of the peak, if it is not said


@dataclass(frozen=True)
class TrainSettings:
    """How to train; together with the data and the model's first weights they decide every bit of the result.

    steps of accumulate * batch windows of `time` tokens; learning_rate is the peak, reached after `warmup` steps and let
    down to min_learning_rate (None: a tenth of the peak) by schedule ("cosine", "linear", "constant"). clip_norm: limit of
    the gradients' norm (None: no limit). evaluate_every, sample_every, save_every: in steps (0: never, but the end is
    always evaluated and saved). patience: evaluations without a better validation loss after which to stop (0: never).
    keep_last: checkpoints kept.
    """

    steps: int = 1000
    batch: int = 8
    time: int = 128
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 50
    min_learning_rate: float | None = None
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    accumulate: int = 1
    evaluate_every: int = 100
    evaluate_batches: int = 20
    sample_every: int = 0
    sample_prompt: str = "\n"
    patience: int = 0
    save_every: int = 200
    keep_last: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        op = "TrainSettings"
        for name in ("steps", "batch", "time", "accumulate", "evaluate_batches", "keep_last"):
            check_integer(op, name, getattr(self, name), at_least=1)
        for name in ("warmup", "evaluate_every", "sample_every", "patience", "save_every", "seed"):
            check_integer(op, name, getattr(self, name), at_least=0)
        for name in ("learning_rate", "weight_decay"):
            check_number(op, name, getattr(self, name), at_least=0)
        if self.min_learning_rate is None:
            object.__setattr__(self, "min_learning_rate", self.learning_rate / MINIMUM_PART)
        check_number(op, "min_learning_rate", self.min_learning_rate, at_least=0)
        if self.clip_norm == math.inf:
            raise ValueError(f"{op}: clip_norm must be a finite number > 0, or None for no clipping; got inf")
        if self.clip_norm is not None:
            check_number(op, "clip_norm", self.clip_norm, above=0)
        check_choice(op, "schedule", self.schedule, SCHEDULES)
        if not isinstance(self.sample_prompt, str):
            raise TypeError(f"{op}: sample_prompt must be a string; got {type(self.sample_prompt).__name__}")

    @property
    def lowest_rate(self) -> float:
        """min_learning_rate, which is a number once the settings are made."""
        assert self.min_learning_rate is not None
        return self.min_learning_rate

    def check_together(self, config: ModelConfig, *, resumed: bool = False) -> None:
        """ValueError for settings that do not fit each other or the model; of a run that goes on only for those that may
        change then: it is to make the bits that it would have made."""
        if self.time > config.context:
            raise ValueError(f"Trainer: time {self.time} is longer than the model's context of {config.context}")
        if self.patience and not self.evaluate_every:
            raise ValueError(
                f"Trainer: patience {self.patience} counts evaluations and needs evaluate_every >= 1; got 0"
            )
        if self.schedule != "constant" and self.lowest_rate > self.learning_rate and not resumed:
            raise ValueError(
                f"Trainer: min_learning_rate must be at most the learning rate's peak of {self.learning_rate}; "
                f"got {self.lowest_rate}"
            )
