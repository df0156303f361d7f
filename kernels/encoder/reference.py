"""A whole encoder in NumPy: the truth that jit.py and native.pyx are held to, in the order of the data's flow.

Tokens of all sequences stand one after another, never padded, and every token sees its own sequence only, both ways.
Sources: Devlin et al. 2018 (arXiv 1810.04805); relative positions of MPNet, Song et al. 2020 (2004.09297), after T5;
rotation and local layers of ModernBERT, Warner et al. 2024 (2412.13663).
"""

from itertools import pairwise

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.activations_reference import activate
from fastmixer.kernels.packed import reference as packed_reference


class Encoder:
    """The layers of an EncoderSpec, whose weights this implementation's pack_weight packed. Holds no state of its own."""

    packed = packed_reference

    def __init__(self, spec):
        self.spec = spec

    def forward(self, ids, starts, token_types, hidden):
        """The tokens of several sequences through all layers: hidden float32 [tokens, dim], after the final norm.

        ids: int64 [tokens], of sequence s those from starts[s] to starts[s + 1] (starts: int64 [sequences + 1], from 0 to
        tokens; a sequence may be empty), at positions 0, 1, ... token_types: int64 [tokens], rows of spec.token_types, or
        None: row 0 for all.
        """
        spec = self.spec
        if len(ids) == 0:
            return
        positions = np.arange(len(ids)) - np.repeat(starts[:-1], np.diff(starts))

        x = self._embed(ids, positions, token_types)
        for layer in spec.layers:
            # attention: what a token reads from the others of its sequence
            normed = self._norm(layer.attention_norm, x) if spec.placement == "pre" else x
            q = self._heads(layer.q, normed, layer, positions) * np.float32(spec.attention_scale)
            k = self._heads(layer.k, normed, layer, positions)
            v = self._linear(layer.v, normed).reshape(k.shape)
            x = x + self._linear(layer.output, self._attend(q, k, v, starts, layer.window))
            if spec.placement == "post":
                x = self._norm(layer.attention_norm, x)
            # feedforward: what it makes of it, each token alone
            normed = self._norm(layer.feedforward_norm, x) if spec.placement == "pre" else x
            x = x + self._feedforward(layer, normed)
            if spec.placement == "post":
                x = self._norm(layer.feedforward_norm, x)
        hidden[...] = self._norm(spec.final_norm, x)

    # ---- the parts ----

    def _embed(self, ids, positions, token_types):
        """float32 [tokens, dim]: rows of the embedding, of positions and of token types, normed."""
        spec = self.spec
        x = np.empty((len(ids), spec.dim), np.float32)
        self.packed.packed_rows(spec.embedding, ids, x)
        if spec.positions is not None:
            x += spec.positions[positions]
        if spec.token_types is not None:
            x += spec.token_types[0] if token_types is None else spec.token_types[token_types]
        return self._norm(spec.embedding_norm, x)

    def _norm(self, norm, x):
        """x: float32 [tokens, width], each row normalized; None: as it stands."""
        if norm is None:
            return x
        if norm.kind == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(norm.epsilon)) * norm.weight
        return x if norm.bias is None else x + norm.bias

    def _linear(self, linear, x):
        """float32 [tokens, outputs] of x: float32 [tokens, inputs]."""
        out = np.empty((len(x), linear.weight.outputs), np.float32)
        self.packed.packed_linear(np.ascontiguousarray(x), linear.weight, linear.bias, out)
        return out

    def _heads(self, linear, x, layer, positions):
        """float32 [tokens, heads, head_dim]: q or k of x, rotated."""
        heads = self._linear(linear, x).reshape(len(x), self.spec.heads, self.spec.head_dim)
        if layer.cos is not None:
            half = layer.cos.shape[1]
            cos, sin = layer.cos[positions][:, None], layer.sin[positions][:, None]
            first, second = heads[..., :half].copy(), heads[..., half : 2 * half].copy()
            heads[..., :half] = first * cos - second * sin
            heads[..., half : 2 * half] = second * cos + first * sin
        return heads

    def _attend(self, q, k, v, starts, window):
        """float32 [tokens, heads * head_dim]: each sequence's queries over its own keys and values."""
        out = np.empty(q.shape, np.float32)
        for start, stop in pairwise(starts):
            if start < stop:
                tokens = slice(start, stop)
                out[tokens] = self._blend(q[tokens], k[tokens], v[tokens], window)
        return out.reshape(len(q), -1)

    def _blend(self, q, k, v, window):
        """float32 [time, heads, head_dim] = softmax(q k^T + relative) v of one sequence; window: see EncoderLayerSpec."""
        distances = np.arange(len(k)) - np.arange(len(q))[:, None]
        scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0)
        if self.spec.relative is not None:
            farthest = self.spec.relative.shape[1] // 2
            scores += self.spec.relative[:, distances.clip(-farthest, farthest) + farthest]
        if window:
            scores[:, np.abs(distances) > window] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ v.transpose(1, 0, 2)).transpose(1, 0, 2)

    def _feedforward(self, layer, x):
        """float32 [tokens, dim]: down(act(gate) * up) or down(act(up))."""
        number = ACTIVATIONS[self.spec.activation]
        wide = self._linear(layer.up, x)
        wide = activate(wide, number) if layer.gate is None else activate(self._linear(layer.gate, x), number) * wide
        return self._linear(layer.down, wide)
