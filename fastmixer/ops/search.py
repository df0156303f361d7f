"""The rows of a table of vectors that are most alike to queries, by dot product or by cosine. Knows nothing of texts or
models."""

from typing import NoReturn

import numpy as np

from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_integer

ROW_BLOCK = 1024  # rows whose lengths are found at once, or among which a number that is not finite is looked for
CHUNK = 1 << 24  # numbers of vectors searched at once by cosine: 64 MB, still in the page cache after their lengths
OFF_UNIT, OFF_UNIT_HALF = 1e-5, 5e-4  # of a length: what rounding to float32, and to float16, makes of 1


def search(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of vectors with the largest dot products with each query, best first: (ids int64 [queries, k], scores
    float32 [queries, k]). Of unit vectors the dot product is the cosine; of others longer rows score more, unless they are
    divided by their lengths first. Among equals the lower id wins.

    vectors: float32 or float16 [rows, dim]; may be a read-only memory map, which is read once for some 200 queries.
    queries: float32 [queries, dim]. Scores of all rows never exist at once. Raises TypeError or ValueError for a wrong
    array, a k outside 1..rows, and for numbers that are not finite, naming the first.
    """
    vectors, queries, k = _checked(vectors, queries, k)
    ids, scores, all_finite = _best(vectors, queries, k)
    if not all_finite:
        _refuse(vectors, queries)
    return ids, scores


def cosine_search(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As search, by cosine, whatever the lengths of rows and queries; a row of zeros has the cosine 0 with everything.

    vectors are read in chunks, each once from its file. Lengths of all are looked at, which takes the time of a search for
    two queries (of float16 for eight); only chunks with rows that are not of length 1 are copied, to be divided by them.
    """
    vectors, queries, k = _checked(vectors, queries, k)
    directions, all_finite = _unit(queries), True
    ids, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), queries.dtype)
    step = max(1, CHUNK // vectors.shape[1])
    for start in range(0, len(vectors), step):
        chunk = vectors[start : start + step]
        more_ids, more, is_finite = _best(_unit(chunk), directions, min(k, len(chunk)))
        all_finite &= is_finite
        # The best so far stand first: a stable sort leaves the lower id before the higher among equals.
        ids, scores = np.concatenate([ids, more_ids + start], axis=1), np.concatenate([scores, more], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    if not all_finite:
        _refuse(vectors, queries)
    return ids, scores


def _checked(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The three as search wants them."""
    arrays = Arrays("search")
    if isinstance(vectors, np.ndarray) and vectors.dtype == np.float16 and vectors.ndim == 2:
        arrays.sizes.update(rows=len(vectors), dim=vectors.shape[1])
        vectors = np.ascontiguousarray(vectors)
    else:
        try:
            vectors = arrays.check("vectors", vectors, "rows dim")
        except (TypeError, ValueError) as error:  # which knows of one dtype
            raise type(error)(str(error).replace("float32", "float32 or float16", 1)) from None
    queries = arrays.check("queries", queries, "queries dim")
    rows, dim = vectors.shape
    if rows == 0 or dim == 0:
        missing = "column" if rows else "row"
        raise ValueError(f"search: vectors must have at least one {missing}; got {vectors.dtype.name} {vectors.shape}")
    k = check_integer("search", "k", k)
    if not 1 <= k <= rows:
        raise ValueError(f"search: k must be 1..{rows}, the rows of vectors; got {k}")
    return vectors, queries, k


def _best(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """(ids, scores) as search, and whether all products were finite."""
    ids, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), queries.dtype)
    if vectors.dtype == np.float16:
        return ids, scores, kernels("search").search_half(vectors.view(np.uint16), queries, ids, scores)
    return ids, scores, kernels("search").search(vectors, queries, ids, scores)


def _unit(rows: np.ndarray) -> np.ndarray:
    """rows: [n, dim] themselves where all have length 1 or 0, as near as their dtype can; else a copy, each divided by its
    length (of float16 a float32 one). What is not finite stays so."""
    blocks = [slice(start, start + ROW_BLOCK) for start in range(0, len(rows), ROW_BLOCK)]
    with np.errstate(over="ignore", invalid="ignore"):
        if all(_are_unit(rows[block]) for block in blocks):
            return rows
        out = np.empty(rows.shape, np.float32 if rows.dtype == np.float16 else rows.dtype)
        for block in blocks:
            exact = rows[block].astype(np.float64)  # in which no length is too large, or too small
            lengths = np.sqrt(np.einsum("nd,nd->n", exact, exact))
            out[block] = exact / np.where(lengths == 0, 1, lengths)[:, None]
    return out


def _are_unit(rows: np.ndarray) -> bool:
    most_off = OFF_UNIT_HALF if rows.dtype == np.float16 else OFF_UNIT
    rows = rows.astype(np.float32) if rows.dtype == np.float16 else rows
    squares = np.einsum("nd,nd->n", rows, rows)
    off = np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) <= most_off))
    return not (squares[off] != 0).any() and not rows[off].any()  # a tiny row's square is 0, too


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
