# Rounding to pairs of bfloat16 (bfloat16.h) for native modules: include "vec.pxi" first. The packed GEMM runs over such
# pairs as it does over floats. Layouts along and across: kernels/bfloat16.py.

cdef extern from "bfloat16.h" nogil:
    vf bf16_all_neighbours(vf a, vf b)
    vf bf16_all_couples(vf first, vf second)

cdef enum:
    PAIR_ROWS = 8  # rows a task of rounding: an even number, so that pairs across rows have one writer


cdef struct PairsTask:
    const float *x  # [rows, columns]
    ptrdiff_t row  # floats from one row of x to the next
    ptrdiff_t rows, columns
    float *along  # uint32 [rows, ceil(columns / 2)] or NULL
    float *across  # uint32 [ceil(rows / 2), columns] or NULL
    bint stream  # past the caches: nothing reads the pairs soon


cdef inline ptrdiff_t halved(ptrdiff_t count) noexcept nogil:
    return (count + 1) // 2


cdef int make_pairs(const float *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float *along, float *across) except -1 nogil:
    """x: float32 [rows, columns], rows `row` floats apart, in one layout of pairs or both."""
    cdef PairsTask p
    p.x, p.row, p.rows, p.columns, p.along, p.across, p.stream = x, row, rows, columns, along, across, False
    return pool_run(pairs_block, &p, (rows + PAIR_ROWS - 1) // PAIR_ROWS)


cdef void pairs_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef PairsTask *p = <PairsTask *>argument
    pairs_of_rows(p, task * PAIR_ROWS, min(p.rows, (task + 1) * PAIR_ROWS))


cdef inline void pairs_of_rows(const PairsTask *p, ptrdiff_t row, ptrdiff_t stop) noexcept nogil:
    """Rows row..stop-1, from an even one on."""
    cdef ptrdiff_t i
    if p.along != NULL:
        for i in range(row, stop):
            row_along(p.x + i * p.row, p.columns, p.along + i * halved(p.columns), p.stream)
    if p.across != NULL:
        while row < stop:
            rows_across(
                p.x + row * p.row, p.x + (row + 1) * p.row if row + 1 < p.rows else NULL, p.columns,
                p.across + row // 2 * p.columns, p.stream,
            )
            row += 2


cdef inline void row_along(const float *x, ptrdiff_t columns, float *out, bint stream) noexcept nogil:
    cdef ptrdiff_t i = 0, left
    cdef vf pairs
    while i < columns:
        left = columns - i
        if left >= 2 * VF_WIDTH:
            pairs = bf16_all_neighbours(vf_load(x + i), vf_load(x + i + VF_WIDTH))
            if stream:
                vf_stream(out + i // 2, pairs)
            else:
                vf_store(out + i // 2, pairs)
        else:
            pairs = bf16_all_neighbours(
                load_part(x + i, left), load_part(x + i + VF_WIDTH, left - VF_WIDTH) if left > VF_WIDTH else vf_zero()
            )
            vf_store_first(out + i // 2, pairs, halved(left))
        i += 2 * VF_WIDTH


cdef inline void rows_across(const float *first, const float *second, ptrdiff_t columns, float *out, bint stream) noexcept nogil:
    """second may be NULL: zeros."""
    cdef ptrdiff_t i = 0, left
    cdef vf pairs
    while i < columns:
        left = columns - i
        pairs = bf16_all_couples(load_part(first + i, left), load_part(second + i, left) if second != NULL else vf_zero())
        if stream and left >= VF_WIDTH:
            vf_stream(out + i, pairs)
        else:
            store_part(out + i, pairs, left)
        i += VF_WIDTH
