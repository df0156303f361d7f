"""Fine-tuning an encoder on pairs of texts that belong together, so that their vectors lie close and others' apart.

Batches, dropout and what is held out are functions of (seed, step): the same bits on any number of threads. Knows nothing
of how the encoder computes or what files hold.
"""

import math
import os
import time as clock
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.data.pairs import TextPair, as_pairs, read_pairs
from fastmixer.embed.batches import longest_first
from fastmixer.embed.pooling import pool
from fastmixer.embed.sentence_tokenizer import SentenceTokenizer
from fastmixer.memory import available_memory
from fastmixer.model.trainable_encoder import (
    EMBEDDINGS,
    TrainableEncoder,
    numbers_per_token,
)
from fastmixer.ops.attention import PRECISIONS
from fastmixer.ops.checks import check_choice, check_integer, check_number
from fastmixer.ops.dropout import fold_seed
from fastmixer.train.contrastive import MAX_SCALE, contrastive_loss
from fastmixer.train.dense import DenseStages, first_values
from fastmixer.train.interrupts import Interrupts
from fastmixer.train.memory import FLOAT, OPTIMIZER_COPIES
from fastmixer.train.optimizer import AdamW
from fastmixer.train.pair_tokens import Prompts, TokenizedPairs, batches, batches_in_epoch
from fastmixer.train.retrieval import RetrievalScore, retrieval_score
from fastmixer.train.schedule import SCHEDULES, learning_rate_at
from fastmixer.train.trainer import NonFiniteError
from fastmixer.weights.encoder_export import require_free, write_encoder_folder
from fastmixer.weights.encoder_folder import EncoderSource, open_encoder

BETAS = (0.9, 0.999)
TRAINED_POOLINGS = ("mean", "cls", "max", "last")  # those that have a way back: contrastive.pool_backward
EVALUATED_TOKENS = 2048  # at once
WARM_PART = 10  # the tenth part of all steps warms up, if it is not said
MOST_HELD_OUT = 1000  # pairs that a part held out has at most
Pairs = str | Path | Iterable[Any]


@dataclass(frozen=True)
class EmbedderSettings:
    """How to fine-tune; together with the model and the pairs they decide every bit of the result.

    epochs over the pairs, or so many steps; batch: pairs of a step, each of whose other texts are negatives; learning_rate
    is the peak, reached after warmup steps (None: a tenth of all) and let down to 0 by schedule. dropout: part of
    activations and attention's weights. scale: of cosines before the softmax; symmetric: anchors are looked for too.
    max_length: tokens of a text (None: the model's limit). anchor_prompt, text_prompt: what stands before anchors, and
    before positives and negatives (None: the model's prompt for queries, and for documents; without it the default prompt,
    if there is one). Unless both are nothing unasked, they are the new model's prompts for queries and documents. holdout:
    part of the pairs kept to evaluate on.
    """

    epochs: int = 1
    steps: int | None = None
    batch: int = 32
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup: int | None = None
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float = 0.1
    scale: float = 20.0
    symmetric: bool = False
    max_length: int | None = None
    anchor_prompt: str | None = None
    text_prompt: str | None = None
    freeze_embeddings: bool = False
    precision: str = "float32"
    holdout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        op = "EmbedderTrainer"
        check_integer(op, "epochs", self.epochs, at_least=1)
        check_integer(op, "batch", self.batch, at_least=2)  # one pair alone has nothing to be told from
        check_integer(op, "seed", self.seed, at_least=0)
        for name, least in (("steps", 1), ("warmup", 0), ("max_length", 1)):
            if getattr(self, name) is not None:
                check_integer(op, name, getattr(self, name), at_least=least)
        for name in ("learning_rate", "weight_decay"):
            check_number(op, name, getattr(self, name), at_least=0)
        for name in ("dropout", "holdout"):
            check_number(op, name, getattr(self, name), at_least=0, below=1)
        check_number(op, "clip_norm", self.clip_norm, above=0)
        check_number(op, "scale", self.scale, above=0, at_most=MAX_SCALE)
        check_choice(op, "schedule", self.schedule, SCHEDULES)
        check_choice(op, "precision", self.precision, PRECISIONS)


@dataclass
class EmbedderResult:
    """How a fine-tuning ended. losses: nats, one a step; reason: "finished" or "interrupted"; before, after: on the pairs
    held out (None: there were none, or it was interrupted); signal: what interrupted it (0: nothing); saved: whether folder
    was written."""

    folder: Path
    reason: str = "finished"
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    before: RetrievalScore | None = None
    after: RetrievalScore | None = None
    pairs_per_second: float = 0.0
    signal: int = 0
    saved: bool = False


class EmbedderTrainer:
    """Fine-tunes the encoder of a folder (or a name on the hub) on pairs, and writes a folder that fm.load and
    sentence-transformers open.

    pairs: a .jsonl file, or a list of (anchor, positive[, negative]); see data.pairs for both. out: the new folder, which
    must not hold anything; it is written once, at the end. evaluation: pairs to evaluate on (None: a part of pairs is held
    out). fields: other names of the files' fields. Settings are those of EmbedderSettings, by keyword. progress: show a bar
    and what is evaluated; on_message: a function that gets those lines instead. offline: names on the hub from the cache.
    Raises FileNotFoundError, FileExistsError, TypeError or ValueError, MemoryError.
    Source of the loss: Henderson et al. 2017 (arXiv 1705.00652), as sentence-transformers' MultipleNegativesRankingLoss.
    """

    def __init__(
        self,
        model: str | Path,
        pairs: Pairs,
        *,
        out: str | Path,
        evaluation: Pairs | None = None,
        fields: Iterable[str] | None = None,
        progress: bool = True,
        on_message: Callable[[str], None] | None = None,
        offline: bool | None = None,
        **settings: Any,
    ):
        self.out, self.settings = Path(out), EmbedderSettings(**settings)
        self.progress, self._on_message = progress, on_message
        require_free(self.out)
        if isinstance(fields, str):  # which list() below would take for names of a letter each
            raise ValueError(f"EmbedderTrainer: fields must be names, in a list or tuple; got the string {fields!r}")
        names = None if fields is None else list(fields)
        trained, held_out = self._split(_pairs(pairs, names, "pairs"), evaluation, names)
        self.source = open_encoder(model, offline=offline)
        _require_trainable(self.source)
        self.pooling = self.source.recipe.pooling
        prompts, tokenizer = self._prompts(), self._tokenizer()
        self.pairs = TokenizedPairs(trained, tokenizer, prompts)
        self.held_out = TokenizedPairs(held_out, tokenizer, prompts) if held_out else None
        self.batch = min(self.settings.batch, len(self.pairs))
        epoch = batches_in_epoch(len(self.pairs), self.batch)
        self.steps = self.settings.epochs * epoch if self.settings.steps is None else self.settings.steps
        if (self.settings.warmup or 0) > self.steps:
            raise ValueError(
                f"EmbedderTrainer: warmup must be at most {self.steps}, all steps, or the peak is never reached; got "
                f"{self.settings.warmup}"
            )
        self._check_memory(min(epoch, self.steps))
        stages = self.source.recipe.dense
        self.encoder = TrainableEncoder(
            self.source.config, self.source.tensors, precision=self.settings.precision,
            freeze_embeddings=self.settings.freeze_embeddings, further=first_values(stages),
        )  # fmt: skip
        self.dense = DenseStages(stages, self.encoder.parameters) if stages else None
        self.dim = self.source.recipe.vector_dim(self.source.config.dim)
        self.optimizer = AdamW(
            self.encoder.parameters, betas=BETAS, weight_decay=self.settings.weight_decay,
            clip_norm=self.settings.clip_norm,
        )  # fmt: skip
        self._interrupted = False

    def fit(self) -> EmbedderResult:
        """Train to the last step, or to Ctrl-C, SIGTERM or SIGHUP (which finish the step and save); evaluate before and
        after; save.

        Raises NonFiniteError naming the step, with nothing written; OSError if the folder cannot be written.
        """
        result = EmbedderResult(self.out)
        with Interrupts(self) as interrupts, self._bar() as bar:
            result.before = self._evaluate("before", bar)
            self._loop(result, bar)
            if not self._interrupted:
                result.after = self._evaluate("after", bar)
        if self._interrupted:
            result.reason, result.signal = "interrupted", interrupts.number
        if result.steps:
            write_encoder_folder(self.source, self._tensors(), self.out, self._record(result), self._new_prompts())
            result.saved = True
        return result

    def vectors(self, pairs: TokenizedPairs, rows: np.ndarray) -> np.ndarray:
        """float32 [texts, dim]: pooled, of any length, of texts' numbers in pairs: int64 [texts]. Of a model that keeps only
        the first numbers of its vectors they are those; the loss is of whole ones."""
        out = np.empty((len(rows), self.dim), np.float32)
        for places in longest_first(pairs.lengths[rows], EVALUATED_TOKENS):
            if self._interrupted:
                break
            packed = pairs.pack(rows[places])
            pooled = pool(self.encoder.infer(*packed), packed.starts, self.pooling)
            out[places] = (pooled if self.dense is None else self.dense.forward(pooled))[:, : self.dim]
        return out

    # ---- the loop ----

    def _loop(self, result: EmbedderResult, bar: Any) -> None:
        began, seen = clock.perf_counter(), 0
        order = batches(len(self.pairs), self.batch, self.settings.seed)
        while result.steps < self.steps and not self._interrupted:
            chosen = next(order)
            result.losses.append(self._one_step(result.steps, chosen))
            result.steps += 1
            seen += len(chosen)
            result.pairs_per_second = seen / (clock.perf_counter() - began)
            bar.set_postfix_str(f"loss {result.losses[-1]:.3f}, {result.pairs_per_second:,.0f} pairs/s", refresh=False)
            bar.update(1)

    def _one_step(self, step: int, chosen: np.ndarray) -> float:
        """The loss of one optimizer step over these pairs: int64 [batch]."""
        settings, encoder = self.settings, self.encoder
        rows = self.pairs.rows_of(chosen)
        packed = self.pairs.pack(rows)
        masked = self.pairs.masked(chosen, rows[len(chosen) :])
        hidden = encoder.forward(*packed, dropout_rate=settings.dropout, dropout_seed=fold_seed(settings.seed, step))
        d_hidden = encoder.gradient_of_hidden(len(hidden))
        loss = contrastive_loss(
            hidden, packed.starts, self.pooling, masked, scale=settings.scale, symmetric=settings.symmetric,
            dense=self.dense, d_hidden=d_hidden,
        )  # fmt: skip
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {step + 1}: the loss is {loss}; nothing was written")
        encoder.backward(d_hidden)
        rate = learning_rate_at(
            step, steps=self.steps, peak=settings.learning_rate, warmup=self._warmup(), schedule=settings.schedule
        )
        try:
            self.optimizer.step(rate)
        except FloatingPointError as error:
            raise NonFiniteError(f"step {step + 1}: the gradients' norm is not finite; nothing was written") from error
        return loss

    def _warmup(self) -> int:
        return self.steps // WARM_PART if self.settings.warmup is None else self.settings.warmup

    def _evaluate(self, when: str, bar: Any) -> RetrievalScore | None:
        pairs = self.held_out
        if pairs is None:
            return None
        score = retrieval_score(pairs, lambda rows: self.vectors(pairs, rows))
        if self._interrupted:
            return None
        self._tell(bar, f"{when + ':':8}{score}")
        return score

    def _tensors(self) -> dict[str, np.ndarray]:
        """All weights as they are now: the encoder's and those of Dense stages."""
        parameters = self.encoder.parameters
        dense = {name: parameters[name].copy() for name in parameters if name.startswith("dense.")}
        return self.encoder.tensors() | dense

    def _record(self, result: EmbedderResult) -> dict[str, Any]:
        """What training.json says."""
        return {
            "trained_by": "fastmixer train-embedder", "from": self.source.name, "pairs": len(self.pairs),
            "steps": result.steps, "reason": result.reason, "losses": result.losses,
            "before": result.before and result.before._asdict(), "after": result.after and result.after._asdict(),
            "settings": asdict(self.settings), "prompts": self._prompts()._asdict(),
        }  # fmt: skip

    # ---- making ready ----

    def _split(
        self, pairs: list[TextPair], evaluation: Pairs | None, names: list[str] | None
    ) -> tuple[list[TextPair], list[TextPair]]:
        """(pairs to train on, pairs held out). All pairs of an anchor go the same way."""
        held_out: list[TextPair] = []
        if evaluation is not None:
            held_out = _pairs(evaluation, names, "evaluation")
        elif self.settings.holdout > 0:
            wanted = min(int(len(pairs) * self.settings.holdout), MOST_HELD_OUT)
            anchors = list(dict.fromkeys(pair.anchor for pair in pairs))
            of_anchor: dict[str, list[TextPair]] = {}
            for pair in pairs:
                of_anchor.setdefault(pair.anchor, []).append(pair)
            for index in np.random.default_rng([self.settings.seed, len(pairs)]).permutation(len(anchors)):
                if len(held_out) + len(of_anchor[anchors[index]]) <= wanted:
                    held_out += of_anchor.pop(anchors[index])
            pairs = [pair for pair in pairs if pair.anchor in of_anchor]
        if len(pairs) < 2:
            raise ValueError(
                f"EmbedderTrainer: pairs must hold at least 2 to train on, one's texts are the other's negatives; got "
                f"{len(pairs)}"
            )
        if len({pair[:3] for pair in pairs}) == 1 and not pairs[0].negatives:
            warnings.warn(
                f"EmbedderTrainer: all {len(pairs)} pairs are the same one, whose texts have nothing to be told from: the "
                "loss is 0 and nothing is learned",
                UserWarning,
                stacklevel=3,
            )
        return pairs, held_out

    def _prompts(self) -> Prompts:
        """Those that were asked for, or the model's own for the same use, or its default one, or none."""
        recipe = self.source.recipe
        usual = recipe.prompts[recipe.default_prompt] if recipe.default_prompt is not None else ""

        def choose(asked: str | None, use: str) -> str:
            return next((prompt for prompt in (asked, recipe.prompt_for(use)) if prompt is not None), usual)

        return Prompts(choose(self.settings.anchor_prompt, "query"), choose(self.settings.text_prompt, "document"))

    def _new_prompts(self) -> dict[str, str]:
        """What stood before texts, by the names that sentence-transformers and `fastmixer embed` look for."""
        used = self._prompts()
        if self.settings.anchor_prompt is None and self.settings.text_prompt is None and not any(used):
            return {}
        return {"query": used.anchor, "document": used.text}

    def _tokenizer(self) -> SentenceTokenizer:
        source, asked = self.source, self.settings.max_length
        tokenizer = SentenceTokenizer(
            source.path, vocab=source.config.vocab, context=source.config.context, max_length=source.recipe.max_length,
            lower_case=source.recipe.lower_case,
        )  # fmt: skip
        if asked is None:
            return tokenizer
        if asked > tokenizer.max_length:
            raise ValueError(
                f"EmbedderTrainer: max_length must be at most {tokenizer.max_length}, the model's limit; got {asked}"
            )
        return SentenceTokenizer(
            source.path, vocab=source.config.vocab, context=source.config.context, max_length=asked,
            lower_case=source.recipe.lower_case,
        )  # fmt: skip

    def _check_memory(self, steps: int) -> None:
        """MemoryError, before any work, if weights and the largest of these steps' batches do not fit."""
        available = available_memory()
        order = batches(len(self.pairs), self.batch, self.settings.seed)
        tokens = max(int(self.pairs.lengths[self.pairs.rows_of(next(order))].sum()) for _ in range(steps))
        weights = 0
        for name, tensor in self.source.tensors.items():
            frozen = self.settings.freeze_embeddings and name.startswith(EMBEDDINGS)
            weights += FLOAT * (1 if frozen else OPTIMIZER_COPIES) * math.prod(tensor.shape)
        for stage in self.source.recipe.dense:
            parts = (part for part in (stage.weight, stage.bias, stage.residual) if part is not None)
            weights += FLOAT * OPTIMIZER_COPIES * sum(math.prod(part.shape) for part in parts)
        activations = FLOAT * tokens * numbers_per_token(self.source.config)
        if available is not None and weights + activations > available:
            raise MemoryError(
                f"fine-tuning {self.source.name} on batches of {self.batch} pairs, up to {tokens:,} tokens, needs at least "
                f"{(weights + activations) / 1e9:.1f} GB: {weights / 1e9:.1f} for weights, gradients and AdamW's moments, "
                f"{activations / 1e9:.1f} for activations; {available / 1e9:.1f} are available. Choose a smaller batch or "
                "max_length"
            )

    # ---- what is shown ----

    def _tell(self, bar: Any, message: str) -> None:
        if self._on_message is not None:
            self._on_message(message)
        elif self.progress:
            bar.write(message)

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.steps, desc="fine-tuning", unit="step", disable=not self.progress, dynamic_ncols=True,
            mininterval=0.3,
        )  # fmt: skip


def _pairs(pairs: Pairs, fields: list[str] | None, name: str) -> list[TextPair]:
    if isinstance(pairs, (str, os.PathLike)):
        return read_pairs(pairs, fields)
    return as_pairs(pairs, name)


def _require_trainable(source: EncoderSource) -> None:
    """ValueError for what gives no vectors, or makes them in a way that only inference knows."""
    recipe = source.recipe
    if recipe.pooling not in TRAINED_POOLINGS or not recipe.pools_prompt:
        kind = recipe.pooling + ("" if recipe.pools_prompt else " without the prompt")
        raise ValueError(f"{source.name}: pooling must be one of {', '.join(TRAINED_POOLINGS)} to train it; got {kind}")
    if source.config.head is not None:
        raise ValueError(f"{source.name} is a cross-encoder or classifier, which gives no vectors to train")
