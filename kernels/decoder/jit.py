"""A whole decoder in Numba: reference.py's flow, with compiled linear maps and attention.

Norms, rotations and pages stay NumPy's: their work grows with tokens, not with weights or contexts. Shapes and meaning:
reference.py.
"""

import numpy as np

from fastmixer.kernels.decoder import reference
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.jit_exp import exp_float32
from fastmixer.kernels.packed import jit as packed_jit
from fastmixer.kernels.threads import parallel_for

QUERIES_A_TASK = 64


class Decoder(reference.Decoder):
    """The layers of a DecoderSpec, whose weights jit's pack_weight packed. Holds no state of its own."""

    packed = packed_jit

    def _blend(self, q, keys, values, hidden):
        """float32 [queries, heads, head_dim] = softmax(q keys^T) values, but for what is hidden: bool [queries, keys].
        Head h reads kv head h // (heads / kv_heads)."""
        queries, heads, _ = q.shape
        out = np.empty(q.shape, np.float32)
        blocks = -(-queries // QUERIES_A_TASK)
        softcap = np.float32(self.spec.attention_softcap)

        def task(index):
            head, block = divmod(index, blocks)
            kv_head = head // (heads // keys.shape[1])
            rows = slice(block * QUERIES_A_TASK, min((block + 1) * QUERIES_A_TASK, queries))
            _blend_head(q[rows, head], keys[:, kv_head], values[:, kv_head], hidden[rows], softcap, out[rows, head])

        parallel_for(task, heads * blocks)
        return out


@compiled
def _blend_head(q, keys, values, hidden, softcap, out):
    """One head: out [queries, head_dim]."""
    queries, head_dim = q.shape
    scores = np.empty(len(keys), np.float32)
    for i in range(queries):
        largest = np.float32(-np.inf)
        for j in range(len(keys)):
            if hidden[i, j]:
                continue
            score = np.float32(0)
            for d in range(head_dim):
                score += q[i, d] * keys[j, d]
            if softcap > 0:
                score = softcap * np.tanh(score / softcap)
            scores[j] = score
            largest = max(largest, score)
        total = np.float32(0)
        for d in range(head_dim):
            out[i, d] = 0
        for j in range(len(keys)):
            if hidden[i, j]:
                continue
            weight = exp_float32(scores[j] - largest)
            total += weight
            for d in range(head_dim):
                out[i, d] += weight * values[j, d]
        for d in range(head_dim):
            out[i, d] /= total
