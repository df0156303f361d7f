"""bfloat16 in NumPy: rounding, and the layouts of pairs that the matrix products read.

A pair is one uint32: two numbers that a product adds up together, the first in the low half; what has no partner is
paired with zero. A product's right factor B [k, n] lies as panels of 48 columns, each from its first k to its last:
uint32 [ceil(n / 48), ceil(k / 2), 48], zeros where n ends within one. Knows nothing of which product reads them.
"""

import numpy as np

PANEL_COLUMNS = 48  # a multiple of the columns that one tile of sums has, at every level (kernels/bfloat16.h)


def round_bits(x):
    """x: float32 [...] rounded to the nearest bfloat16, ties to even, as uint16 bits; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def round_bfloat16(x):
    """x: float32 [...] with each number replaced by the nearest that bfloat16 holds."""
    return (round_bits(x).astype(np.uint32) << 16).view(np.float32)


def panels_over_rows(x):
    """uint32 [ceil(columns / 48), ceil(rows / 2), 48] of x: float32 [rows, columns], for products that add up over rows."""
    rows, columns = x.shape
    bits = np.pad(round_bits(x), ((0, rows % 2), (0, -columns % PANEL_COLUMNS))).astype(np.uint32)
    pairs = bits[0::2] | bits[1::2] << 16
    return np.ascontiguousarray(pairs.reshape(len(pairs), -1, PANEL_COLUMNS).swapaxes(0, 1))


def panels_over_columns(x):
    """uint32 [ceil(rows / 48), ceil(columns / 2), 48] of x: float32 [rows, columns], for those that add up over columns."""
    return panels_over_rows(x.T)


def from_panels(panels, depth, columns):
    """float32 [depth, columns]: the B that panels: uint32 [ceil(columns / 48), ceil(depth / 2), 48] hold."""
    pairs = panels.swapaxes(0, 1).reshape(panels.shape[1], -1)
    both = np.stack([pairs << 16, pairs & 0xFFFF0000], axis=1).astype(np.uint32).view(np.float32)
    return np.ascontiguousarray(both.reshape(-1, pairs.shape[1])[:depth, :columns])
