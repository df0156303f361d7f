"""Sizes and arrays that the tests of attention's faces share."""

import numpy as np

BATCH, HEADS, KV_HEADS, QUERIES, KEYS, HEAD_DIM = 2, 4, 2, 7, 9, 6


def make(rng, queries=QUERIES, keys=KEYS, batch=BATCH, dtype=np.float32):
    """q, k, v, d_out."""
    q_shape, k_shape = (batch, HEADS, queries, HEAD_DIM), (batch, KV_HEADS, keys, HEAD_DIM)
    return [rng.standard_normal(shape, np.float32).astype(dtype) for shape in (q_shape, k_shape, k_shape, q_shape)]
