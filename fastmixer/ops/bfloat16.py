"""A weight's copies in bfloat16, in the two layouts that products read; the float32 weight stays the truth.

Knows nothing of optimizers, which write new copies as they write new weights.
"""

from typing import NamedTuple

import numpy as np

from fastmixer.kernels.levels import MULTIPLY_BFLOAT16
from fastmixer.kernels.select import implementation, kernels
from fastmixer.ops.checks import Arrays


class RoundedWeight(NamedTuple):
    """A weight: float32 [rows, columns] rounded to bfloat16 (to nearest, ties to even), in pairs, one uint32 each.

    along: uint32 [rows, ceil(columns / 2)], neighbours in a row, for products that add up over columns; across: uint32
    [ceil(rows / 2), columns], neighbours in a column, for those that add up over rows. A last one is paired with zero.
    """

    along: np.ndarray
    across: np.ndarray

    @classmethod
    def empty(cls, rows: int, columns: int) -> "RoundedWeight":
        """Arrays of the right shapes, all zeros."""
        return cls(np.zeros((rows, -(-columns // 2)), np.uint32), np.zeros((-(-rows // 2), columns), np.uint32))


def round_weight(weight: np.ndarray, out: RoundedWeight | None = None) -> RoundedWeight:
    """The RoundedWeight of weight: float32 [rows, columns], in out's arrays if given. Raises TypeError or ValueError."""
    weight = Arrays("round_weight", "matmul").check("weight", weight, "rows columns")
    rounded = RoundedWeight.empty(*weight.shape) if out is None else check_rounded("round_weight", "out", out, weight)
    if weight.size:
        kernels("matmul").to_pairs(weight, rounded.along, rounded.across)
    return rounded


def check_rounded(op: str, name: str, rounded: RoundedWeight, weight: np.ndarray) -> RoundedWeight:
    """rounded if its shapes fit weight: float32 [rows, columns]; TypeError or ValueError otherwise."""
    if not isinstance(rounded, RoundedWeight):
        raise TypeError(f"{op}: {name} must be a RoundedWeight; got {type(rounded).__name__}")
    rows, columns = weight.shape
    expected = {"along": (rows, -(-columns // 2)), "across": (-(-rows // 2), columns)}
    for part, shape in expected.items():
        array = getattr(rounded, part)
        if array.dtype != np.uint32 or array.shape != shape or not array.flags.c_contiguous:
            came = f"{array.dtype.name} {array.shape}"
            raise ValueError(f"{op}: {name}.{part} must be C-contiguous uint32 {shape}; got {came}")
    return rounded


def is_fast() -> bool:
    """Whether the kernels that run here multiply bfloat16 with instructions of its own."""
    return implementation("matmul").endswith(MULTIPLY_BFLOAT16)
