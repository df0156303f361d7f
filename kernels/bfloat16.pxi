# Rounding to pairs of bfloat16 (bfloat16.h) for native modules: include "vec.pxi" first. The packed GEMM runs over such
# pairs as it does over floats. Layouts: kernels/bfloat16.py.

from libc.string cimport memset

cdef extern from "bfloat16.h" nogil:
    vf bf16_all_neighbours(vf a, vf b)
    vf bf16_all_couples(vf first, vf second)

cdef extern from "pairs.h" nogil:
    enum: PANEL_COLUMNS
    void pairs_turned(const float *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float *out, ptrdiff_t out_row, bint stream)

cdef enum:
    PAIR_ROWS = 16  # rows a task of rounding: whole vectors, and an even number, so that pairs over rows have one writer


cdef struct PairsTask:
    const float *x  # [rows, columns]
    ptrdiff_t row  # floats from one row of x to the next
    ptrdiff_t rows, columns
    # uint32, each may be NULL
    float *along  # [rows, halved(columns)]
    float *across  # [halved(rows), columns]
    float *over_rows  # panels [ceil(columns / 48), halved(rows), 48]
    float *over_columns  # panels [ceil(rows / 48), halved(columns), 48]
    bint stream  # past the caches: nothing reads the panels soon


cdef inline ptrdiff_t halved(ptrdiff_t count) noexcept nogil:
    return (count + 1) // 2


cdef inline ptrdiff_t whole_lines(ptrdiff_t words) noexcept nogil:
    """So many that what follows begins on a cache line, as panels have to: tiles read them a line at a time."""
    return (words + 15) // 16 * 16


cdef inline ptrdiff_t panel_words(ptrdiff_t depth, ptrdiff_t columns) noexcept nogil:
    """Of all panels of B [depth, columns]; depth counts numbers."""
    return (columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS * halved(depth) * PANEL_COLUMNS


cdef inline PairsTask pairs_task(const float *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns) noexcept nogil:
    """x: float32 [rows, columns], its rows `row` floats apart; the caller says which layouts of pairs it wants."""
    cdef PairsTask p
    memset(&p, 0, sizeof(PairsTask))
    p.x, p.row, p.rows, p.columns = x, row, rows, columns
    return p


cdef int make_pairs(PairsTask *p) except -1 nogil:
    return pool_run(pairs_block, p, (p.rows + PAIR_ROWS - 1) // PAIR_ROWS)


cdef int make_pairs_along(const float *x, ptrdiff_t rows, ptrdiff_t columns, float *along) except -1 nogil:
    """The rows of A: x [rows, columns] in pairs."""
    cdef PairsTask p = pairs_task(x, columns, rows, columns)
    p.along = along
    return make_pairs(&p)


cdef void pairs_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const PairsTask *p = <const PairsTask *>argument
    cdef ptrdiff_t row = task * PAIR_ROWS, stop = min(p.rows, row + PAIR_ROWS), i
    if p.along != NULL:
        for i in range(row, stop):
            row_along(p.x + i * p.row, p.columns, p.along + i * halved(p.columns))
    if p.across != NULL:
        for i from row <= i < stop by 2:
            rows_across(row_or_end(p, i), row_or_end(p, i + 1), p.columns, p.across + i // 2 * p.columns, False)
    pairs_in_panels(p, row, stop, 0, p.columns)


cdef inline const float *row_or_end(const PairsTask *p, ptrdiff_t row) noexcept nogil:
    return p.x + row * p.row if row < p.rows else NULL


cdef void pairs_in_panels(const PairsTask *p, ptrdiff_t row, ptrdiff_t stop, ptrdiff_t column, ptrdiff_t end) noexcept nogil:
    """The panels' words of rows row..stop-1 (from a multiple of VF_WIDTH on) and columns column..end-1 (from one of
    PANEL_COLUMNS on), in the order in which they lie."""
    cdef ptrdiff_t i, c
    if p.over_rows != NULL:
        for i from row <= i < stop by 2:
            for c from column <= c < end by PANEL_COLUMNS:
                rows_across(
                    p.x + i * p.row + c, p.x + (i + 1) * p.row + c if i + 1 < p.rows else NULL, min(PANEL_COLUMNS, end - c),
                    p.over_rows + (c // PANEL_COLUMNS * halved(p.rows) + i // 2) * PANEL_COLUMNS, p.stream,
                )
    if p.over_columns != NULL:
        for i from row <= i < stop by VF_WIDTH:
            pairs_turned(
                p.x + i * p.row + column, p.row, min(VF_WIDTH, stop - i), end - column,
                p.over_columns + (i // PANEL_COLUMNS * halved(p.columns) + column // 2) * PANEL_COLUMNS + i % PANEL_COLUMNS,
                PANEL_COLUMNS, p.stream,
            )


cdef inline void row_along(const float *x, ptrdiff_t columns, float *out) noexcept nogil:
    cdef ptrdiff_t i = 0, left
    cdef vf pairs
    while i < columns:
        left = columns - i
        if left >= 2 * VF_WIDTH:
            vf_store(out + i // 2, bf16_all_neighbours(vf_load(x + i), vf_load(x + i + VF_WIDTH)))
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
