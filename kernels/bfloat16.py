"""bfloat16 in NumPy: rounding, and the two layouts of pairs that the matrix products read.

A pair is one uint32: two numbers that a product adds up together, the first in the low half. "along": neighbours in a
row of x [rows, columns] -> [rows, ceil(columns / 2)]; "across": neighbours in a column -> [ceil(rows / 2), columns]. What
has no partner is paired with zero. Knows nothing of which product reads them.
"""

import numpy as np


def round_bits(x):
    """x: float32 [...] rounded to the nearest bfloat16, ties to even, as uint16 bits; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def round_bfloat16(x):
    """x: float32 [...] with each number replaced by the nearest that bfloat16 holds."""
    return (round_bits(x).astype(np.uint32) << 16).view(np.float32)


def pairs_along(x):
    """uint32 [rows, ceil(columns / 2)] of x: float32 [rows, columns]."""
    bits = _even(round_bits(x), axis=1).astype(np.uint32)
    return bits[:, 0::2] | bits[:, 1::2] << 16


def pairs_across(x):
    """uint32 [ceil(rows / 2), columns] of x: float32 [rows, columns]."""
    bits = _even(round_bits(x), axis=0).astype(np.uint32)
    return bits[0::2] | bits[1::2] << 16


def from_along(pairs, columns):
    """float32 [rows, columns] that pairs: uint32 [rows, ceil(columns / 2)] hold."""
    return _halves(pairs, axis=2).reshape(len(pairs), 2 * pairs.shape[1])[:, :columns]


def from_across(pairs, rows):
    """float32 [rows, columns] that pairs: uint32 [ceil(rows / 2), columns] hold."""
    return _halves(pairs, axis=1).reshape(2 * len(pairs), pairs.shape[1])[:rows]


def _even(bits, axis):
    missing = bits.shape[axis] % 2
    return np.pad(bits, [(0, missing if axis == i else 0) for i in range(2)]) if missing else bits


def _halves(pairs, axis):
    return np.stack([pairs << 16, pairs & 0xFFFF0000], axis=axis).astype(np.uint32).view(np.float32)
