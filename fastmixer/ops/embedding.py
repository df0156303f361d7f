"""Embedding: rows gathered by id, gradients of only the rows that occurred, updates of only those, and likeness of rows.

Knows nothing of tokens or tokenizers.
"""

from dataclasses import dataclass

import numpy as np

from fastmixer.kernels.memory import aligned_empty
from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_number

SEARCH_BLOCK = 8192  # rows of the table that nearest compares at once


@dataclass(frozen=True)
class SparseRows:
    """The gradient of an embedding table that is zero but for some rows.

    rows: int64 [touched], ascending and distinct; values: float32 [touched, dim]; the whole is [num_rows, dim].
    """

    rows: np.ndarray
    values: np.ndarray
    num_rows: int

    def to_dense(self) -> np.ndarray:
        """The same gradient as float32 [num_rows, dim]."""
        dense = np.zeros((self.num_rows, self.values.shape[1]), self.values.dtype)
        dense[self.rows] = self.values
        return dense

    def merged(self, other: "SparseRows") -> "SparseRows":
        """The sum of two gradients of one table: the rows of either, sorted, equal ones added up in this order."""
        if other.num_rows != self.num_rows or other.values.shape[1] != self.values.shape[1]:
            raise ValueError(
                f"SparseRows.merged: both must be of one table; got {self.num_rows} rows of {self.values.shape[1]} and "
                f"{other.num_rows} of {other.values.shape[1]}"
            )
        rows = np.union1d(self.rows, other.rows)
        values = np.zeros((len(rows), self.values.shape[1]), self.values.dtype)
        for part in (self, other):
            values[np.searchsorted(rows, part.rows)] += part.values
        return SparseRows(rows, values, self.num_rows)

    def add_to(self, dense: np.ndarray) -> None:
        """dense += this gradient, in place; dense: float32 [num_rows, dim]."""
        arrays = Arrays("SparseRows.add_to", "embedding", num_rows=self.num_rows, dim=self.values.shape[1])
        dense = arrays.check_output("dense", dense, "num_rows dim")
        if dense.size and self.rows.size:
            kernels("embedding").add_rows(dense, self.rows, self.values)


def embedding(table: np.ndarray, ids: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """The rows of table: float32 [rows, dim] at ids: integer [...]; float32 [..., dim].

    Raises IndexError with the value and position of an id outside 0..rows-1, TypeError or ValueError for a wrong array.
    """
    arrays = Arrays("embedding")
    table = arrays.check("table", table, "rows dim")
    ids = arrays.check_ids("ids", ids, None, limit=table.shape[0])
    axes = _bind_leading(arrays, ids)
    out = arrays.output("out", out, f"{axes} dim")
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
    check_number("embedding_backward", "num_rows", num_rows, at_least=0)
    arrays = Arrays("embedding_backward", "embedding")
    ids = arrays.check_ids("ids", ids, None, limit=num_rows)
    axes = _bind_leading(arrays, ids)
    d_out = arrays.check("d_out", d_out, f"{axes} dim")
    count, dim = ids.size, d_out.shape[-1]
    order, rows, starts = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
    kernel = kernels("embedding")
    touched = kernel.group_by_row(ids.reshape(-1), num_rows, order, starts, rows)
    if values is None:
        values = aligned_empty((touched, dim), d_out.dtype)  # a kernel that writes past the caches needs whole lines
    elif len(arrays.check_output("values", values, "room dim")) < count:
        raise ValueError(f"embedding_backward: values must have a row for each of {count} ids; got {values.shape}")
    values = values[:touched]
    if values.size:
        kernel.scatter_gradient(d_out.reshape(count, dim), order, starts, values)
    return SparseRows(rows[:touched].copy(), values, num_rows)


def update_rows_sgd(table: np.ndarray, sparse: SparseRows, learning_rate: float) -> None:
    """table: float32 [rows, dim] -= learning_rate * gradient, in place, at the rows that occurred and no others."""
    table = _check_update("update_rows_sgd", table, sparse)[0]
    check_number("update_rows_sgd", "learning_rate", learning_rate)
    if sparse.values.size:
        kernels("embedding").sgd_rows(table, sparse.rows, sparse.values, float(learning_rate))


def update_rows_adagrad(
    table: np.ndarray, accumulator: np.ndarray, sparse: SparseRows, learning_rate: float, epsilon: float = 1e-10
) -> None:
    """Rowwise AdaGrad in place at the rows that occurred: one sum of mean squares a row, accumulator: float32 [rows].

    Source: Duchi, Hazan, Singer 2011, with one accumulator for a row's whole vector.
    """
    table, arrays = _check_update("update_rows_adagrad", table, sparse)
    accumulator = arrays.check_output("accumulator", accumulator, "rows")
    check_number("update_rows_adagrad", "learning_rate", learning_rate)
    check_number("update_rows_adagrad", "epsilon", epsilon, at_least=0)
    if sparse.values.size:
        kernels("embedding").adagrad_rows(
            table, accumulator, sparse.rows, sparse.values, float(learning_rate), float(epsilon)
        )


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
    """AdamW in place at the rows that occurred; m, v: float32 [rows, dim] are its moments, step counts from 1.

    Rows that did not occur keep weights and moments. Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """
    name = "update_rows_adamw"
    table, arrays = _check_update(name, table, sparse)
    m = arrays.check_output("m", m, "rows dim")
    v = arrays.check_output("v", v, "rows dim")
    check_number(name, "step", step, at_least=1)
    check_number(name, "beta1", beta1, at_least=0, below=1)
    check_number(name, "beta2", beta2, at_least=0, below=1)
    for label, value in (("epsilon", epsilon), ("weight_decay", weight_decay)):
        check_number(name, label, value, at_least=0)
    check_number(name, "learning_rate", learning_rate)
    if sparse.values.size:
        kernels("embedding").adamw_rows(
            table, m, v, sparse.rows, sparse.values, float(learning_rate), beta1, beta2, epsilon, weight_decay, step
        )


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How alike vectors are, -1..1: a: float32 [..., dim] against b of the same shape or [dim]; float32 [...].

    A zero vector has no direction: ValueError.
    """
    arrays = Arrays("cosine_similarity", "embedding")
    a = arrays.check("a", a, _leading(a, "dim"))
    b = arrays.check("b", b, "dim" if np.ndim(b) == 1 else _leading(a, "dim"))
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
    if not 1 <= check_number("nearest", "k", k) <= len(table):
        raise ValueError(f"nearest: k must be 1..{len(table)}, the rows of the table; got {k}")
    length = np.linalg.norm(vector)
    if length == 0:
        raise ValueError("nearest: vector is zero, which has no direction")
    similarities = np.empty(len(table), table.dtype)
    for start in range(0, len(table), SEARCH_BLOCK):
        block = table[start : start + SEARCH_BLOCK]
        norms = np.linalg.norm(block, axis=1)
        similarities[start : start + SEARCH_BLOCK] = block @ vector / np.where(norms == 0, np.inf, norms * length)
    ids = np.argsort(-similarities, kind="stable")[:k]
    return ids, similarities[ids]


def _leading(value: np.ndarray, last: str) -> str:
    """Axis names for an array with any leading axes: "axis0 axis1 <last>"."""
    return " ".join([*(f"axis{i}" for i in range(max(0, np.ndim(value) - 1))), last])


def _bind_leading(arrays: Arrays, ids: np.ndarray) -> str:
    names = [f"axis{i}" for i in range(ids.ndim)]
    arrays.sizes.update(zip(names, ids.shape, strict=True))
    return " ".join(names)


def _check_update(name: str, table: np.ndarray, sparse: SparseRows) -> tuple[np.ndarray, Arrays]:
    if not isinstance(sparse, SparseRows):
        raise TypeError(f"{name}: sparse must be SparseRows (from embedding_backward); got {type(sparse).__name__}")
    arrays = Arrays(name, "embedding", rows=sparse.num_rows, dim=sparse.values.shape[1])
    return arrays.check_output("table", table, "rows dim"), arrays
