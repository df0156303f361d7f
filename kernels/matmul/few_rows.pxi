# Products of at most FEW_ROWS rows (decoding): B is read once, where it lies, along memory; it sets the time, not the
# arithmetic. Included by gemm.pxi.


cdef enum:
    K_AHEAD = 8  # rows of B that are asked for ahead of their use


cdef void few_rows_block(void *argument, ptrdiff_t task) noexcept nogil:
    """One task of a product of few rows: a range of columns."""
    cdef GemmTask *g = <GemmTask *>argument
    cdef ptrdiff_t first = task * g.column_panels * TILE_COLUMNS
    cdef ptrdiff_t stop = min(g.n, first + g.column_panels * TILE_COLUMNS)
    cdef const float *starts[TILE_ROWS]
    cdef ptrdiff_t i
    for i in range(TILE_ROWS):
        starts[i] = g.a + min(i, g.m - 1) * g.a_row
    if g.b_column == 1:
        few_rows_along_columns(g, starts, first, stop)
    else:
        few_rows_along_k(g, starts, first, stop)


cdef void few_rows_along_columns(GemmTask *g, const float **starts, ptrdiff_t first, ptrdiff_t stop) noexcept nogil:
    """B's rows lie along its columns: as many columns at a time as sums fit registers."""
    cdef float sums[FEW_ROWS * TILE_SUMS * VF_WIDTH]
    cdef float *panel = <float *>pool_scratch(sizeof(float) * K_BLOCK * TILE_COLUMNS)
    cdef const float *b
    cdef const float *block_starts[TILE_ROWS]
    cdef ptrdiff_t wide = TILE_SUMS // (1 if g.m == 1 else 2 if g.m == 2 else 4) * VF_WIDTH
    cdef ptrdiff_t k_start = 0, depth, column, columns, i
    while k_start < g.k:
        depth = min(g.k_block, g.k - k_start)
        for i in range(TILE_ROWS):
            block_starts[i] = starts[i] + k_start
        column = first
        while column < stop:
            b = g.b + k_start * g.b_k + column
            columns = wide if column + wide <= stop else min(TILE_COLUMNS, stop - column)
            if columns >= TILE_COLUMNS:
                multiply_few_rows(g.m, columns == wide, block_starts, 1, b, g.b_k, depth, sums)
            else:
                pack_panel(b, g.b_k, 1, depth, columns, panel)
                multiply_few_rows(g.m, False, block_starts, 1, panel, TILE_COLUMNS, depth, sums)
            store_tile(
                g, sums, max(columns, TILE_COLUMNS), 0, g.m, column, columns, g.accumulate or k_start > 0, k_start + depth == g.k
            )
            column += columns
        k_start += g.k_block


cdef void multiply_few_rows(
    ptrdiff_t rows, bint wide, const float **starts, ptrdiff_t a_step, const float *b, ptrdiff_t b_step,
    ptrdiff_t depth, float *sums,
) noexcept nogil:
    """sums [rows, columns]: a tile of 1, 2 or 4 rows, of TILE_COLUMNS or (wide) as many columns as registers hold."""
    if wide and rows == 1:
        tile_multiply(1, TILE_SUMS, K_AHEAD, 0, starts, a_step, b, b_step, depth, NULL, sums, TILE_SUMS * VF_WIDTH, False, NULL)
    elif wide and rows == 2:
        tile_multiply(2, TILE_SUMS // 2, K_AHEAD, 0, starts, a_step, b, b_step, depth, NULL, sums, TILE_SUMS // 2 * VF_WIDTH, False, NULL)
    elif wide:
        tile_multiply(4, TILE_SUMS // 4, K_AHEAD, 0, starts, a_step, b, b_step, depth, NULL, sums, TILE_SUMS // 4 * VF_WIDTH, False, NULL)
    elif rows == 1:
        tile_multiply(1, TILE_VECTORS, 0, 0, starts, a_step, b, b_step, depth, NULL, sums, TILE_COLUMNS, False, NULL)
    elif rows == 2:
        tile_multiply(2, TILE_VECTORS, 0, 0, starts, a_step, b, b_step, depth, NULL, sums, TILE_COLUMNS, False, NULL)
    else:
        tile_multiply(4, TILE_VECTORS, 0, 0, starts, a_step, b, b_step, depth, NULL, sums, TILE_COLUMNS, False, NULL)


cdef void few_rows_along_k(GemmTask *g, const float **starts, ptrdiff_t first, ptrdiff_t stop) noexcept nogil:
    """B's columns lie along k: dot products."""
    cdef float sums[FEW_ROWS * TILE_COLUMNS]
    cdef const float *b
    cdef ptrdiff_t column = first, columns, j
    while column < stop:
        columns = min(TILE_COLUMNS, stop - column)
        for j in range(columns):
            b = g.b + (column + j) * g.b_column
            if g.m == 1:
                dot_multiply(1, False, starts, b, g.k, sums + j, TILE_COLUMNS)
            elif g.m == 2:
                dot_multiply(2, False, starts, b, g.k, sums + j, TILE_COLUMNS)
            else:
                dot_multiply(4, False, starts, b, g.k, sums + j, TILE_COLUMNS)
        store_tile(g, sums, TILE_COLUMNS, 0, g.m, column, columns, g.accumulate, True)
        column += TILE_COLUMNS
