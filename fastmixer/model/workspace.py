"""The arrays of one training step, kept from step to step while batch and time stay the same.

Activations live from forward to backward, one set a layer, or, where each layer's forward runs again before its backward,
one set for all; gradients of activations are shared by all layers. Knows shapes only.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fastmixer.kernels.memory import Arena, aligned_empty
from fastmixer.model.config import ModelConfig
from fastmixer.ops.cross_entropy import chunk_rows
from fastmixer.ops.feedforward import FeedForwardSaved


@dataclass
class LayerActivations:
    """What one layer's forward leaves for its backward; tokens = batch * time."""

    attention_normed: np.ndarray  # [tokens, dim]
    attention_norm_saved: Any  # what the norm saved
    qkv: np.ndarray  # [tokens, qkv_width], q and k already rotated
    attended: np.ndarray  # [tokens, dim]
    log_sum_exp: Any  # [batch, heads, time], what attention saved
    middle: np.ndarray  # [tokens, dim]: the residual stream between the branches
    feedforward_normed: np.ndarray  # [tokens, dim]
    feedforward_norm_saved: Any
    feedforward_saved: FeedForwardSaved
    out: np.ndarray  # [tokens, dim]: the residual stream after the layer


class Workspace:
    """Arrays for one shape of batch. dtype is float32, or float64 where gradients are checked.

    shared: all layers leave what backward wants in the same arrays, the last one's stays; only `out` is each layer's own.
    """

    def __init__(self, config: ModelConfig, batch: int, time: int, dtype: np.dtype, *, shared: bool = False):
        self.config, self.batch, self.time, self.dtype, self.shared = config, batch, time, dtype, shared
        self.tokens = batch * time
        self._arena = Arena()
        self.embedded = self._new(config.dim)
        self.layers = [self._new_layer()]
        for _ in range(1, config.layers):
            self.layers.append(replace(self.layers[0], out=self._new(config.dim)) if shared else self._new_layer())
        self.final_normed = self._new(config.dim)
        self.final_norm_saved: Any = None

    def fits(self, batch: int, time: int, shared: bool) -> bool:
        """Whether these arrays are of this shape, and shared so."""
        return (self.batch, self.time, self.shared) == (batch, time, shared)

    @cached_property
    def logits(self) -> np.ndarray:
        """[tokens at once, vocab]: what the loss works in."""
        return aligned_empty((chunk_rows(self.tokens), self.config.vocab), self.dtype)

    # Gradients of activations: made when backward first runs, one set for all layers.

    @cached_property
    def d_stream(self) -> np.ndarray:
        """[tokens, dim]: the gradient of the residual stream."""
        return self._new(self.config.dim)

    @cached_property
    def d_middle(self) -> np.ndarray:
        """[tokens, dim]: the gradient of the residual stream between the branches."""
        return self._new(self.config.dim)

    @cached_property
    def d_branch(self) -> np.ndarray:
        """[tokens, dim]: the gradient inside a branch."""
        return self._new(self.config.dim)

    @cached_property
    def d_dropped(self) -> np.ndarray:
        """[tokens, dim]: the gradient behind dropout."""
        return self._new(self.config.dim)

    @cached_property
    def d_qkv(self) -> np.ndarray:
        """[tokens, qkv_width]."""
        return self._new(self.config.qkv_width)

    @cached_property
    def d_feedforward(self) -> FeedForwardSaved:
        """The gradients inside a feedforward."""
        return self._new_feedforward()

    def _new(self, width: int) -> np.ndarray:
        return self._arena.empty((self.tokens, width), self.dtype)

    def _new_layer(self) -> LayerActivations:
        config = self.config
        return LayerActivations(
            attention_normed=self._new(config.dim),
            attention_norm_saved=None,
            qkv=self._new(config.qkv_width),
            attended=self._new(config.dim),
            log_sum_exp=None,
            middle=self._new(config.dim),
            feedforward_normed=self._new(config.dim),
            feedforward_norm_saved=None,
            feedforward_saved=self._new_feedforward(),
            out=self._new(config.dim),
        )

    def _new_feedforward(self) -> FeedForwardSaved:
        hidden = self.config.hidden
        return FeedForwardSaved(self._new(hidden), self._new(hidden), self._new(hidden) if self.config.gated else None)


def split_heads(
    qkv: np.ndarray, config: ModelConfig, batch: int, time: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views q [batch, heads, time, head_dim] and k, v [batch, kv_heads, time, head_dim] of qkv [tokens, qkv_width]."""
    rows = qkv.reshape(batch, time, config.heads + 2 * config.kv_heads, config.head_dim).transpose(0, 2, 1, 3)
    q_end, k_end = config.heads, config.heads + config.kv_heads
    return rows[:, :q_end], rows[:, q_end:k_end], rows[:, k_end:]


def join_heads(attended: np.ndarray, config: ModelConfig, batch: int, time: int) -> np.ndarray:
    """The view [batch, heads, time, head_dim] of attended [tokens, dim] that attention writes into."""
    return attended.reshape(batch, time, config.heads, config.head_dim).transpose(0, 2, 1, 3)
