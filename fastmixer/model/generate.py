"""Writing: the logits of the last position, one sampled token, and again, with a cache of keys and values.

A prompt's text depends on its own seed only, never on what else is in the batch. Knows nothing of how logits are made.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.ops.checks import check_integer, check_number
from fastmixer.ops.sampling import sample

if TYPE_CHECKING:
    from fastmixer.model.transformer import Transformer
    from fastmixer.text import Tokenizer

REPLACEMENT = "\ufffd"  # what a tokenizer makes of bytes that are not (yet) a character


@dataclass(frozen=True)
class Options:
    """How to write. temperature 0 takes the likeliest token; seed None draws one; stop: strings that end the text."""

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_integer("generate", "max_new_tokens", self.max_new_tokens, at_least=1)
        check_number("generate", "temperature", self.temperature, at_least=0)
        check_integer("generate", "top_k", self.top_k, at_least=0)
        check_number("generate", "top_p", self.top_p, above=0, at_most=1)
        check_number("generate", "min_p", self.min_p, at_least=0, at_most=1)
        check_number("generate", "repetition_penalty", self.repetition_penalty, above=0)
        if self.seed is not None:
            check_integer("generate", "seed", self.seed, at_least=0)
        if any(not isinstance(text, str) or not text for text in self.stops):
            raise ValueError(f"generate: stop must be strings that are not empty; got {self.stop!r}")

    @property
    def stops(self) -> tuple[str, ...]:
        """stop as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True)
class Generation:
    """What came of one prompt. tokens: the new ids, with those of a stop string but without the end-of-text token;
    finish_reason: "eos", "stop" (a stop string, which the text leaves out), "length" (the asked number, or the end of
    the context). The rates are those of the whole call, all prompts together."""

    text: str
    tokens: list[int]
    finish_reason: str
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def require_tokenizer(model: "Transformer", op: str) -> "Tokenizer":
    """The model's tokenizer; ValueError if it has none."""
    if model.tokenizer is None:
        raise ValueError(f"{op}: the model has no tokenizer; give one to Transformer(..., tokenizer=...)")
    return model.tokenizer


def generate(
    model: "Transformer", prompt: str | Sequence[str], *, return_details: bool = False, **options: Any
) -> str | Generation | list[str] | list[Generation]:
    """The texts that follow the prompts: one for a string, a list for a list. Options: see Options."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("generate: the list of prompts is empty")
    writers = _Writers(model, prompts, Options(**options))
    while writers.active:
        writers.step()
    results = writers.results()
    found = results if return_details else [result.text for result in results]
    return found[0] if isinstance(prompt, str) else found  # type: ignore[return-value]


class TextStream:
    """The text that follows a prompt, in pieces: held back are bytes that are no character yet, and what may turn out
    to be the beginning of a stop string. Bad options and prompts raise here, not at the first piece."""

    def __init__(self, model: "Transformer", prompt: str, **options: Any):
        if not isinstance(prompt, str):
            raise TypeError(f"stream: prompt must be a string; got {type(prompt).__name__}")
        self._writers = _Writers(model, [prompt], Options(**options))
        self._shown = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self._writers.active:
            self._writers.step()
            certain = self._writers.all[0].certain_text()
            if len(certain) > self._shown:
                start, self._shown = self._shown, len(certain)
                return certain[start:]
        raise StopIteration

    @property
    def details(self) -> Generation:
        """What came so far: finish_reason is "" until the text has ended."""
        return self._writers.results()[0]


@dataclass
class _Writer:
    """One prompt on its way: its ids, what it has written, its own random numbers."""

    tokenizer: "Tokenizer"
    prompt_ids: np.ndarray
    options: Options
    rng: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""

    def accept(self, token: int, room: int) -> None:
        """Take a sampled token; room: how many more tokens the context could hold after it."""
        if token == self.tokenizer.end_id and not self.options.ignore_eos:
            self.finish_reason = "eos"
            return
        self.tokens.append(token)
        self.text = self.tokenizer.decode(self.tokens)
        places = [place for place in (self.text.find(stop) for stop in self.options.stops) if place >= 0]
        if places:
            self.text, self.finish_reason = self.text[: min(places)], "stop"
        elif len(self.tokens) == self.options.max_new_tokens or room <= 0:
            self.finish_reason = "length"

    def certain_text(self) -> str:
        """As much of the text as no later token can change or cut off."""
        if self.finish_reason:
            return self.text
        text = self.text.rstrip(REPLACEMENT)
        longest = max((len(stop) for stop in self.options.stops), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.options.stops):
                return text[:-length]
        return text


class _Writers:
    """A batch of prompts that leave as they finish."""

    def __init__(self, model: "Transformer", prompts: Sequence[str], options: Options):
        tokenizer = require_tokenizer(model, "generate")
        self.model, self.options = model, options
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if options.seed is None else options.seed
        self.all = [
            _Writer(
                tokenizer, _prompt_ids(model, tokenizer, text, index), options, np.random.default_rng([seed, index])
            )
            for index, text in enumerate(prompts)
        ]
        self.active = list(self.all)
        longest = max(len(writer.prompt_ids) for writer in self.all)
        self.context = min(model.config.context, longest + options.max_new_tokens)
        self.cache = model.new_cache(len(self.all), self.context)
        self.prefill_seconds = self.decode_seconds = 0.0
        self.decoded = 0
        self._logits: np.ndarray | None = None

    def step(self) -> None:
        """One more token for every prompt that is not finished."""
        start = time.perf_counter()
        if self._logits is None:
            # Each prompt alone: lengths differ, and a prompt's numbers must not depend on its neighbours.
            rows = [
                self.model.logits_cached(writer.prompt_ids[None], self.cache.select(index, index + 1))
                for index, writer in enumerate(self.active)
            ]
            self._logits = np.concatenate(rows)
            self.prefill_seconds = time.perf_counter() - start
            self._accept()
        else:
            last = np.array([[writer.tokens[-1]] for writer in self.active])
            self._logits = self.model.logits_cached(last, self.cache)
            self.decoded += len(self.active)
            self._accept()
            self.decode_seconds += time.perf_counter() - start

    def results(self) -> list[Generation]:
        """What each prompt has come to. Rates: tokens read from prompts, tokens written after each prompt's first."""
        read = sum(len(writer.prompt_ids) for writer in self.all)
        prefill = read / self.prefill_seconds if self.prefill_seconds else 0.0
        decode = self.decoded / self.decode_seconds if self.decode_seconds else 0.0
        return [Generation(one.text, one.tokens, one.finish_reason, prefill, decode) for one in self.all]

    def _accept(self) -> None:
        """Sample a token for each active prompt and let the finished ones leave."""
        assert self._logits is not None
        options = self.options
        penalized = options.repetition_penalty != 1
        # A model may have more rows than its tokenizer has pieces: those are never written.
        logits = self._logits[:, : self.active[0].tokenizer.vocab_size]
        sampled = sample(
            logits, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            previous_ids=self._previous_ids() if penalized else None,
            uniform=np.array([writer.rng.random() for writer in self.active]) if options.temperature > 0 else None,
        )  # fmt: skip
        for writer, token, length in zip(self.active, sampled, self.cache.lengths, strict=True):
            # The token itself still needs a place in the cache before another can follow.
            writer.accept(int(token), self.context - int(length))
        keep = np.array([index for index, writer in enumerate(self.active) if not writer.finish_reason], np.int64)
        if len(keep) < len(self.active):
            self.active = [self.active[index] for index in keep]
            self.cache.keep(keep)

    def _previous_ids(self) -> np.ndarray:
        """int64 [active, longest]: all ids so far, padded with -1."""
        rows = [np.concatenate([writer.prompt_ids, np.array(writer.tokens, np.int64)]) for writer in self.active]
        padded = np.full((len(rows), max(map(len, rows))), -1, np.int64)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return padded


def _prompt_ids(model: "Transformer", tokenizer: "Tokenizer", text: Any, index: int) -> np.ndarray:
    """A prompt's ids: int64 [tokens]; an empty prompt begins with the end-of-text token, as every text does."""
    if not isinstance(text, str):
        raise TypeError(f"generate: prompt {index} must be a string; got {type(text).__name__}")
    ids = tokenizer.encode(text)
    if len(ids) == 0:
        ids = np.array([tokenizer.end_id])
    if len(ids) > model.config.context:
        raise ValueError(
            f"generate: prompt {index} has {len(ids)} tokens, more than the model's context of {model.config.context}"
        )
    return ids
