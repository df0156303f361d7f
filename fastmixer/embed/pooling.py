"""From the hidden states of a sentence's tokens to its one vector. Knows nothing of texts."""

from collections.abc import Callable

import numpy as np

from fastmixer.model.encoder import dense
from fastmixer.weights.encoder_recipe import DenseStage

SMALLEST_NORM = np.float32(1e-12)


def pool(hidden: np.ndarray, starts: np.ndarray, pooling: str, skip: int = 0) -> np.ndarray:
    """float32 [sequences, dim] of hidden: float32 [tokens, dim], those of sequence s from starts[s] to starts[s + 1]
    (starts: int64 [sequences + 1]; no sequence is empty).

    pooling: "mean", "cls" (the first token), "last", "max", "weightedmean" (the n-th token counts n times) or
    "mean_sqrt_len" (a sum over the root of its length); or several joined by "+", side by side: [sequences, several x dim].
    skip: so many first tokens of each sequence take no part; each has more.
    """
    firsts, ends = starts[:-1] + skip, starts[1:]
    parts = [_POOLINGS[name](hidden, firsts, ends, skip) for name in pooling.split("+")]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class DenseLayer:
    """A stage behind the pooling, its tensors read."""

    def __init__(self, stage: DenseStage):
        self._weight = stage.weight.values()
        self._bias = None if stage.bias is None else stage.bias.values()
        self._residual = None if stage.residual is None else stage.residual.values()
        self._activation, self._adds_input = stage.activation, stage.adds_input

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 [sequences, out] of x: float32 [sequences, in]."""
        out = dense(x, self._weight, self._bias, self._activation)
        if self._adds_input:
            out += x if self._residual is None else x @ self._residual.T
        return out


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, dim], each row divided by its length; a row of zeros stays one."""
    lengths = np.sqrt(np.add.reduce(vectors * vectors, axis=1))
    return vectors / np.maximum(lengths, SMALLEST_NORM)[:, None]


# Each of hidden, the first token of each sequence that takes part, the end of each, and skip.


def _mean(hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray, skip: int) -> np.ndarray:
    return _reduced(np.add, hidden, firsts, ends) / (ends - firsts).astype(hidden.dtype)[:, None]


def _mean_sqrt_len(hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray, skip: int) -> np.ndarray:
    return _reduced(np.add, hidden, firsts, ends) / np.sqrt((ends - firsts).astype(hidden.dtype))[:, None]


def _max(hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray, skip: int) -> np.ndarray:
    return _reduced(np.maximum, hidden, firsts, ends)


def _reduced(function: np.ufunc, hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """float32 [sequences, dim]: function over the tokens of each. (One reduceat over all takes four times as long.)"""
    out = np.empty((len(firsts), hidden.shape[1]), hidden.dtype)
    for row, first, end in zip(out, firsts.tolist(), ends.tolist(), strict=True):
        function.reduce(hidden[first:end], axis=0, out=row)
    return out


def _weighted_mean(hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray, skip: int) -> np.ndarray:
    """What is skipped was counted: the first token that takes part has the weight skip + 1."""
    out = np.empty((len(firsts), hidden.shape[1]), hidden.dtype)
    for row, first, end in zip(out, firsts.tolist(), ends.tolist(), strict=True):
        weights = np.arange(skip + 1, skip + 1 + end - first, dtype=hidden.dtype)
        np.einsum("t,td->d", weights / weights.sum(), hidden[first:end], out=row)
    return out


def _first(hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray, skip: int) -> np.ndarray:
    return hidden[firsts]


def _last(hidden: np.ndarray, firsts: np.ndarray, ends: np.ndarray, skip: int) -> np.ndarray:
    return hidden[ends - 1]


_POOLINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]] = {
    "mean": _mean, "cls": _first, "max": _max, "last": _last, "weightedmean": _weighted_mean,
    "mean_sqrt_len": _mean_sqrt_len,
}  # fmt: skip
