"""The training loop: reads batches, adds up gradients, steps, measures, saves, and can go on where it stopped.

Everything random is a function of (seed, step), so a resumed run makes the same bits as one that never stopped. Knows
nothing of how the model computes.
"""

import math
import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.data import BatchReader, Dataset, iterate_batches, open_dataset, write_dataset
from fastmixer.kernels.peak import measured_peak_flops
from fastmixer.model import Transformer
from fastmixer.ops.checks import check_choice, check_integer, check_number
from fastmixer.ops.dropout import fold_seed
from fastmixer.ops.profile import Profile, profiled
from fastmixer.text import Tokenizer
from fastmixer.train.checkpoint import clean_up, list_checkpoints, restore_checkpoint, save_checkpoint
from fastmixer.train.interrupts import Interrupts
from fastmixer.train.memory import check_training_memory, peak_memory
from fastmixer.train.metrics import MetricsWriter
from fastmixer.train.optimizer import AdamW
from fastmixer.train.schedule import SCHEDULES, learning_rate_at
from fastmixer.weights.files import read_json, write_json

DATA, SETTINGS = "data", "run.json"
SAMPLE_TOKENS = 64
WARM_STEPS, PROFILED_STEPS = 4, 3  # so many steps go by before so many are profiled


class NonFiniteError(FloatingPointError):
    """The loss or the gradients became NaN or infinite; says at which step and where first."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; together with the data and the model's first weights they decide every bit of the result.

    steps of accumulate * batch windows of `time` tokens; learning_rate is the peak, reached after `warmup` steps and let
    down to min_learning_rate by schedule ("cosine", "linear", "constant"). evaluate_every, sample_every, save_every: in
    steps (0: never, but the end is always evaluated and saved). patience: evaluations without a better validation loss
    after which to stop (0: never). keep_last: checkpoints kept.
    """

    steps: int = 1000
    batch: int = 8
    time: int = 128
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 50
    min_learning_rate: float = 1e-4
    weight_decay: float = 0.1
    clip_norm: float = 1.0
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
        for name in ("steps", "batch", "time", "accumulate", "evaluate_batches", "keep_last"):
            check_integer("TrainSettings", name, getattr(self, name), at_least=1)
        for name in ("warmup", "evaluate_every", "sample_every", "patience", "save_every", "seed"):
            check_integer("TrainSettings", name, getattr(self, name), at_least=0)
        for name in ("learning_rate", "min_learning_rate", "weight_decay"):
            check_number("TrainSettings", name, getattr(self, name), at_least=0)
        check_number("TrainSettings", "clip_norm", self.clip_norm, above=0)
        check_choice("TrainSettings", "schedule", self.schedule, SCHEDULES)


@dataclass
class TrainResult:
    """How a run ended. losses, validation_losses: (step, nats a token); reason: "finished", "early stop", "interrupted";
    peak_memory: bytes that the process had resident at most; profile: where the time of a few steps went."""

    folder: Path
    reason: str = "finished"
    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    peak_share: float = 0.0
    peak_memory: int = 0
    profile: Profile = field(default_factory=Profile)

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss, None where there was no validation text."""
        return self.validation_losses[-1][1] if self.validation_losses else None


class Trainer:
    """Trains a model on data and keeps everything about the run in one folder.

    data: a Dataset, or files of text, which are tokenized into folder/data. The folder gets metrics.jsonl, run.json and
    checkpoints/step-*/, each of which is a model folder; fm.load(folder) opens the newest. Settings are those of
    TrainSettings, by keyword. resume=True goes on from the newest checkpoint, bit for bit as if never stopped.
    progress: show a bar, and validation losses and samples above it; on_message: a function that gets those lines instead.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        data: Dataset | str | Path | Sequence[str | Path],
        *,
        folder: str | Path,
        resume: bool = False,
        tensorboard: bool = False,
        progress: bool = True,
        on_message: Callable[[str], None] | None = None,
        **settings: Any,
    ):
        self.folder, self.model, self.settings = Path(folder), model, TrainSettings(**settings)
        self.progress, self._tensorboard, self._resume = progress, tensorboard, resume
        self._on_message = on_message
        model.tokenizer = tokenizer
        if self.settings.time > model.config.context:
            raise ValueError(
                f"Trainer: time {self.settings.time} is longer than the model's context of {model.config.context}"
            )
        if not resume and list_checkpoints(self.folder):
            raise FileExistsError(f"{self.folder} already holds a run; resume it, or choose another folder")
        self.data = data if isinstance(data, Dataset) else write_dataset(data, tokenizer, self.folder / DATA)
        if self.data.train.vocab > model.config.vocab:
            raise ValueError(
                f"Trainer: the data's vocab of {self.data.train.vocab} is more than the model's {model.config.vocab}"
            )
        self.reader = BatchReader(self.data.train, self.settings.batch, self.settings.time, self.settings.seed)
        held = model.parameters.data.nbytes + model.parameters.gradients_data.nbytes
        check_training_memory(
            model.config, self.settings.batch, self.settings.time, precision=model.precision,
            checkpoint_activations=model.checkpoint_activations, held=held,
        )  # fmt: skip
        self.optimizer = AdamW(
            model.parameters, weight_decay=self.settings.weight_decay, clip_norm=self.settings.clip_norm
        )
        self.step = 0
        self._best, self._without_better = math.inf, 0
        self._interrupted = False

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        data: Dataset | None = None,
        *,
        checkpoint_activations: bool | None = None,
        **options: Any,
    ) -> "Trainer":
        """The trainer of a run's folder, ready to go on from its newest checkpoint with the settings it began with.

        data: the run's Dataset, if it has been moved since. checkpoint_activations: the model's from here on (None: as
        before); the bits are the same either way. Other options as Trainer's.
        """
        folder = Path(folder)
        settings = read_json(folder / SETTINGS)
        for name, kind in (("data", str), ("settings", dict), ("model", dict)):
            value = settings.get(name)
            if not isinstance(value, kind):
                raise ValueError(f"{folder / SETTINGS}: field {name!r} must be a {kind.__name__}; got {value!r}")
        if data is None:
            data = open_dataset(folder / settings["data"])
        model = Transformer.load(folder, **settings["model"])
        assert model.tokenizer is not None
        if checkpoint_activations is not None:
            model.checkpoint_activations = checkpoint_activations
        return cls(model, model.tokenizer, data, folder=folder, resume=True, **{**settings["settings"], **options})

    def fit(self) -> TrainResult:
        """Train to the last step, an early stop or Ctrl-C (which finishes the step and saves).

        Raises NonFiniteError naming the step and the first place that is NaN or infinite, with nothing overwritten;
        OSError if a checkpoint cannot be written, with the older ones intact.
        """
        clean_up(self.folder)
        if self._resume:
            self.step, state = restore_checkpoint(self.folder, self.model, self.optimizer)
            self.reader.restore(state["reader"])
            if self.step > 0:  # step 0 is evaluated once more, and must not count as one without a gain
                self._best, self._without_better = state["best"] or math.inf, state["without_better"]
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"data": self._data_path(), "model": self.model.options, "settings": asdict(self.settings)}
        write_json(self.folder / SETTINGS, about)
        metrics = MetricsWriter(self.folder, step=self.step, tensorboard=self._tensorboard)
        result = TrainResult(self.folder, step=self.step)
        try:
            with Interrupts(self), self._bar() as bar:
                self._loop(result, metrics, bar)
        finally:
            metrics.close()
        result.peak_memory = peak_memory()
        return result

    def _data_path(self) -> str:
        """Where the data lies: within the run's folder if it does, so that the folder can be moved."""
        data, run = self.data.folder.resolve(), self.folder.resolve()
        return str(data.relative_to(run) if data.is_relative_to(run) else data)

    def _loop(self, result: TrainResult, metrics: MetricsWriter, bar: Any) -> None:
        settings, saved_at, evaluated_at = self.settings, self.step if self._resume else -1, -1
        if self.step == 0:
            self._evaluate(result, metrics, bar)
            evaluated_at = 0
        if self._patience_is_over():  # a run that had stopped early and goes on, has nothing left to do
            result.reason = "early stop"
        first_profiled = self.step + min(WARM_STEPS, max(0, settings.steps - self.step - PROFILED_STEPS))
        while self.step < settings.steps and not self._interrupted and result.reason != "early stop":
            started = clock.perf_counter()
            inside = first_profiled <= self.step < first_profiled + PROFILED_STEPS
            with profiled(result.profile) if inside else nullcontext():
                loss, norm, rate = self._one_step()
            self.step += 1
            self._report(result, metrics, bar, loss, norm, rate, clock.perf_counter() - started)
            if _due(self.step, settings.evaluate_every):
                self._evaluate(result, metrics, bar)
                evaluated_at = self.step
                if self._patience_is_over():
                    result.reason = "early stop"
            if _due(self.step, settings.sample_every):
                text = self.model.generate(
                    settings.sample_prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, seed=settings.seed
                )
                metrics.write(self.step, sample=text)
                self._tell(bar, f"step {self.step}: {settings.sample_prompt}{text}")
            if _due(self.step, settings.save_every):
                self._save()
                saved_at = self.step
        if self._interrupted:
            result.reason = "interrupted"
        elif evaluated_at != self.step:
            self._evaluate(result, metrics, bar)
        if saved_at != self.step:
            self._save()
        result.step = self.step

    def _patience_is_over(self) -> bool:
        return 0 < self.settings.patience <= self._without_better

    def _one_step(self) -> tuple[float, float, float]:
        """(mean loss, gradient norm, learning rate) of one optimizer step."""
        settings = self.settings
        rate = learning_rate_at(
            self.step, steps=settings.steps, peak=settings.learning_rate, minimum=settings.min_learning_rate,
            warmup=settings.warmup, schedule=settings.schedule,
        )  # fmt: skip
        total = 0.0
        for part in range(settings.accumulate):
            ids, targets = self.reader.next()
            seed = fold_seed(settings.seed, self.step * settings.accumulate + part)
            loss = self.model.forward_backward(ids, targets, loss_scale=1 / settings.accumulate, dropout_seed=seed)
            if not math.isfinite(loss):
                raise self._non_finite(f"the loss is {loss}", ids, targets)
            total += loss / settings.accumulate
        try:
            norm = self.optimizer.step(rate)
        except FloatingPointError as error:
            raise self._non_finite("the gradients' norm is not finite", ids, targets) from error
        return total, norm, rate

    def _non_finite(self, what: str, ids: np.ndarray, targets: np.ndarray) -> NonFiniteError:
        place = self.model.first_nonfinite(ids, targets) or "gone when computed again"
        last = list_checkpoints(self.folder)
        kept = f"the last checkpoint is {last[-1]}" if last else "no checkpoint was written"
        return NonFiniteError(f"step {self.step + 1}: {what}; first at: {place}. Nothing was overwritten; {kept}")

    def _evaluate(self, result: TrainResult, metrics: MetricsWriter, bar: Any) -> None:
        """Validation loss over the same first batches every time."""
        shard = self.data.validation
        time = min(self.settings.time, len(shard) - 1)
        if time < 1:
            return
        total, count = 0.0, 0
        for ids, targets in iterate_batches(shard, self.settings.batch, time, self.settings.evaluate_batches):
            total += self.model.loss(ids, targets) * targets.size
            count += targets.size
        loss = total / count
        result.validation_losses.append((self.step, loss))
        metrics.write(self.step, validation_loss=loss, perplexity=_exp(loss))
        self._tell(bar, f"step {self.step:>6}   validation loss {loss:.4f}   perplexity {_exp(loss):.1f}")
        if loss < self._best:
            self._best, self._without_better = loss, 0
        else:
            self._without_better += 1

    def _report(
        self,
        result: TrainResult,
        metrics: MetricsWriter,
        bar: Any,
        loss: float,
        norm: float,
        rate: float,
        seconds: float,
    ) -> None:
        settings = self.settings
        tokens = settings.accumulate * settings.batch * settings.time
        flops = settings.accumulate * self.model.config.training_flops(settings.batch, settings.time)
        result.losses.append((self.step, loss))
        result.tokens_per_second = tokens / seconds
        result.peak_share = flops / seconds / measured_peak_flops(self.model.precision)
        metrics.write(
            self.step, loss=loss, learning_rate=rate, gradient_norm=norm, tokens_per_second=result.tokens_per_second,
            peak_share=result.peak_share, seconds=seconds,
        )  # fmt: skip
        bar.set_postfix_str(
            f"loss {loss:.3f}, {result.tokens_per_second:,.0f} tokens/s, {result.peak_share:.0%} of peak", refresh=False
        )
        bar.update(1)

    def _save(self) -> None:
        state = {
            "reader": self.reader.state(),
            "best": None if math.isinf(self._best) else self._best,
            "without_better": self._without_better,
        }
        try:
            save_checkpoint(self.folder, self.step, self.model, self.optimizer, state, self.settings.keep_last)
        except OSError as error:
            kept = list_checkpoints(self.folder)
            raise OSError(
                error.errno,
                f"step {self.step} could not be saved ({error.strerror or error}); "
                + (f"the checkpoint {kept[-1]} is intact" if kept else "there is no older checkpoint"),
            ) from error

    def _tell(self, bar: Any, message: str) -> None:
        """Validation losses and samples: to on_message if there is one, else above the bar if there is one."""
        if self._on_message is not None:
            self._on_message(message)
        elif self.progress:
            bar.write(message)

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.settings.steps, initial=self.step, desc="training", unit="step", disable=not self.progress,
            dynamic_ncols=True, mininterval=0.3,
        )  # fmt: skip


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
