"""The keys and values of what a model has already read, so that a new token costs one token's work.

Knows shapes and lengths only.
"""

from dataclasses import dataclass

import numpy as np

from fastmixer.model.config import ModelConfig


class KVCache:
    """keys, values: float32 [layers, batch, kv_heads, context, head_dim]; lengths: int64 [batch], tokens held so far."""

    def __init__(self, config: ModelConfig, batch: int, context: int, dtype: np.dtype | type = np.float32):
        shape = (config.layers, batch, config.kv_heads, context, config.head_dim)
        self.keys, self.values = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.lengths = np.zeros(batch, np.int64)
        self.context = context

    def positions(self, time: int) -> np.ndarray:
        """int64 [batch, time]: where the next `time` tokens of each sequence stand."""
        return self.lengths[:, None] + np.arange(time)

    def layer(self, index: int) -> "LayerCache":
        """One layer's part."""
        return LayerCache(self.keys[index], self.values[index], self.lengths)

    def advance(self, time: int) -> None:
        """Count `time` tokens as held, once every layer has appended theirs."""
        self.lengths += time

    def select(self, start: int, stop: int) -> "KVCache":
        """A view of some of the batch: what is written into it is written here."""
        part = object.__new__(KVCache)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        part.lengths, part.context = self.lengths[start:stop], self.context
        return part

    def keep(self, rows: np.ndarray) -> None:
        """Drop every sequence whose index is not in rows: int64 [kept]."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values: [batch, kv_heads, context, head_dim]; lengths: int64 [batch]."""

    keys: np.ndarray
    values: np.ndarray
    lengths: np.ndarray

    def append(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Store k, v: [batch, kv_heads, time, head_dim] after each sequence's tokens.

        Returns views of keys and values as far as the longest sequence reaches, and how many each has: int64 [batch].
        """
        time = k.shape[2]
        for sequence, length in enumerate(self.lengths):
            self.keys[sequence, :, length : length + time] = k[sequence]
            self.values[sequence, :, length : length + time] = v[sequence]
        counts = self.lengths + time
        longest = int(counts.max())
        return self.keys[:, :, :longest], self.values[:, :, :longest], counts
