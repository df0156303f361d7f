"""Top-k search in Numba: products by kernels/matmul, a block at a time, of which each query keeps its best in a heap.

Each query has one writer, and which rows are best does not depend on the order they are met in.
"""

import numpy as np

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.matmul.jit import matmul
from fastmixer.kernels.threads import parallel_for

ROW_BLOCK = 2048  # rows and
QUERY_BLOCK = 256  # queries whose scores exist at once
NOBODY = np.iinfo(np.int64).max  # the id of a place in a heap that no row has taken yet


def search(vectors, queries, ids, scores):
    """The rows of vectors with the largest dot products with each query; shapes and rules: reference.py."""
    return _search(lambda start, stop: vectors[start:stop], len(vectors), queries, ids, scores)


def search_half(halves, queries, ids, scores):
    """As search over halves: uint16 [rows, dim], the bits of float16 numbers."""
    values = halves.view(np.float16)
    return _search(lambda start, stop: values[start:stop].astype(np.float32), len(halves), queries, ids, scores)


def _search(block_of, rows, queries, ids, scores):
    ids[:], scores[:] = NOBODY, -np.inf
    finite = np.ones(len(queries), np.bool_)
    products = np.empty(QUERY_BLOCK * ROW_BLOCK, np.float32)
    for first in range(0, len(queries), QUERY_BLOCK):
        some = slice(first, min(first + QUERY_BLOCK, len(queries)))
        for start in range(0, rows, ROW_BLOCK):
            block = block_of(start, min(start + ROW_BLOCK, rows))
            shape = (some.stop - some.start, len(block))
            block_scores = products[: shape[0] * shape[1]].reshape(shape)
            matmul(queries[some], block, block_scores, False, True, False)
            _keep(block_scores, start, ids[some], scores[some], finite[some])
    parallel_for(lambda query: _sort_heap(ids[query], scores[query]), len(queries))
    return bool(finite.all())


def _keep(block_scores, start, ids, scores, finite):
    parallel_for(lambda query: _keep_row(block_scores[query], start, ids, scores, finite, query), len(ids))


@compiled
def _keep_row(products, start, ids, scores, finite, query):
    """The heap of one query takes what is better than its worst; rows come in the order of their ids."""
    query_ids, query_scores = ids[query], scores[query]
    check = np.float32(0)
    for i in range(products.size):
        check += products[i] * np.float32(0)  # stays 0 while all is finite
        if products[i] > query_scores[0]:
            _put(query_ids, query_scores, query_scores.size, start + i, products[i])
    if check != 0:
        finite[query] = False


@compiled
def _put(ids, scores, size, row, score):
    """Row and score take the place of the root of a heap [size] whose root is the worst; it sinks to where it belongs."""
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _is_worse(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if not _is_worse(scores[child], ids[child], score, row):
            break
        ids[place], scores[place] = ids[child], scores[child]
        place = child
    ids[place], scores[place] = row, score


@compiled
def _is_worse(score, row, other_score, other_row):
    return score < other_score or (score == other_score and row > other_row)


@compiled
def _sort_heap(ids, scores):
    """Best first: the worst, which is the root, goes to the end, again and again."""
    for last in range(ids.size - 1, 0, -1):
        row, score = ids[last], scores[last]
        ids[last], scores[last] = ids[0], scores[0]
        _put(ids, scores, last, row, score)
