"""From the hidden states of a sentence's tokens to its one vector. Knows nothing of encoders."""

from collections.abc import Callable

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
    return np.add.reduceat(hidden, starts[:-1], axis=0) / np.diff(starts).astype(np.float32)[:, None]


def _max(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(hidden, starts[:-1], axis=0)


def _first(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return hidden[starts[:-1]]


def _last(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return hidden[starts[1:] - 1]


_POOLINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean": _mean, "cls": _first, "max": _max, "last": _last,
}  # fmt: skip
