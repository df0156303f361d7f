"""Relative positions: a bias for each distance of a key from a query, from a few numbers of which far distances share one.

Source: Raffel et al. 2019 (arXiv 1910.10683), as MPNet has it (Song et al. 2020, arXiv 2004.09297). Knows no attention.
"""

import numpy as np

RELATIVE_DISTANCE = 128  # beyond it all tokens are equally far


def relative_buckets(count: int) -> np.ndarray:
    """int64 [2 * RELATIVE_DISTANCE + 1]: which of `count` buckets each distance j - i of a key from a query falls into.

    Half of the buckets are for keys before the query: the first of them one distance each, the others ever more, up to
    RELATIVE_DISTANCE.
    """
    half, near = count // 2, count // 4
    offsets = np.arange(-RELATIVE_DISTANCE, RELATIVE_DISTANCE + 1)
    distance = np.abs(offsets)
    steps = np.log(np.maximum(distance, near).astype(np.float32) / np.float32(near))
    far = near + (steps / np.float32(np.log(RELATIVE_DISTANCE / near)) * np.float32(half - near)).astype(np.int64)
    return np.where(distance < near, distance, np.minimum(far, half - 1)) + half * (offsets > 0)


def relative_table(weight: np.ndarray) -> np.ndarray:
    """float [heads, 2 * RELATIVE_DISTANCE + 1], the bias of each distance, of weight: float [buckets, heads]."""
    return np.ascontiguousarray(weight[relative_buckets(len(weight))].T)


def relative_table_backward(d_table: np.ndarray, d_weight: np.ndarray) -> None:
    """Adds the gradient of relative_table to d_weight: [buckets, heads]."""
    np.add.at(d_weight, relative_buckets(len(d_weight)), d_table.T)
