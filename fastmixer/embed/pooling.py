"""From the hidden states of a sentence's tokens to its one vector. Knows nothing of encoders."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

SMALLEST_NORM = np.float32(1e-12)


def pool(hidden: np.ndarray, starts: np.ndarray, pooling: str) -> np.ndarray:
    """float32 [sequences, dim] of hidden: float32 [tokens, dim], those of sequence s from starts[s] to starts[s + 1]
    (starts: int64 [sequences + 1]; no sequence is empty). pooling: "mean", "cls" (the first token), "last" or "max"."""
    return _POOLINGS[pooling](hidden, starts)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, dim], each row divided by its length; a row of zeros stays one."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return vectors / np.maximum(lengths, SMALLEST_NORM)[:, None]


def _mean(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return _reduced(np.add, hidden, starts) / np.diff(starts).astype(hidden.dtype)[:, None]


def _max(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return _reduced(np.maximum, hidden, starts)


def _reduced(function: np.ufunc, hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float32 [sequences, dim]: function over the tokens of each. (One reduceat over all takes four times as long.)"""
    out = np.empty((len(starts) - 1, hidden.shape[1]), hidden.dtype)
    for row, (start, stop) in zip(out, pairwise(starts.tolist()), strict=True):
        function.reduce(hidden[start:stop], axis=0, out=row)
    return out


def _first(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return hidden[starts[:-1]]


def _last(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return hidden[starts[1:] - 1]


_POOLINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean": _mean, "cls": _first, "max": _max, "last": _last,
}  # fmt: skip
