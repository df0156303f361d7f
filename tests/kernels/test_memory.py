"""Arrays for kernels: they begin on a cache line, do not overlap, and are zero where that is said."""

import numpy as np
import pytest

from fastmixer.kernels.memory import CACHE_LINE, PIECE_BYTES, Arena, aligned_empty, aligned_zeros

SHAPES = [(), 5, (3, 7), (0, 4), (1 << 20,), (100, 100, 10)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_arrays_begin_on_a_cache_line(shape, dtype):
    for new in (aligned_empty, aligned_zeros, Arena().empty):
        array = new(shape, dtype)
        assert array.shape == np.empty(shape).shape and array.dtype == dtype
        assert array.size == 0 or array.ctypes.data % CACHE_LINE == 0
        assert array.flags.c_contiguous and array.flags.writeable
    assert not aligned_zeros(shape, dtype).any()


def test_an_arena_gives_no_place_twice():
    arena = Arena()
    arrays = [arena.empty((rows, 1000), np.float32) for rows in (1, 2000, 3, 5000, 1, 3000, 2 * PIECE_BYTES // 4000)]
    for number, array in enumerate(arrays):
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all() and array.ctypes.data % CACHE_LINE == 0
    assert np.shares_memory(arrays[0].base, arrays[1].base), "small ones share a piece"
