"""A whole encoder in Numba: reference.py's flow, with compiled linear maps and attention.

Norms and rotations stay NumPy's: their work grows with tokens, not with weights or lengths. Shapes and meaning:
reference.py.
"""

from itertools import pairwise

import numpy as np

from fastmixer.kernels.encoder import reference
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.jit_exp import exp_float32
from fastmixer.kernels.packed import jit as packed_jit
from fastmixer.kernels.threads import parallel_for

QUERIES_A_TASK = 64


class Encoder(reference.Encoder):
    """The layers of an EncoderSpec, whose weights jit's pack_weight packed. Holds no state of its own."""

    packed = packed_jit

    def _attend(self, q, k, v, starts, window):
        """float32 [tokens, heads * head_dim]: each sequence's queries over its own keys and values."""
        out = np.empty(q.shape, np.float32)
        relative = self.spec.relative
        # a task: one head of so many queries of one sequence
        tasks = [
            (start, stop, first, head)
            for start, stop in pairwise(starts.tolist())
            for first in range(start, stop, QUERIES_A_TASK)
            for head in range(self.spec.heads)
        ]

        def task(index):
            start, stop, first, head = tasks[index]
            queries = slice(first, min(first + QUERIES_A_TASK, stop))
            bias = None if relative is None else relative[head]
            _blend_head(
                q[queries, head], k[start:stop, head], v[start:stop, head], first - start, window, bias, out[queries, head]
            )  # fmt: skip

        parallel_for(task, len(tasks))
        return out.reshape(len(q), -1)


@compiled
def _blend_head(q, keys, values, first, window, relative, out):
    """One head: out [queries, head_dim], of queries at positions first, first + 1, ..."""
    queries, head_dim = q.shape
    scores = np.empty(len(keys), np.float32)
    for i in range(queries):
        position = first + i
        seen_from, seen_to = 0, len(keys)
        if window > 0:
            seen_from, seen_to = max(0, position - window), min(len(keys), position + window + 1)
        largest = np.float32(-np.inf)
        for j in range(seen_from, seen_to):
            score = np.float32(0)
            for d in range(head_dim):
                score += q[i, d] * keys[j, d]
            if relative is not None:
                farthest = len(relative) // 2
                score += relative[min(max(j - position, -farthest), farthest) + farthest]
            scores[j] = score
            largest = max(largest, score)
        total = np.float32(0)
        for d in range(head_dim):
            out[i, d] = 0
        for j in range(seen_from, seen_to):
            weight = exp_float32(scores[j] - largest)
            total += weight
            for d in range(head_dim):
                out[i, d] += weight * values[j, d]
        for d in range(head_dim):
            out[i, d] /= total
