"""Dropout in Numba: blocks of elements are tasks, and four elements share one Philox block."""

import numpy as np

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.philox import WORD_BITS, WORD_MASK, keep_scale, keep_threshold
from fastmixer.kernels.philox_jit import philox_block
from fastmixer.kernels.threads import parallel_for

BLOCK = 1 << 14  # elements a task, a multiple of four
ZERO = np.uint64(0)


@compiled
def _dropout_block(x, threshold, scale, seed, first, residual, out):
    # x, residual and out are this task's elements, first is their first Philox block: indices that start from 0 are
    # known not to be negative, and only then does LLVM make vectors of the loop
    zero = scale - scale
    whole = len(x) // 4
    for index in range(whole):
        # 1. one random word an element
        i, block = 4 * index, first + np.uint64(index)
        word0, word1, word2, word3 = philox_block(seed, block & WORD_MASK, block >> WORD_BITS, ZERO, ZERO)
        # 2. keep and scale, or drop
        value0 = x[i] * scale if word0 >= threshold else zero
        value1 = x[i + 1] * scale if word1 >= threshold else zero
        value2 = x[i + 2] * scale if word2 >= threshold else zero
        value3 = x[i + 3] * scale if word3 >= threshold else zero
        # 3. the residual
        if residual is None:
            out[i], out[i + 1], out[i + 2], out[i + 3] = value0, value1, value2, value3
        else:
            out[i] = value0 + residual[i]
            out[i + 1] = value1 + residual[i + 1]
            out[i + 2] = value2 + residual[i + 2]
            out[i + 3] = value3 + residual[i + 3]
    # the last one to three elements, in the same steps
    block = first + np.uint64(whole)
    words = philox_block(seed, block & WORD_MASK, block >> WORD_BITS, ZERO, ZERO)
    for i in range(4 * whole, len(x)):
        value = x[i] * scale if words[i - 4 * whole] >= threshold else zero
        out[i] = value if residual is None else value + residual[i]


def dropout_forward(x, rate, seed, residual, out):
    """out = dropout(x) + residual; x, residual (or None), out: float [n]; out may be x or residual."""
    threshold, scale = np.uint64(keep_threshold(rate)), x.dtype.type(keep_scale(rate))
    key = np.uint64(seed)

    def task(index):
        part = slice(index * BLOCK, (index + 1) * BLOCK)
        first = np.uint64(index * BLOCK // 4)
        residual_part = None if residual is None else residual[part]
        _dropout_block(x[part], threshold, scale, key, first, residual_part, out[part])

    parallel_for(task, (len(x) + BLOCK - 1) // BLOCK)
