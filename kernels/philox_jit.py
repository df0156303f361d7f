"""Philox4x32-10 in Numba: one block at a time, for loops that other jit modules compile. See philox.py."""

import numpy as np

from fastmixer.kernels.jit import inlined
from fastmixer.kernels.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WORD_BITS, WORD_MASK

# uint64 throughout: Numba turns uint64 with a plain int literal into a float.
WEYL_0 = np.uint64(0x9E3779B9)
WEYL_1 = np.uint64(0xBB67AE85)


@inlined
def philox_block(seed, c0, c1, c2, c3):
    """The four words of one block, uint64 below 2^32; seed and c0..c3 are uint64, c0..c3 below 2^32."""
    k0 = seed & WORD_MASK
    k1 = seed >> WORD_BITS
    for _ in range(ROUNDS):
        p0 = MULTIPLIER_0 * c0
        p1 = MULTIPLIER_1 * c2
        c0 = (p1 >> WORD_BITS) ^ c1 ^ k0
        c1 = p1 & WORD_MASK
        c2 = (p0 >> WORD_BITS) ^ c3 ^ k1
        c3 = p0 & WORD_MASK
        k0 = (k0 + WEYL_0) & WORD_MASK
        k1 = (k1 + WEYL_1) & WORD_MASK
    return c0, c1, c2, c3
