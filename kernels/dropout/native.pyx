"""Dropout in Cython: blocks of elements are tasks; random words come 64 at a time from philox.h."""

include "vec.pxi"

from fastmixer.kernels.philox import keep_scale, keep_threshold

cdef extern from "philox.h" nogil:
    enum: PHILOX_BATCH_WORDS
    void philox_block(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random)
    void philox_batch(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random)

cdef enum:
    BLOCK = 1 << 14  # elements a task, a multiple of PHILOX_BATCH_WORDS


cdef struct Dropout:
    const float *x
    const float *residual  # NULL: none
    float *out
    ptrdiff_t count
    uint64_t seed
    uint32_t threshold
    float scale


cdef inline void dropout_batch(const Dropout *op, ptrdiff_t start, ptrdiff_t count) noexcept nogil:
    # 1. one random word an element; start is a multiple of PHILOX_BATCH_WORDS, so c0 never wraps inside a batch
    cdef uint32_t words[PHILOX_BATCH_WORDS]
    cdef uint64_t block = <uint64_t>start // 4
    philox_batch(op.seed, <uint32_t>block, <uint32_t>(block >> 32), 0, 0, words)
    cdef const float *x = op.x + start
    cdef const float *residual = op.residual + start
    cdef float *out = op.out + start
    cdef uint32_t threshold = op.threshold
    cdef float scale = op.scale, value
    cdef ptrdiff_t i
    # 2. keep and scale, or drop; 3. the residual
    if op.residual == NULL:
        for i in range(count):
            value = x[i] * scale
            out[i] = value if words[i] >= threshold else 0
    else:
        for i in range(count):
            value = x[i] * scale
            out[i] = (value if words[i] >= threshold else 0) + residual[i]


cdef void dropout_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Dropout *op = <const Dropout *>argument
    cdef ptrdiff_t start = task * BLOCK
    cdef ptrdiff_t stop = min(start + BLOCK, op.count)
    while start + PHILOX_BATCH_WORDS <= stop:
        dropout_batch(op, start, PHILOX_BATCH_WORDS)
        start += PHILOX_BATCH_WORDS
    if start < stop:
        dropout_batch(op, start, stop - start)


def dropout_forward(const float[::1] x, double rate, uint64_t seed, const float[::1] residual, float[::1] out):
    """out = dropout(x) + residual; x, residual (or None), out: float32 [n]; out may be x or residual."""
    cdef Dropout op
    cdef ptrdiff_t count = x.shape[0]
    if count == 0:
        return
    op.x = &x[0]
    op.residual = &residual[0] if residual is not None else NULL
    op.out = &out[0]
    op.count = count
    op.seed = seed
    op.threshold = keep_threshold(rate)
    op.scale = keep_scale(rate)
    with nogil:
        pool_run(dropout_block, &op, (count + BLOCK - 1) // BLOCK)


def philox_words(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3):
    """One block's four words as ints: philox.h as Python sees it, for the known answers."""
    cdef uint32_t words[4]
    philox_block(seed, c0, c1, c2, c3, words)
    return words[0], words[1], words[2], words[3]
