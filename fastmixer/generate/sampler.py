"""From a row of logits to a token, for each sequence by its own options and its own random numbers.

In this order: bias; penalties for repetition, presence and frequency; then temperature, top-k, top-p, min-p and the draw
(fastmixer.ops.sampling). A sequence's numbers depend on its seed and index alone. Knows nothing of batches' making.
"""

import math
from collections.abc import Sequence

import numpy as np

from fastmixer.generate.options import Options, TokenLogprob
from fastmixer.ops.sampling import sample


class Sampler:
    """The choices of one sequence. key: (seed, index, ...), what its random numbers depend on; bias: bias_arrays of its
    options; prompt: int64 [tokens], what a repetition penalty holds against it besides its own words."""

    def __init__(self, options: Options, key: tuple[int, ...], bias: tuple[np.ndarray, np.ndarray], prompt: np.ndarray):
        self.how = (float(options.temperature), options.top_k, float(options.top_p), float(options.min_p))
        self.is_greedy = options.temperature == 0
        self._repetition = np.float32(options.repetition_penalty)
        self._presence = np.float32(options.presence_penalty)
        self._frequency = np.float32(options.frequency_penalty)
        self._bias_ids, self._bias = bias
        self._seen = _Occurred(np.unique(prompt)) if self._repetition != 1 else None
        self._written = _Occurred() if self._presence or self._frequency else None
        self.is_plain = self._seen is None and self._written is None and not len(self._bias_ids)
        self._random = np.random.default_rng(key)
        self._uniform: float | None = None

    @property
    def uniform(self) -> float:
        """The random number in [0, 1) of the next token; the same until accept has been called."""
        if self._uniform is None:
            self._uniform = self._random.random()
        return self._uniform

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """float32 [vocab]: logits [vocab] after bias and penalties; logits themselves where there are none."""
        if self.is_plain:
            return logits
        scores = logits.copy()
        scores[self._bias_ids] += self._bias
        if self._seen is not None:  # CTRL, Keskar et al. 2019
            values = scores[self._seen.ids]
            scores[self._seen.ids] = np.where(values < 0, values * self._repetition, values / self._repetition)
        if self._written is not None:
            scores[self._written.ids] -= self._presence + self._frequency * self._written.counts
        return scores

    def accept(self, token: int) -> None:
        """The token was taken: the next one has a random number of its own."""
        self._uniform = None
        for occurred in (self._seen, self._written):
            if occurred is not None:
                occurred.add(token)


class _Occurred:
    """Which ids occurred, each once, and how often. ids: int64 [n], counts: float32 [n]."""

    def __init__(self, ids: np.ndarray | None = None):
        ids = np.empty(0, np.int64) if ids is None else ids
        self._place = {int(token): place for place, token in enumerate(ids)}
        self._ids = np.concatenate([ids, np.empty(64, np.int64)])
        self._counts = np.ones(len(self._ids), np.float32)

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> np.ndarray:
        return self._counts[: len(self._place)]

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self._counts[place] += 1
            return
        place = self._place[token] = len(self._place)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.ones_like(self._counts)])
        self._ids[place] = token


def choose(samplers: Sequence[Sampler], logits: np.ndarray) -> list[int]:
    """A token for each row of logits: float32 [rows, vocab], by its sampler. Rows that are drawn alike go together.

    ValueError for a row with NaN or +inf, or without a finite number.
    """
    tokens = [0] * len(samplers)
    drawn: dict[tuple[float, int, float, float], list[int]] = {}
    for row, sampler in enumerate(samplers):
        if not sampler.is_greedy:
            drawn.setdefault(sampler.how, []).append(row)
            continue
        scores = sampler.scores(logits[row])
        tokens[row] = token = int(scores.argmax())  # the first NaN, if there is one
        if not math.isfinite(scores[token]):
            sample(scores[None], temperature=0.0)  # says what is wrong
    for (temperature, top_k, top_p, min_p), rows in drawn.items():
        if len(rows) == len(logits) and all(samplers[row].is_plain for row in rows):
            scores = logits
        else:
            scores = np.stack([samplers[row].scores(logits[row]) for row in rows])
        uniform = np.array([samplers[row].uniform for row in rows])
        found = sample(scores, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniform=uniform)
        for row, token in zip(rows, found, strict=True):
            tokens[row] = int(token)
    return tokens


def token_logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    """The log-probability of a token, and the `top` likeliest, by a row of raw logits: float32 [vocab]."""
    largest = logits.max()
    total = float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
    best: np.ndarray | list[int] = []
    if top:
        top = min(top, len(logits))
        least = np.partition(logits, len(logits) - top)[len(logits) - top]
        candidates = np.flatnonzero(logits >= least)  # in order of id: among equals the lower one wins
        best = candidates[np.argsort(-logits[candidates], kind="stable")[:top]]
    return TokenLogprob(token, float(logits[token]) - total, tuple((int(i), float(logits[i]) - total) for i in best))
