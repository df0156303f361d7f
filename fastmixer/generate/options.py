"""How to write, and what came of it: options, judged once, and results. Knows nothing of models."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.ops.checks import check_integer, check_number

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer

MOST_LOGPROBS = 20
MOST_SAMPLES = 1024
# Of what is added to logits, and of what they are multiplied by: all of it together stays finite in float32.
LARGEST_BIAS = 1e30
LARGEST_PENALTY = 1e6


@dataclass(frozen=True)
class Options:
    """How to write.

    max_new_tokens: at most so many. temperature, top_k, top_p, min_p: see fastmixer.sample; temperature 0 takes the
    likeliest token. repetition_penalty: logits of all ids so far are divided by it if positive, multiplied if negative.
    presence_penalty, frequency_penalty: subtracted from the logits of ids written so far, once, and once for each time.
    logit_bias: added to the logits of these ids or pieces of text; -inf rules one out. seed: the same one draws the same
    tokens (None: a new one). stop: strings that end the text, and ids that do; neither is part of it. The text of a
    special token ("<|im_end|>", say) stands for its id too; it must be the whole string, as special tokens never come as
    text together with others. ignore_eos: write on after the model has ended its text. logprobs: the log-probability of
    each token, and of the so many likeliest in its place (None: none at all). n: so many samples of each prompt.
    speculative: so many tokens (above 15 it counts as 15) are guessed from what stands earlier in the text and checked in
    one step; what is written stays the same. deterministic: each number is bit for bit independent of what else is being
    written, and of what was before: nothing is reused, so that the same seed draws the same tokens always (otherwise as
    long as rounding does not decide: keys and values of a text that was written are not, to the last bit, those of the
    same text when it is read; and over weights in float32 or bfloat16, where more than 16 tokens of all sequences together
    are written in one step, sums are made in another order).
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int | str, float] | None = None
    seed: int | None = None
    stop: str | int | Sequence[str | int] | Set[str | int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    speculative: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        op = "generate"
        check_integer(op, "max_new_tokens", self.max_new_tokens, at_least=1)
        check_number(op, "temperature", self.temperature, at_least=0)
        check_integer(op, "top_k", self.top_k, at_least=0)
        check_number(op, "top_p", self.top_p, above=0, at_most=1)
        check_number(op, "min_p", self.min_p, at_least=0, at_most=1)
        for name, least, most in (
            ("repetition_penalty", 1 / LARGEST_PENALTY, LARGEST_PENALTY),
            ("presence_penalty", -LARGEST_BIAS, LARGEST_BIAS),
            ("frequency_penalty", -LARGEST_BIAS, LARGEST_BIAS),
        ):
            check_number(op, name, getattr(self, name), at_least=least, at_most=most)
        if self.seed is not None:
            check_integer(op, "seed", self.seed, at_least=0)
        for name in ("ignore_eos", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{op}: {name} must be True or False; got {getattr(self, name)!r}")
        if self.logprobs is not None:
            check_integer(op, "logprobs", self.logprobs, at_least=0)
            check_number(op, "logprobs", self.logprobs, at_most=MOST_LOGPROBS)
        check_integer(op, "n", self.n, at_least=1)
        check_number(op, "n", self.n, at_most=MOST_SAMPLES)
        check_integer(op, "speculative", self.speculative, at_least=0)
        self._check_stop()
        self._check_logit_bias()

    @property
    def stops(self) -> tuple[str | int, ...]:
        """stop as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str | int | np.integer) else tuple(self.stop)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The strings among stops."""
        return tuple(stop for stop in self.stops if isinstance(stop, str))

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids among stops."""
        return frozenset(int(stop) for stop in self.stops if not isinstance(stop, str))

    def _check_stop(self) -> None:
        known = str | int | np.integer | Sequence | Set
        if self.stop is not None and (not isinstance(self.stop, known) or isinstance(self.stop, bytes | bytearray)):
            raise TypeError(f"generate: stop must be strings or token ids; got {type(self.stop).__name__}")
        for stop in self.stops:
            if isinstance(stop, str) and not stop:
                raise ValueError(f"generate: stop must be strings that are not empty; got {self.stop!r}")
            if not isinstance(stop, str):
                check_integer("generate", "a stop token", stop, at_least=0)

    def _check_logit_bias(self) -> None:
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"generate: logit_bias must be a dict; got {type(self.logit_bias).__name__}")
        for token, bias in (self.logit_bias or {}).items():
            if not isinstance(token, str):
                check_integer("generate", "a token of logit_bias", token, at_least=0)
            if not (isinstance(bias, float | np.floating) and bias == -math.inf):
                name = f"logit_bias of {token!r}"
                check_number("generate", name, bias, at_least=-LARGEST_BIAS, at_most=LARGEST_BIAS)


OPTION_NAMES = tuple(field.name for field in fields(Options))


def make_options(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    """Options of what was given over the defaults. TypeError names an unknown option, and those that there are."""
    for name in given:
        if name not in OPTION_NAMES:
            raise TypeError(f"generate: there is no option {name!r}; there are {', '.join(OPTION_NAMES)}")
    return Options(**{**defaults, **given})


def bias_arrays(options: Options, tokenizer: "Tokenizer | None", vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [n], what to add float32 [n]) of logit_bias; ValueError names a token that there is not."""
    found: dict[int, float] = {}
    given: Mapping[int | str, float] = options.logit_bias or {}
    for token, bias in given.items():
        found[_id_of(token, tokenizer, vocab)] = bias
    if len(found) == vocab and all(bias == -math.inf for bias in found.values()):
        raise ValueError(f"generate: logit_bias rules out every token, 0..{vocab - 1}; one must be left")
    return np.fromiter(found, np.int64, len(found)), np.fromiter(found.values(), np.float32, len(found))


def _id_of(token: int | str, tokenizer: "Tokenizer | None", vocab: int) -> int:
    if not isinstance(token, str):
        if token >= vocab:
            raise ValueError(f"generate: logit_bias names token {token}, but ids are 0..{vocab - 1}")
        return int(token)
    if tokenizer is None:
        raise ValueError(f"generate: logit_bias names {token!r}, but the model has no tokenizer; give ids")
    ids = tokenizer.encode(token).tolist()
    if len(ids) == 1:
        return ids[0]
    known = tokenizer.token_to_id(token)
    if known is None:
        raise ValueError(f"generate: logit_bias names {token!r}, which is {len(ids)} tokens; it must be one")
    return known


def with_stop_ids(options: Options, tokenizer: "Tokenizer | None", vocab: int) -> Options:
    """options whose stops that are special tokens' texts name their ids too: decoded text leaves those tokens out (the same
    text in letters still stops). Those from vocab on, which the model has no rows for, are letters only. ValueError names a
    stop that can never come: a token that there is not, or a text that holds a special token among others (special tokens
    never come as text together with others)."""
    texts = {} if tokenizer is None else tokenizer.special_texts
    special = {text: token for text, token in texts.items() if token < vocab}
    ids = [special[stop] for stop in options.stop_texts if stop in special]
    for stop in options.stop_texts:
        within = next((text for text in special if text and text in stop), None)
        if within is not None and stop not in special:
            raise ValueError(
                f"generate: stop {stop!r} holds the special token {within!r} among other text, but special tokens never "
                "come as text together with others; give that token alone"
            )
    for token in sorted({*options.stop_ids, *ids}):
        if token >= vocab:
            raise ValueError(f"generate: stop names token {token}, but ids are 0..{vocab - 1}")
    return replace(options, stop=(*options.stops, *ids)) if ids else options


class PromptTooLong(ValueError):
    """A prompt has more tokens than the model's context."""

    def __init__(self, index: int, tokens: int, context: int):
        super().__init__(f"generate: prompt {index} has {tokens} tokens, more than the model's context of {context}")
        self.tokens, self.context = tokens, context


@dataclass(frozen=True)
class TokenLogprob:
    """The natural logarithm of the probability that the model, before any sampling option, gave to a token, and of the
    likeliest in its place: top, (id, log-probability), the best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """What came of one prompt.

    tokens: the new ids, with those of a stop string but without the one that ended the text. finish_reason: "eos", "stop"
    (a stop string or token), "length" (the asked number, or the end of the context), "" if it was left before its end.
    prompt_tokens: ids of the prompt; reused_tokens: those of them that were still known from an earlier call.
    prefill_seconds: from the first step to the first token; decode_seconds: from there to the last of sampled_tokens (all
    that were drawn, the one that ended the text too). drafted_tokens, accepted_tokens: of speculation.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    prompt_tokens: int
    reused_tokens: int
    sampled_tokens: int
    prefill_seconds: float
    decode_seconds: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt that were computed, by the time it took."""
        read = self.prompt_tokens - self.reused_tokens
        return read / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first, by the time they took."""
        return (self.sampled_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0
