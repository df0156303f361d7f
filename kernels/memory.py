"""Memory for arrays that kernels run through: it begins on a cache line, as vectors and tiles are whole lines then, and
is large enough at once for the system to back it with huge pages (NumPy asks for them from 4 MB on), as the processor
reads ahead only within a page. Knows nothing of what the arrays hold.
"""

import math

import numpy as np

CACHE_LINE = 64  # bytes
PIECE_BYTES = 1 << 25


def aligned_empty(shape, dtype):
    """An uninitialized array that begins on a cache line."""
    return _from_line(np.empty(_bytes(shape, dtype) + CACHE_LINE, np.uint8), shape, dtype)


def aligned_zeros(shape, dtype):
    """An array of zeros that begins on a cache line; the system clears its pages when they are first touched."""
    return _from_line(np.zeros(_bytes(shape, dtype) + CACHE_LINE, np.uint8), shape, dtype)


class Arena:
    """Arrays of one owner, one after another in pieces of PIECE_BYTES; a piece lives as long as any array in it."""

    def __init__(self):
        self._left = np.empty(0, np.uint8)

    def empty(self, shape, dtype):
        """An uninitialized array that begins on a cache line."""
        size = _bytes(shape, dtype)
        if size > PIECE_BYTES // 2:
            return aligned_empty(shape, dtype)
        if len(self._left) < size:
            self._left = aligned_empty(PIECE_BYTES, np.uint8)
        taken, self._left = self._left[:size], self._left[-(-size // CACHE_LINE) * CACHE_LINE :]
        return taken.view(dtype).reshape(shape)


def _bytes(shape, dtype):
    return math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize


def _from_line(memory, shape, dtype):
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + len(memory) - CACHE_LINE].view(dtype).reshape(shape)
