"""Positions: tables of sinusoids and rotations, adding rows by position, rotating queries and keys.

A learned table's gradient is embedding_backward's. Knows nothing of where in a model positions enter.
"""

from collections.abc import Sequence

import numpy as np

from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_integer, check_number, from_list, require_apart, require_same_or_apart


def sinusoidal_table(context: int, dim: int) -> np.ndarray:
    """float32 [context, dim]: sines at even, cosines at odd columns, wavelengths from 2 pi to 10000 * 2 pi.

    Source: Vaswani et al. 2017 (arXiv 1706.03762). Raises ValueError for an odd dim.
    """
    dim = _check_even("sinusoidal_table", "dim", dim)
    context = check_integer("sinusoidal_table", "context", context, at_least=0)
    angles = np.arange(context)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)
    table = np.empty((context, dim), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


def rotary_tables(
    context: int,
    head_dim: int,
    base: float = 10000.0,
    *,
    factors: Sequence[float] | None = None,
    magnitude: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 [context, head_dim / 2]: of position * base^(-2 i / head_dim).

    factors: [head_dim / 2], each frequency is divided by its own, and magnitude multiplies cos and sin: what methods that
    stretch a model's context come to. Source: Su et al. 2021 (arXiv 2104.09864). Raises ValueError for an odd head_dim,
    for another number of factors and for factors not above 0.
    """
    head_dim = _check_even("rotary_tables", "head_dim", head_dim)
    context = check_integer("rotary_tables", "context", context, at_least=0)
    check_number("rotary_tables", "base", base, above=0)
    check_number("rotary_tables", "magnitude", magnitude)
    frequencies = float(base) ** (-np.arange(0, head_dim, 2) / head_dim)
    if factors is not None:
        frequencies /= _check_factors(factors, head_dim // 2)
    angles = np.arange(context)[:, None] * frequencies
    return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)


def rotate(
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray | None = None,
    *,
    inverse: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """x: float32 [batch, heads, time, head_dim] with each pair (i, i + head_dim / 2) turned by its position's angle.

    positions: integer [batch, time] or [time] (0..time-1 if None) within cos, sin: float32 [context, head_dim / 2].
    out may be x, but no part of it. inverse turns back, which is also the gradient. Raises IndexError for a position
    outside the tables. Source: Su et al. 2021 (arXiv 2104.09864), with Llama's pairs.
    """
    arrays = Arrays("rotate", "positions")
    x = arrays.check("x", x, "batch heads time head_dim", contiguous=False)
    _check_even("rotate", "head_dim", x.shape[3])
    arrays.sizes["half"] = x.shape[3] // 2
    cos = arrays.check("cos", cos, "context half")
    sin = arrays.check("sin", sin, "context half")
    if positions is None:
        positions = np.arange(x.shape[2])
    positions = from_list("rotate", "positions", positions)
    if isinstance(positions, np.ndarray) and positions.ndim == 1:
        positions = np.broadcast_to(positions, (x.shape[0], len(positions)))
    positions = arrays.check_ids("positions", positions, "batch time", limit=len(cos))
    if out is None:
        out = np.empty(x.shape, x.dtype)
    out = arrays.check_output("out", out, "batch heads time head_dim", contiguous=False)
    require_same_or_apart("rotate", "out", out, x=x)
    require_apart("rotate", "out", out, cos=cos, sin=sin, positions=positions)
    if out.size:
        kernels("positions").rotate(x, cos, sin, positions, inverse, out)
    return out


def add_positions(x: np.ndarray, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x: float32 [tokens, dim] += table: float32 [context, dim] at positions: integer [tokens], in place; returns x.

    Raises IndexError with the value and place of a position outside the table.
    """
    arrays = Arrays("add_positions", "positions")
    x = arrays.check_output("x", x, "tokens dim")
    table = arrays.check("table", table, "context dim")
    positions = arrays.check_ids("positions", positions, "tokens", limit=len(table))
    require_apart("add_positions", "x", x, table=table, positions=positions)
    if x.size:
        kernels("positions").add_positions(x, table, positions)
    return x


def _check_even(op: str, name: str, value: int) -> int:
    value = check_integer(op, name, value, at_least=0)
    if value % 2:
        raise ValueError(f"{op}: {name} must be even; got {value}")
    return value


def _check_factors(factors: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    """factors as float64 [count], all above 0; TypeError or ValueError otherwise."""
    if isinstance(factors, np.ndarray):
        factors = factors.tolist()
    if not isinstance(factors, Sequence):
        raise TypeError(f"rotary_tables: factors must be a sequence of numbers; got {type(factors).__name__}")
    if len(factors) != count:
        raise ValueError(f"rotary_tables: factors must be head_dim / 2 = {count} numbers; got {len(factors)}")
    for index, factor in enumerate(factors):
        check_number("rotary_tables", f"factors[{index}]", factor, above=0)
    return np.asarray(factors, np.float64)
