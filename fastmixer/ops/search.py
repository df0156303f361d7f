"""The rows of a table of vectors that are most alike to queries, by dot product. Knows nothing of texts or models."""

from typing import NoReturn

import numpy as np

from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_integer

ROW_BLOCK = 4096  # rows whose scores exist at once while the cause of one that is not finite is looked for


def search(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of vectors with the largest dot products with each query, best first: (ids int64 [queries, k], scores
    float32 [queries, k]). Of unit vectors the dot product is the cosine. Among equals the lower id wins.

    vectors: float32 or float16 [rows, dim]; may be a read-only memory map, which is read once for some 200 queries.
    queries: float32 [queries, dim]. Scores of all rows never exist at once. Raises TypeError or ValueError for a wrong
    array, a k outside 1..rows, and for numbers that are not finite, naming the first.
    """
    arrays = Arrays("search")
    is_half = isinstance(vectors, np.ndarray) and vectors.dtype == np.float16 and vectors.ndim == 2
    if is_half:
        arrays.sizes.update(rows=len(vectors), dim=vectors.shape[1])
        vectors = np.ascontiguousarray(vectors)
    else:
        vectors = arrays.check("vectors", vectors, "rows dim")
    queries = arrays.check("queries", queries, "queries dim")
    rows, dim = vectors.shape
    if rows == 0 or dim == 0:
        missing = "column" if rows else "row"
        raise ValueError(f"search: vectors must have at least one {missing}; got {vectors.dtype.name} {vectors.shape}")
    k = check_integer("search", "k", k)
    if not 1 <= k <= rows:
        raise ValueError(f"search: k must be 1..{rows}, the rows of vectors; got {k}")
    ids, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), queries.dtype)
    if is_half:
        all_finite = kernels("search").search_half(vectors.view(np.uint16), queries, ids, scores)
    else:
        all_finite = kernels("search").search(vectors, queries, ids, scores)
    if not all_finite:
        _refuse(vectors, queries)
    return ids, scores


def _refuse(vectors: np.ndarray, queries: np.ndarray) -> NoReturn:
    """ValueError that names the first number that is not finite, or says that there is none."""
    for name, array in (("queries", queries), ("vectors", vectors)):
        for start in range(0, len(array), ROW_BLOCK):
            wrong = ~np.isfinite(array[start : start + ROW_BLOCK])
            if wrong.any():
                row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
                value = array[start + row, column]
                raise ValueError(f"search: {name} must be finite; {name}[{start + row}, {column}] = {value}")
    raise ValueError("search: products must be finite; some are too large for float32")
