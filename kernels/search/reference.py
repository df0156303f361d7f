"""Top-k search in NumPy: the truth that jit and native are held to; float32 or float64. Knows nothing of texts."""

import numpy as np

ROW_BLOCK = 4096  # rows whose scores exist at once


def search(vectors, queries, ids, scores):
    """The rows of vectors with the largest dot products with each query, best first, the lower id first among equals.

    vectors: float32 [rows, dim]; queries: float32 [queries, dim]; ids: int64 [queries, k], k <= rows; scores: [queries, k].
    Returns whether all products were finite; where they were not, ids and scores mean nothing.
    """
    return _search(lambda start, stop: vectors[start:stop], len(vectors), queries, ids, scores)


def search_half(halves, queries, ids, scores):
    """As search over halves: uint16 [rows, dim], the bits of float16 numbers."""
    values = halves.view(np.float16)
    return _search(lambda start, stop: values[start:stop].astype(queries.dtype), len(halves), queries, ids, scores)


def _search(block_of, rows, queries, ids, scores):
    k = ids.shape[1]
    best_ids, best = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), queries.dtype)
    all_finite = True
    for start in range(0, rows, ROW_BLOCK):
        stop = min(start + ROW_BLOCK, rows)
        block = queries @ block_of(start, stop).T
        all_finite &= bool(np.isfinite(block).all())
        # the best so far stand first: among equals a stable sort leaves the lower id before the higher
        best = np.concatenate([best, block], axis=1)
        best_ids = np.concatenate([best_ids, np.broadcast_to(np.arange(start, stop), block.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, best_ids = np.take_along_axis(best, order, axis=1), np.take_along_axis(best_ids, order, axis=1)
    ids[:], scores[:] = best_ids, best
    return all_finite
