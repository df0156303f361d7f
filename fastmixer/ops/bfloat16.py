"""A weight's copies in bfloat16, in the two layouts of panels that products read; the float32 weight stays the truth.

Knows nothing of optimizers, which write new copies as they write new weights.
"""

import math
from typing import NamedTuple

import numpy as np

from fastmixer.kernels.bfloat16 import PANEL_COLUMNS
from fastmixer.kernels.levels import MULTIPLY_BFLOAT16
from fastmixer.kernels.memory import aligned_zeros
from fastmixer.kernels.select import implementation, kernels
from fastmixer.ops.checks import Arrays, require_apart


class RoundedWeight(NamedTuple):
    """A weight: float32 [rows, columns] rounded to bfloat16 (to nearest, ties to even), in pairs, one uint32 each, that lie
    in panels as products read them (fastmixer/kernels/bfloat16.py).

    over_rows: uint32 [ceil(columns / 48), ceil(rows / 2), 48], for products that add up over rows; over_columns: uint32
    [ceil(rows / 48), ceil(columns / 2), 48], for those that add up over columns.
    """

    over_rows: np.ndarray
    over_columns: np.ndarray

    @classmethod
    def empty(cls, rows: int, columns: int) -> "RoundedWeight":
        """Arrays of the right shapes, all zeros."""
        return cls(*(aligned_zeros(shape, np.uint32) for shape in _shapes(rows, columns)))


def _shapes(rows: int, columns: int) -> tuple[tuple[int, int, int], ...]:
    """Of over_rows and over_columns."""
    return tuple((-(-n // PANEL_COLUMNS), -(-k // 2), PANEL_COLUMNS) for k, n in ((rows, columns), (columns, rows)))


def rounded_bytes(rows: int, columns: int) -> int:
    """What a RoundedWeight holds."""
    return sum(4 * math.prod(shape) for shape in _shapes(rows, columns))


def round_weight(weight: np.ndarray, out: RoundedWeight | None = None) -> RoundedWeight:
    """The RoundedWeight of weight: float32 [rows, columns], in out's arrays if given. Raises TypeError or ValueError."""
    weight = Arrays("round_weight", "matmul").check("weight", weight, "rows columns")
    rounded = RoundedWeight.empty(*weight.shape) if out is None else check_rounded("round_weight", "out", out, weight)
    for part, array in zip(RoundedWeight._fields, rounded, strict=True):
        require_apart("round_weight", f"out.{part}", array, weight=weight)
    if weight.size:
        kernels("matmul").to_panels(weight, *rounded)
    return rounded


def check_rounded(op: str, name: str, rounded: RoundedWeight, weight: np.ndarray) -> RoundedWeight:
    """rounded if its shapes fit weight: float32 [rows, columns]; TypeError or ValueError otherwise."""
    if not isinstance(rounded, RoundedWeight):
        raise TypeError(f"{op}: {name} must be a RoundedWeight; got {type(rounded).__name__}")
    for part, array, shape in zip(RoundedWeight._fields, rounded, _shapes(*weight.shape), strict=True):
        if array.dtype != np.uint32 or array.shape != shape or not array.flags.c_contiguous:
            came = f"{array.dtype.name} {array.shape}"
            raise ValueError(f"{op}: {name}.{part} must be C-contiguous uint32 {shape}; got {came}")
    return rounded


def is_fast() -> bool:
    """Whether the kernels that run here multiply bfloat16 with instructions of its own."""
    return implementation("matmul").endswith(MULTIPLY_BFLOAT16)
