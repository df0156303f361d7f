"""Embedding: rows gathered by id, gradients of only the rows that occurred, updates of only those, and likeness of rows.

Knows nothing of tokens or tokenizers.
"""

from dataclasses import dataclass

import numpy as np

from fastmixer.kernels.memory import aligned_empty
from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_integer, check_number, leading_axes, require_apart

SEARCH_BLOCK = 8192  # rows of the table that nearest compares at once


@dataclass(frozen=True)
class SparseRows:
    """The gradient of an embedding table that is zero but for some rows.

    rows: int64 [touched], ascending and distinct; values: float32 [touched, dim]; the whole is [num_rows, dim]. Whatever
    reads it checks that, and raises IndexError with the value and position of a row outside 0..num_rows-1, TypeError or
    ValueError for anything else.
    """

    rows: np.ndarray
    values: np.ndarray
    num_rows: int

    def to_dense(self) -> np.ndarray:
        """The same gradient as float32 [num_rows, dim]."""
        rows, values = _check_sparse(Arrays("SparseRows.to_dense", "embedding"), self)
        dense = np.zeros((self.num_rows, values.shape[1]), values.dtype)
        dense[rows] = values
        return dense

    def merged(self, other: "SparseRows") -> "SparseRows":
        """The sum of two gradients of one table: the rows of either, sorted, equal ones added up in this order."""
        ours = _check_sparse(Arrays("SparseRows.merged", "embedding"), self)
        theirs = _check_sparse(Arrays("SparseRows.merged", "embedding"), other, "other")
        dim, other_dim = ours[1].shape[1], theirs[1].shape[1]
        if other.num_rows != self.num_rows or other_dim != dim:
            raise ValueError(
                f"SparseRows.merged: both must be of one table; got {self.num_rows} rows of {dim} and "
                f"{other.num_rows} of {other_dim}"
            )
        merged = np.union1d(ours[0], theirs[0])
        total = np.zeros((len(merged), dim), ours[1].dtype)
        for rows, values in (ours, theirs):
            total[np.searchsorted(merged, rows)] += values
        return SparseRows(merged, total, self.num_rows)

    def add_to(self, dense: np.ndarray) -> None:
        """dense += this gradient, in place; dense: float32 [num_rows, dim]."""
        arrays = Arrays("SparseRows.add_to", "embedding")
        rows, values = _check_sparse(arrays, self)
        dense = arrays.check_output("dense", dense, "num_rows dim")
        require_apart("SparseRows.add_to", "dense", dense, values=values, rows=rows)
        if values.size:
            kernels("embedding").add_rows(dense, rows, values)


def embedding(table: np.ndarray, ids: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """The rows of table: float32 [rows, dim] at ids: integer [...]; float32 [..., dim].

    Raises IndexError with the value and position of an id outside 0..rows-1, TypeError or ValueError for a wrong array.
    """
    arrays = Arrays("embedding")
    table = arrays.check("table", table, "rows dim")
    ids = arrays.check_ids("ids", ids, None, limit=table.shape[0])
    axes = _bind_leading(arrays, ids)
    out = arrays.output("out", out, axes)
    require_apart("embedding", "out", out, table=table, ids=ids)
    if out.size:
        kernels("embedding").gather(table, ids.reshape(-1), out.reshape(-1, table.shape[1]))
    return out


def embedding_backward(
    d_out: np.ndarray, ids: np.ndarray, num_rows: int, *, values: np.ndarray | None = None
) -> SparseRows:
    """The gradient of a table of num_rows rows from d_out: float32 [..., dim], the gradient of its rows at ids [...].

    Only rows that occurred; positions are sorted by row and each row is summed by one writer in the order of ids, so
    the result does not depend on threads. values: float32 [at least as many as ids, dim] is memory for the result, which
    lies in its first rows (a caller of many steps saves the system clearing it each time). Errors as in embedding.
    """
    num_rows = check_integer("embedding_backward", "num_rows", num_rows, at_least=0)
    arrays = Arrays("embedding_backward", "embedding")
    ids = arrays.check_ids("ids", ids, None, limit=num_rows)
    axes = _bind_leading(arrays, ids)
    d_out = arrays.check("d_out", d_out, axes)
    count, dim = ids.size, d_out.shape[-1]
    order, rows, starts = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
    kernel = kernels("embedding")
    touched = kernel.group_by_row(ids.reshape(-1), num_rows, order, starts, rows)
    if values is None:
        values = aligned_empty((touched, dim), d_out.dtype)  # a kernel that writes past the caches needs whole lines
    elif len(arrays.check_output("values", values, "room dim")) < count:
        raise ValueError(f"embedding_backward: values must have a row for each of {count} ids; got {values.shape}")
    values = values[:touched]
    require_apart("embedding_backward", "values", values, d_out=d_out, ids=ids)
    if values.size:
        kernel.scatter_gradient(d_out.reshape(count, dim), order, starts, values)
    return SparseRows(rows[:touched].copy(), values, num_rows)


def update_rows_sgd(table: np.ndarray, sparse: SparseRows, learning_rate: float) -> None:
    """table: float32 [num_rows, dim] -= learning_rate * gradient, in place, at the rows that occurred and no others."""
    _, table, rows, values = _check_update("update_rows_sgd", table, sparse)
    check_number("update_rows_sgd", "learning_rate", learning_rate)
    if values.size:
        kernels("embedding").sgd_rows(table, rows, values, float(learning_rate))


def update_rows_adagrad(
    table: np.ndarray, accumulator: np.ndarray, sparse: SparseRows, learning_rate: float, epsilon: float = 1e-10
) -> None:
    """Rowwise AdaGrad in place at the rows that occurred; accumulator: float32 [num_rows], one sum of mean squares a row.

    Source: Duchi, Hazan, Singer 2011, with one accumulator for a row's whole vector.
    """
    arrays, table, rows, values = _check_update("update_rows_adagrad", table, sparse)
    accumulator = arrays.check_output("accumulator", accumulator, "num_rows")
    check_number("update_rows_adagrad", "learning_rate", learning_rate)
    check_number("update_rows_adagrad", "epsilon", epsilon, at_least=0)
    if values.size:
        kernels("embedding").adagrad_rows(table, accumulator, rows, values, float(learning_rate), float(epsilon))


def update_rows_adamw(
    table: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    sparse: SparseRows,
    learning_rate: float,
    *,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """AdamW in place at the rows that occurred; m, v: float32 [num_rows, dim] are its moments, step counts from 1.

    Rows that did not occur keep weights and moments. Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """
    name = "update_rows_adamw"
    arrays, table, rows, values = _check_update(name, table, sparse)
    m = arrays.check_output("m", m, "num_rows dim")
    v = arrays.check_output("v", v, "num_rows dim")
    step = check_integer(name, "step", step, at_least=1)
    check_number(name, "beta1", beta1, at_least=0, below=1)
    check_number(name, "beta2", beta2, at_least=0, below=1)
    for label, value in (("epsilon", epsilon), ("weight_decay", weight_decay)):
        check_number(name, label, value, at_least=0)
    check_number(name, "learning_rate", learning_rate)
    if values.size:
        kernels("embedding").adamw_rows(
            table, m, v, rows, values, float(learning_rate), beta1, beta2, epsilon, weight_decay, step
        )


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How alike vectors are, -1..1: a: float32 [..., dim] against b of the same shape or [dim]; float32 [...].

    A zero vector has no direction: ValueError.
    """
    arrays = Arrays("cosine_similarity", "embedding")
    a = arrays.check("a", a, leading_axes(a, "dim"))
    b = arrays.check("b", b, "dim" if isinstance(b, np.ndarray) and b.ndim == 1 else leading_axes(a, "dim"))
    a, b = _middling(a), _middling(b)
    norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    for name, norm in zip("ab", norms, strict=True):
        if not np.all(norm):
            raise ValueError(f"cosine_similarity: {name} holds a zero vector, which has no direction")
    return np.einsum("...d,...d->...", a, b) / (norms[0] * norms[1])


def nearest(table: np.ndarray, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of table: float32 [rows, dim] most alike to vector: float32 [dim], by cosine, best first.

    Returns (ids int64 [k], similarities float32 [k]); equal ones in the order of ids. A zero row is like nothing (0).
    Raises ValueError for a zero vector or k outside 1..rows.
    """
    arrays = Arrays("nearest", "embedding")
    table = arrays.check("table", table, "rows dim")
    vector = arrays.check("vector", vector, "dim")
    k = check_integer("nearest", "k", k)
    if not 1 <= k <= len(table):
        raise ValueError(f"nearest: k must be 1..{len(table)}, the rows of the table; got {k}")
    vector = _middling(vector)
    length = np.linalg.norm(vector)
    if length == 0:
        raise ValueError("nearest: vector is zero, which has no direction")
    similarities = np.empty(len(table), table.dtype)
    for start in range(0, len(table), SEARCH_BLOCK):
        block = _middling(table[start : start + SEARCH_BLOCK])
        norms = np.linalg.norm(block, axis=1)
        similarities[start : start + SEARCH_BLOCK] = block @ vector / np.where(norms == 0, np.inf, norms * length)
    ids = np.argsort(-similarities, kind="stable")[:k]
    return ids, similarities[ids]


def _middling(vectors: np.ndarray) -> np.ndarray:
    """vectors [..., dim], each times the power of two that brings its largest number between 1/2 and 1, so that no square
    overflows or vanishes; those in which none would, as they are."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0)
    if not largest.size or (1e-15 < largest.min() and largest.max() < 1e15):
        return vectors
    return np.ldexp(vectors, -np.frexp(largest)[1])


def _bind_leading(arrays: Arrays, ids: np.ndarray) -> str:
    """Axis names of [*ids, dim], where those of ids have its sizes from now on."""
    axes = leading_axes(ids[..., None], "dim")
    arrays.sizes.update(zip(axes.split(), ids.shape, strict=False))
    return axes


def _check_update(op: str, table: np.ndarray, sparse: SparseRows) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray]:
    """(the op's arrays, table, the gradient's rows and values), checked."""
    arrays = Arrays(op, "embedding")
    rows, values = _check_sparse(arrays, sparse, "sparse")
    table = arrays.check_output("table", table, "num_rows dim")
    require_apart(op, "table", table, **{"sparse.values": values, "sparse.rows": rows})
    return arrays, table, rows, values


def _check_sparse(arrays: Arrays, sparse: SparseRows, name: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(rows: int64 [touched], values: float32 [touched, dim]) of a gradient that came as the argument `name`, checked, as
    kernels write wherever rows say; from now on num_rows and dim are the table's."""
    op, prefix = arrays.op, f"{name}." if name else ""
    if not isinstance(sparse, SparseRows):
        raise TypeError(f"{op}: {name} must be SparseRows (from embedding_backward); got {type(sparse).__name__}")
    arrays.sizes["num_rows"] = check_integer(op, f"{prefix}num_rows", sparse.num_rows, at_least=0)
    rows = arrays.check_ids(f"{prefix}rows", sparse.rows, "touched", limit=sparse.num_rows)
    falls = rows[1:] <= rows[:-1]
    if falls.any():
        first = int(falls.argmax())
        came = f"rows[{first}] = {rows[first]} and rows[{first + 1}] = {rows[first + 1]}"
        raise ValueError(f"{op}: {prefix}rows must be ascending and distinct; got {came}")
    return rows, arrays.check(f"{prefix}values", sparse.values, "touched dim")
