# Products of pairs by AMX tiles, over B in panels. Included by gemm.pxi, whose tasks and epilogues they share.
#
# Tiles are fast enough that memory decides: in what order blocks are met, and that lines are asked for a few at a time.

cdef extern from "amx.h" nogil:
    ctypedef struct LinesAsk:
        pass
    ctypedef struct TilesAsk:
        LinesAsk read, written
    void spread_lines(LinesAsk *ask, const float *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t times)
    enum: AMX_WORDS
    enum: AMX_BAND_ROWS
    void tiles_begin()
    void tiles_end()
    void tiles_of_panel(ptrdiff_t rows, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t depth, float *out,
                        ptrdiff_t out_row, bint add, const TilesAsk *asks)

cdef enum:
    BAND_ROWS = AMX_BAND_ROWS
    PANEL_ROWS = 256  # rows of A that meet a panel of B: with both, and with out, in L2 (512 rows of 1536 words: 22 % slower)
    SWEPT_ROWS = 96  # rows of A that are turned and swept along out at once
    SWEPT_WORDS = 1 << 18  # of B, which each band of them meets again: half of an L2


cdef int gemm_by_tiles(GemmTask *g) except -1 nogil:
    """out [m, n] as gemm has it, of pairs."""
    cdef ptrdiff_t panels = (g.n + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef ptrdiff_t row_blocks
    g.row_block = even_block(g.m, SWEPT_ROWS if g.pack_a else PANEL_ROWS, BAND_ROWS)
    row_blocks = (g.m + g.row_block - 1) // g.row_block
    g.k_block = even_block(g.k, K_BLOCK, LINE)
    if g.pack_a:
        g.column_panels = max(1, SWEPT_WORDS // (g.k_block * TILE_COLUMNS))
    else:
        g.column_panels = max(2, min(8, panels * row_blocks // (TASKS_A_THREAD * g.threads)))
    g.column_tasks = (panels + g.column_panels - 1) // g.column_panels
    g.column_panels = (panels + g.column_tasks - 1) // g.column_tasks
    g.tasks = row_blocks * g.column_tasks
    return pool_run(swept_block if g.pack_a else panel_block, g, g.tasks)


cdef void panel_block(void *argument, ptrdiff_t task) noexcept nogil:
    """A block of out, a panel of B after another: it stays near while all rows of A meet it, and the next is asked for."""
    cdef GemmTask *g = <GemmTask *>argument
    cdef ptrdiff_t row_start = task // g.column_tasks * g.row_block, row_end = min(g.m, row_start + g.row_block)
    cdef ptrdiff_t bands = (row_end - row_start + BAND_ROWS - 1) // BAND_ROWS
    cdef ptrdiff_t first = task % g.column_tasks * g.column_panels
    cdef ptrdiff_t last = min((g.n + TILE_COLUMNS - 1) // TILE_COLUMNS, first + g.column_panels)
    cdef ptrdiff_t k_start, depth, panel, row, at
    cdef const float *following = NULL
    cdef const float *b
    cdef float *packed = <float *>pool_scratch(sizeof(float) * g.k_block * TILE_COLUMNS) if g.packed_b == NULL else NULL
    cdef TilesAsk asks
    memset(&asks, 0, sizeof(TilesAsk))
    tiles_begin()
    for k_start from 0 <= k_start < g.k by g.k_block:
        depth = min(g.k_block, g.k - k_start)
        for panel in range(first, last):
            if packed != NULL:
                pack_panel(
                    place_in_b(g, k_start, panel * TILE_COLUMNS), g.b_k, g.b_column, depth, min(TILE_COLUMNS, g.n - panel * TILE_COLUMNS),
                    packed,
                )
                b = packed
            else:
                b = g.packed_b + panel * g.packed_panel + k_start * TILE_COLUMNS
                if panel + 1 < last:
                    following = b + g.packed_panel
                elif k_start + depth < g.k:
                    following = g.packed_b + first * g.packed_panel + (k_start + depth) * TILE_COLUMNS
                else:  # the task that this thread is likely to get
                    following = g.packed_b + (task + g.threads) % g.column_tasks * g.column_panels * g.packed_panel
            for row from row_start <= row < row_end by BAND_ROWS:
                if following != NULL:
                    at = (row - row_start) // BAND_ROWS * depth * TILE_COLUMNS // bands
                    spread_lines(&asks.read, following + at, 0, 1, depth * TILE_COLUMNS // bands, tile_steps(depth))
                ask_for_out(g, &asks, row, row_end, panel * TILE_COLUMNS, depth)
                multiply_band(
                    g, g.a + row * g.a_row + k_start, g.a_row, b, row, min(BAND_ROWS, row_end - row), panel, k_start, depth, &asks
                )
    tiles_end()


cdef void swept_block(void *argument, ptrdiff_t task) noexcept nogil:
    """A block of out, a band of rows after another: where k is short, out's lines are what memory has to move, and it does
    that twice as fast along rows as down columns (0.8 ms of 1.6 for 384 x 3072 over 128 words)."""
    cdef GemmTask *g = <GemmTask *>argument
    cdef ptrdiff_t row_blocks = g.tasks // g.column_tasks  # tasks of the same panels follow one another
    cdef ptrdiff_t row_start = task % row_blocks * g.row_block, row_end = min(g.m, row_start + g.row_block)
    cdef ptrdiff_t first = task // row_blocks * g.column_panels
    cdef ptrdiff_t last = min((g.n + TILE_COLUMNS - 1) // TILE_COLUMNS, first + g.column_panels)
    cdef ptrdiff_t k_start, depth, panel, row
    cdef float *turned = <float *>pool_scratch(sizeof(float) * g.k_block * g.row_block)
    cdef TilesAsk asks
    memset(&asks, 0, sizeof(TilesAsk))
    tiles_begin()
    for k_start from 0 <= k_start < g.k by g.k_block:
        depth = min(g.k_block, g.k - k_start)
        pack_transposed(g.a + row_start + k_start * g.a_k, g.a_k, depth, row_end - row_start, turned, depth)
        for row from row_start <= row < row_end by BAND_ROWS:
            for panel in range(first, last):
                if panel + 1 < last:
                    ask_for_out(g, &asks, row, row_end, (panel + 1) * TILE_COLUMNS, depth)
                else:
                    ask_for_out(g, &asks, row + BAND_ROWS, row_end, first * TILE_COLUMNS, depth)
                multiply_band(
                    g, turned + (row - row_start) * depth, depth, g.packed_b + panel * g.packed_panel + k_start * TILE_COLUMNS, row,
                    min(BAND_ROWS, row_end - row), panel, k_start, depth, &asks,
                )
    tiles_end()


cdef inline ptrdiff_t tile_steps(ptrdiff_t depth) noexcept nogil:
    """After how many products of tiles memory is asked for something, over so many words."""
    return max(1, depth // AMX_WORDS)


cdef inline void ask_for_out(const GemmTask *g, TilesAsk *asks, ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t column,
                             ptrdiff_t depth) noexcept nogil:
    """Ask for a tile's place in out while `depth` words are multiplied."""
    cdef ptrdiff_t columns = min(TILE_COLUMNS, g.n - column), halves = 2 if g.stores_pairs else 1
    spread_lines(
        &asks.written, g.out + row * g.out_row + column // halves, g.out_row, max(0, min(BAND_ROWS, row_end - row)), columns // halves,
        tile_steps(depth),
    )


cdef void multiply_band(
    GemmTask *g, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t k_start, ptrdiff_t depth,
    const TilesAsk *asks,
) noexcept nogil:
    """A band of rows times one panel over one block of k, stored with the epilogue if that block is the last."""
    cdef float sums[BAND_ROWS * TILE_COLUMNS]
    cdef ptrdiff_t column = panel * TILE_COLUMNS, columns = min(TILE_COLUMNS, g.n - column), out_row = g.out_row
    cdef bint load = g.accumulate or k_start > 0, last = k_start + depth == g.k
    cdef bint in_place = columns == TILE_COLUMNS and (g.plain and g.bias == NULL or not last)
    cdef float *out = g.out + row * g.out_row + column
    if not in_place:
        out, out_row = sums, TILE_COLUMNS
    tiles_of_panel(rows, a, a_row, b, depth, out, out_row, load and in_place, asks)
    if not in_place:
        store_tile(g, sums, TILE_COLUMNS, row, rows, column, columns, load, last)
