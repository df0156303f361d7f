"""A whole decoder in NumPy: the truth that jit.py and native.pyx are held to, in the order of the data's flow.

Tokens of all sequences stand one after another, never padded. Keys and values go into pages and are read back from
there, rounded as the pages are. Sources: pre-norm transformer, Radford et al. 2019; rotation, Su et al. 2021 (arXiv
2104.09864); grouped heads, Ainslie et al. 2023 (2305.13245); soft-capping and norms around blocks, Gemma 2 (2408.00118).
"""

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.activations_reference import activate
from fastmixer.kernels.decoder.pages import PAGE
from fastmixer.kernels.packed import reference as packed_reference

# One in so many numbers of what a linear map reads is an outlier, where a layer's input is read and where logits are made.
OUTLIER = 288
HEAD_OUTLIER = 144


class Decoder:
    """The layers of a DecoderSpec, whose weights this implementation's pack_weight packed. Holds no state of its own."""

    packed = packed_reference

    def __init__(self, spec):
        self.spec = spec

    def forward(self, ids, starts, first_positions, pages, tables, wanted, logits, hidden, written=None):
        """The tokens of several sequences through all layers; what the head makes of some of them.

        ids: int64 [tokens], of sequence s those from starts[s] to starts[s + 1] (starts: int64 [sequences + 1]), at
        positions first_positions[s] + 0, 1, ... Their keys and values are written into pages (KVPages), and each token
        sees its own sequence's positions up to its own (of layers with a window, the last so many of them).
        tables: int32 [groups, sequences, pages]: the page that holds the i-th 64 positions, -1: none, which only a
        window that has passed it may have. wanted: int64 [n], tokens of ids; logits: float32 [n, vocab] (or None) and
        hidden: float32 [n, dim] (or None), after the final norm, receive theirs. written: uint8 [sequences] or None, for
        native code, whose sums' order it decides: 1 where at most FEW_TOKENS tokens (spec.py) are being written, 0 where a
        text is read (None: so few tokens are being written, more are read).
        """
        spec = self.spec
        if len(ids) == 0:
            return
        lengths = np.diff(starts)
        sequences = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.arange(len(ids)) - np.repeat(starts[:-1], lengths) + np.repeat(first_positions, lengths)

        x = self._embed(ids, positions)
        for layer in spec.layers:
            # attention: what this layer reads from other tokens
            normed = self._norm(layer.attention_norm, x)
            q = self._heads(layer.q, normed, layer.q_norm, layer, positions)
            k = self._heads(layer.k, normed, layer.k_norm, layer, positions)
            v = self._linear(layer.v, normed, OUTLIER).reshape(k.shape)
            held = tables[layer.group, sequences, positions // PAGE]
            pages.write(layer.group, layer.index, held, positions % PAGE, k, v)
            attended = self._attend(q * np.float32(spec.attention_scale), starts, first_positions, pages, tables, layer)
            branch = self._linear(layer.output, attended)
            x += branch if layer.attention_post_norm is None else self._norm(layer.attention_post_norm, branch)
            # feedforward: what it makes of it, each token alone
            branch = self._feedforward(layer, self._norm(layer.feedforward_norm, x))
            x += branch if layer.feedforward_post_norm is None else self._norm(layer.feedforward_post_norm, branch)

        if len(wanted):
            normed = self._norm(spec.final_norm, x[wanted])
            if hidden is not None:
                hidden[...] = normed
            if logits is not None:
                logits[...] = soft_capped(self._linear(spec.head, normed, HEAD_OUTLIER), spec.logit_softcap)

    # ---- the parts ----

    def _embed(self, ids, positions):
        """float32 [tokens, dim]: rows of the embedding, scaled, and of the positions' table, if there is one."""
        x = np.empty((len(ids), self.spec.dim), np.float32)
        self.packed.packed_rows(self.spec.embedding, ids, x)
        x *= np.float32(self.spec.embedding_scale)
        return x if self.spec.positions is None else x + self.spec.positions[positions]

    def _norm(self, norm, x):
        """x: float32 [..., width], each row normalized."""
        if norm.kind == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(norm.epsilon)) * norm.weight
        return x if norm.bias is None else x + norm.bias

    def _linear(self, linear, x, one_in=0):
        """float32 [tokens, outputs] of x: float32 [tokens, inputs]; one in so many numbers an outlier (0: none)."""
        out = np.empty((len(x), linear.weight.outputs), np.float32)
        outliers = -(-x.shape[1] // one_in) if one_in else 0
        self.packed.packed_linear(np.ascontiguousarray(x), linear.weight, linear.bias, out, outliers)
        return out

    def _heads(self, linear, x, norm, layer, positions):
        """float32 [tokens, heads, head_dim]: q or k of x, normed and rotated."""
        heads = self._linear(linear, x, OUTLIER).reshape(len(x), -1, self.spec.head_dim)
        if norm is not None:
            heads = self._norm(norm, heads)
        if layer.cos is not None:
            half = layer.cos.shape[1]
            cos, sin = layer.cos[positions][:, None], layer.sin[positions][:, None]
            first, second = heads[..., :half].copy(), heads[..., half : 2 * half].copy()
            heads[..., :half] = first * cos - second * sin
            heads[..., half : 2 * half] = second * cos + first * sin
        return heads

    def _attend(self, q, starts, first_positions, pages, tables, layer):
        """float32 [tokens, heads * head_dim]: each sequence's queries over its own keys and values."""
        out = np.empty(q.shape, np.float32)
        for sequence, first_position in enumerate(first_positions):
            tokens = slice(starts[sequence], starts[sequence + 1])
            if tokens.start == tokens.stop:
                continue
            position = first_position + np.arange(tokens.stop - tokens.start)
            seen_from = max(0, position[0] - layer.window + 1) if layer.window else 0
            key = np.arange(seen_from, position[-1] + 1)
            held = tables[layer.group, sequence, key // PAGE]
            keys, values = pages.read(layer.group, layer.index, held, key % PAGE)
            hidden = key > position[:, None]
            if layer.window:
                hidden |= key <= position[:, None] - layer.window
            out[tokens] = self._blend(q[tokens], keys, values, hidden)
        return out.reshape(len(q), -1)

    def _blend(self, q, keys, values, hidden):
        """float32 [queries, heads, head_dim] = softmax(q keys^T) values, but for what is hidden: bool [queries, keys].
        Head h reads kv head h // (heads / kv_heads)."""
        group = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat(group, axis=1), values.repeat(group, axis=1)
        scores = q.transpose(1, 0, 2) @ keys.transpose(1, 2, 0)
        scores = soft_capped(scores, self.spec.attention_softcap)
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ values.transpose(1, 0, 2)).transpose(1, 0, 2)

    def _feedforward(self, layer, x):
        """float32 [tokens, dim]: down(act(gate) * up) or down(act(up))."""
        number = ACTIVATIONS[self.spec.activation]
        wide = self._linear(layer.up, x, OUTLIER)
        if layer.gate is None:
            wide = activate(wide, number)
        else:
            wide *= activate(self._linear(layer.gate, x, OUTLIER), number)
        return self._linear(layer.down, wide)


def soft_capped(x, cap):
    """cap tanh(x / cap), or x itself where cap is 0."""
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x
