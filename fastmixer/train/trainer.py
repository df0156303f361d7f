"""The training loop: reads batches, adds up gradients, steps, measures, saves, and can go on where it stopped.

Everything random is a function of (seed, step), so a resumed run makes the same bits as one that never stopped. Knows
nothing of how the model computes.
"""

import json
import math
import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.data import BatchReader, Dataset, iterate_batches, open_dataset, write_dataset
from fastmixer.data.shards import tokenizer_digest
from fastmixer.kernels.peak import measured_peak_flops
from fastmixer.model import Transformer
from fastmixer.ops.attention import PRECISIONS
from fastmixer.ops.checks import check_choice
from fastmixer.ops.dropout import fold_seed
from fastmixer.ops.profile import Profile, profiled
from fastmixer.text import Tokenizer
from fastmixer.train.checkpoint import (
    STATE,
    clean_up,
    list_checkpoints,
    restore_checkpoint,
    save_checkpoint,
    way_on,
    whole_checkpoint,
)
from fastmixer.train.interrupts import Interrupts
from fastmixer.train.memory import check_training_memory, peak_memory
from fastmixer.train.metrics import MetricsWriter, tensorboard_writer
from fastmixer.train.optimizer import AdamW
from fastmixer.train.run_folder import locked
from fastmixer.train.schedule import learning_rate_at
from fastmixer.train.settings import TrainSettings
from fastmixer.weights.files import read_json, replace_file

DATA, SETTINGS = "data", "run.json"
SAMPLE_TOKENS = 64
MODEL_FLAGS = ("checkpoint_activations", "force_precision", "sparse_embedding")  # options of a model beside precision
WARM_STEPS, PROFILED_STEPS = 4, 3  # so many steps go by before so many are profiled


class NonFiniteError(FloatingPointError):
    """The loss or the gradients became NaN or infinite; says at which step and where first."""


@dataclass
class TrainResult:
    """How a run ended. losses, validation_losses: (step, nats a token); reason: "finished", "early stop", "interrupted";
    signal: what interrupted it (0: nothing); peak_memory: bytes that the process had resident at most; profile: where the
    time of a few steps went."""

    folder: Path
    reason: str = "finished"
    signal: int = 0
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
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"Trainer: tokenizer must be a Tokenizer; got {type(tokenizer).__name__}")
        model.tokenizer = tokenizer
        self.settings.check_together(model.config, resumed=resume)
        self._check_sample_prompt(tokenizer)
        if tensorboard:
            tensorboard_writer()
        if not resume:
            self._require_no_run()
        if isinstance(data, Dataset):
            self.data = data
        else:
            data = [data] if isinstance(data, (str, Path)) else list(data)
            for path in data:
                if not Path(path).is_file():  # said before there is a folder
                    raise FileNotFoundError(f"{path} is not a file")
            with locked(self.folder):
                self.data = write_dataset(data, tokenizer, self.folder / DATA)
        self._check_data(tokenizer)
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
        self._asked: dict[str, Any] = {}  # of the model's options what run.json says, where this machine cannot do so

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        data: Dataset | None = None,
        *,
        checkpoint_activations: bool | None = None,
        force_precision: bool | None = None,
        **options: Any,
    ) -> "Trainer":
        """The trainer of a run's folder, ready to go on from its newest checkpoint with the settings it began with.

        data: the run's Dataset, if it has been moved since. checkpoint_activations, force_precision: the model's from here
        on (None: as before); the bits are the same with or without the first. Other options as Trainer's. Raises
        FileNotFoundError or ValueError naming the file that is damaged, and the newest checkpoint that is whole.
        """
        folder = Path(folder)
        saved = _read_run(folder / SETTINGS)
        how = saved["model"]
        changed = {"checkpoint_activations": checkpoint_activations, "force_precision": force_precision}
        how.update({name: value for name, value in changed.items() if value is not None})
        with locked(folder):
            checkpoint, _ = whole_checkpoint(folder)
            if data is None:
                data = open_dataset(folder / saved["data"])
            model = Transformer.load(checkpoint, **how)
        assert model.tokenizer is not None  # a whole checkpoint has one
        trainer = cls(model, model.tokenizer, data, folder=folder, resume=True, **{**saved["settings"], **options})
        trainer._asked = {name: how[name] for name in ("precision",) if name in how}
        return trainer

    def fit(self) -> TrainResult:
        """Train to the last step, an early stop, or Ctrl-C, SIGTERM or SIGHUP (which finish the step and save).

        Raises NonFiniteError naming the step and the first place that is NaN or infinite, with nothing overwritten;
        OSError if a checkpoint cannot be written, with the older ones intact, or another run uses the folder; ValueError if
        the run is past `steps`, or its checkpoint damaged or of other data.
        """
        with locked(self.folder):
            clean_up(self.folder)
            if self._resume:
                self._restore()
            elif self.step == 0:  # another run may have been there since this one was made
                self._require_no_run()
            if self.settings.steps < self.step:
                raise ValueError(
                    f"Trainer: steps must be at least {self.step}, which this run has reached; got {self.settings.steps}"
                )
            about = {
                "data": self._data_path(), "model": {**self.model.options, **self._asked},
                "settings": asdict(self.settings),
            }  # fmt: skip
            replace_file(self.folder / SETTINGS, json.dumps(about, indent=2) + "\n")
            metrics = MetricsWriter(self.folder, step=self.step, tensorboard=self._tensorboard)
            result = TrainResult(self.folder, step=self.step)
            try:
                with Interrupts(self) as interrupts, self._bar() as bar:
                    self._loop(result, metrics, bar)
                    result.signal = interrupts.number
            finally:
                metrics.close()
        result.peak_memory = peak_memory()
        return result

    # ---- what can be wrong ----

    def _require_no_run(self) -> None:
        if list_checkpoints(self.folder):
            raise FileExistsError(f"{self.folder} already holds a run; resume it, or choose another folder")

    def _check_sample_prompt(self, tokenizer: Tokenizer) -> None:
        """ValueError now instead of at the first sample."""
        settings, context = self.settings, self.model.config.context
        if not settings.sample_every:
            return
        try:
            count = len(tokenizer.encode(settings.sample_prompt, begin=True))
        except ValueError as error:
            raise ValueError(f"Trainer: sample_prompt: {error}") from error
        if not 1 <= count <= context:
            raise ValueError(
                f"Trainer: sample_prompt must have 1 to {context} tokens, the model's context; got {count}: "
                f"{settings.sample_prompt[:40]!r}"
            )

    def _check_data(self, tokenizer: Tokenizer) -> None:
        """ValueError for data of another tokenizer, or without what the settings need. Of a run that goes on the checkpoint
        knows the data: a newer library may write the same tokenizer in other words."""
        train, validation = self.data.train, self.data.validation
        if validation.digest != train.digest:
            raise ValueError(f"Trainer: {validation.path} was made with another tokenizer than {train.path}")
        if not self._resume and train.digest != tokenizer_digest(tokenizer):
            raise ValueError(
                f"Trainer: {train.path} was made with another tokenizer: it says {train.digest.hex()}, the tokenizer's "
                f"digest is {tokenizer_digest(tokenizer).hex()}. Tokenize the text with this one, or train with that one"
            )
        if train.vocab > self.model.config.vocab:
            raise ValueError(
                f"Trainer: the data's vocab of {train.vocab} is more than the model's {self.model.config.vocab}"
            )
        if self.settings.patience and len(validation) < 2:
            raise ValueError(
                f"Trainer: patience {self.settings.patience} counts validation losses and needs a validation part of at "
                f"least 2 tokens; {validation.path} has {len(validation)}"
            )

    def _restore(self) -> None:
        """Go on from the newest checkpoint."""
        self.step, state = restore_checkpoint(self.folder, self.model, self.optimizer)
        where = list_checkpoints(self.folder)[-1] / STATE
        for name, kinds, expected in (
            ("reader", dict, "an object"), ("best", (int, float, type(None)), "a number or null"),
            ("without_better", int, "an integer"),
        ):  # fmt: skip
            if name not in state or not isinstance(state[name], kinds):
                got = f"got {state[name]!r}" if name in state else "it is missing"
                raise ValueError(f"{where}: state's {name!r} must be {expected}; {got}. {way_on(self.folder)}")
        try:
            self.reader.restore(state["reader"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if self.step > 0:  # step 0 is evaluated once more, and must not count as one without a gain
            self._best, self._without_better = state["best"] or math.inf, state["without_better"]

    # ---- the loop ----

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
            inside = first_profiled <= self.step < first_profiled + PROFILED_STEPS
            with profiled(result.profile) if inside else nullcontext():  # which first measures the machine, for seconds
                started = clock.perf_counter()
                loss, norm, rate = self._one_step()
                seconds = clock.perf_counter() - started
            self.step += 1
            self._report(result, metrics, bar, loss, norm, rate, seconds)
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
            self.step, steps=settings.steps, peak=settings.learning_rate, minimum=settings.lowest_rate,
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
            message = f"step {self.step} could not be saved ({error.strerror or error}); " + (
                f"the checkpoint {kept[-1]} is intact" if kept else "there is no older checkpoint"
            )
            raise OSError(*filter(None, (error.errno, message))) from error

    def _tell(self, bar: Any, message: str) -> None:
        """Validation losses and samples: to on_message if there is one, else above the bar if there is one."""
        try:
            if self._on_message is not None:
                self._on_message(message)
            elif self.progress:
                bar.write(message)
        except OSError:
            if not self._interrupted:  # by SIGHUP: the terminal is gone, and the step is yet to be saved
                raise

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.settings.steps, initial=self.step, desc="training", unit="step",
            disable=not self.progress or self.step == self.settings.steps, dynamic_ncols=True, mininterval=0.3,
        )  # fmt: skip


def _read_run(path: Path) -> dict[str, Any]:
    """What run.json holds. FileNotFoundError, or ValueError that names it, the field and its value."""
    run = read_json(path)
    for name, kind in (("data", str), ("settings", dict), ("model", dict)):
        value = run.get(name)
        if not isinstance(value, kind):
            raise ValueError(f"{path}: field {name!r} must be a {kind.__name__}; got {value!r}")
    known = {"settings": [field.name for field in fields(TrainSettings)], "model": [*MODEL_FLAGS, "precision"]}
    for name, names in known.items():
        for unknown in run[name].keys() - set(names):
            raise ValueError(f"{path}: {name} has an unknown field {unknown!r}; known are {', '.join(sorted(names))}")
    try:
        TrainSettings(**run["settings"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    check_choice(f"{path}: model", "precision", run["model"].get("precision", PRECISIONS[0]), PRECISIONS)
    for name in MODEL_FLAGS:
        if not isinstance(run["model"].get(name, False), bool):
            raise ValueError(f"{path}: model: {name} must be true or false; got {run['model'][name]!r}")
    return run


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
