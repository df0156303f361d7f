# Products of float32 by AMX tiles, each number in three parts of bfloat16 (parts.h). Included by gemm.pxi, whose tasks and epilogues
# they share.
#
# A task splits its block of A once for each block of k, and each panel of B that meets it.

cdef extern from "parts.h" nogil:
    ctypedef struct PartsWork:
        pass
    enum: PARTS_TILE
    enum: PARTS_STEP
    enum: PARTS_FLOATS
    enum: PARTS_BAND
    bint parts_of_a(bint along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out)
    void parts_begin_panel(PartsWork *w, bint along, const float *x, const float *x_right, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width,
                           ptrdiff_t product_steps, float *parts)
    bint parts_end_panel(PartsWork *w)
    void parts_product(int band, int across, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile, ptrdiff_t steps,
                       float *out, ptrdiff_t out_row, bint add, const LinesAsk *out_ask, PartsWork *work)
    enum: PARTS_STEP_ASKS

cdef enum:
    PARTS_SIDE = PARTS_BAND * PARTS_TILE  # rows of a band, columns of a panel
    PARTS_ROWS = 256  # rows of A, and
    PARTS_DEPTH = 768  # numbers of each, that are split at once: 1.2 MB of parts, in L2 with two panels of B
    PARTS_LEAST_ROWS = 32  # fewer rows are multiplied sooner than B is split


cdef inline bint worth_parts(const GemmTask *g) noexcept nogil:
    return AMX and not g.pairs and (g.m >= PARTS_LEAST_ROWS or g.as_many) and g.n >= PARTS_TILE and g.k >= PARTS_STEP


cdef int gemm_by_parts(GemmTask *g) except -1 nogil:
    """out [m, n] as gemm has it. Blocks of k depend on the shape only, so threads change no sum; they decide how out is divided, as
    each task splits A's rows and B's columns anew."""
    cdef ptrdiff_t panels = (g.n + PARTS_SIDE - 1) // PARTS_SIDE, rows = PARTS_ROWS, row_blocks
    g.row_block = even_block(g.m, rows, PARTS_SIDE)
    while rows > 2 * PARTS_SIDE and g.n * g.m < g.threads * g.row_block * g.row_block:  # tasks would be narrower than high
        rows //= 2
        g.row_block = even_block(g.m, rows, PARTS_SIDE)
    row_blocks = (g.m + g.row_block - 1) // g.row_block
    g.column_tasks = 1
    while row_blocks * g.column_tasks % g.threads and g.column_tasks < panels:
        g.column_tasks += 1
    g.column_panels = (panels + g.column_tasks - 1) // g.column_tasks
    g.column_tasks = (panels + g.column_panels - 1) // g.column_panels
    g.k_block = even_block(g.k, PARTS_DEPTH, PARTS_STEP)
    g.tasks = row_blocks * g.column_tasks
    return pool_run(parts_block, g, g.tasks)


cdef struct PartsBlock:
    float *a  # parts of the rows of this task
    float *b  # of the panel that is multiplied
    float *sums  # [PARTS_SIDE, PARTS_SIDE]
    PartsWork next_panel
    ptrdiff_t row_start, row_end
    ptrdiff_t k_start, depth, steps
    bint as_whole  # parts' products are what those of numbers are; else b holds B's numbers themselves, [depth, PARTS_SIDE]


cdef void parts_block(void *argument, ptrdiff_t task) noexcept nogil:
    """A block of out: for each block of k A is split, then a panel of B after another meets every row."""
    cdef GemmTask *g = <GemmTask *>argument
    cdef ptrdiff_t first = task % g.column_tasks * g.column_panels * PARTS_SIDE
    cdef ptrdiff_t last = min(g.n, first + g.column_panels * PARTS_SIDE)
    cdef ptrdiff_t most_steps = g.k_block // PARTS_STEP, panel_floats = PARTS_BAND * most_steps * PARTS_FLOATS
    cdef ptrdiff_t k_start, row, column, bands, next_k, next_column
    cdef float *b_next
    cdef bint a_as_whole, b_as_whole
    cdef PartsBlock p
    p.row_start = task // g.column_tasks * g.row_block
    p.row_end = min(g.m, p.row_start + g.row_block)
    bands = (p.row_end - p.row_start + PARTS_SIDE - 1) // PARTS_SIDE
    p.sums = <float *>pool_scratch(
        sizeof(float) * (PARTS_SIDE * PARTS_SIDE + 2 * panel_floats + g.row_block // PARTS_TILE * most_steps * PARTS_FLOATS)
    )
    p.b = p.sums + PARTS_SIDE * PARTS_SIDE
    p.a = p.b + 2 * panel_floats
    # what is split after the product takes the place of what it read: so much less in L2
    b_next = p.b if g.packed_b == NULL and g.b_k == 1 and g.b_column != 1 else p.b + panel_floats
    tiles_begin()
    begin_parts(g, &p, 0, first, 0, p.b)
    b_as_whole = parts_end_panel(&p.next_panel)
    for k_start from 0 <= k_start < g.k by g.k_block:
        p.k_start, p.depth = k_start, min(g.k_block, g.k - k_start)
        p.steps = (p.depth + PARTS_STEP - 1) // PARTS_STEP
        a_as_whole = True
        for row from p.row_start <= row < p.row_end by PARTS_TILE:
            a_as_whole &= parts_of_a(
                g.a_k == 1, g.a + row * g.a_row + k_start * g.a_k, g.a_row if g.a_k == 1 else g.a_k, p.depth,
                min(PARTS_TILE, p.row_end - row), p.a + (row - p.row_start) // PARTS_TILE * p.steps * PARTS_FLOATS,
            )
        for column from first <= column < last by PARTS_SIDE:
            next_column = column + PARTS_SIDE if column + PARTS_SIDE < last else first
            next_k = k_start if next_column > column else k_start + p.depth
            if next_k < g.k:
                begin_parts(g, &p, next_k, next_column, bands * p.steps, b_next)
            p.as_whole = a_as_whole and b_as_whole
            parts_of_panel(g, &p, column)
            if next_k < g.k:
                b_as_whole = parts_end_panel(&p.next_panel)
            p.b, b_next = b_next, p.b
    tiles_end()


cdef inline void begin_parts(const GemmTask *g, PartsBlock *p, ptrdiff_t k_start, ptrdiff_t column, ptrdiff_t steps, float *parts) noexcept nogil:
    """Begin to split the panel of B that comes next, within so many steps of products."""
    cdef ptrdiff_t k_step, column_step
    cdef const float *left = tile_of_b(g, k_start, column, &k_step, &column_step)
    cdef const float *right = tile_of_b(g, k_start, column + PARTS_TILE, &k_step, &column_step)
    cdef bint along = k_step == 1 and column_step != 1
    parts_begin_panel(
        &p.next_panel, along, left, right, column_step if along else k_step, min(g.k_block, g.k - k_start), min(PARTS_SIDE, g.n - column),
        steps, parts,
    )


cdef void parts_of_panel(GemmTask *g, PartsBlock *p, ptrdiff_t column) noexcept nogil:
    """Every row times one panel over one block of k, stored with the epilogue if that block is the last."""
    cdef ptrdiff_t columns = min(PARTS_SIDE, g.n - column), tile_floats = p.steps * PARTS_FLOATS, row, rows
    cdef int across = 2 if columns > PARTS_TILE else 1
    cdef LinesAsk ask
    if not p.as_whole:
        panel_as_whole(g, p, column)
    for row from p.row_start <= row < p.row_end by PARTS_SIDE:
        rows = min(PARTS_SIDE, p.row_end - row)
        if p.as_whole:
            spread_lines(&ask, g.out + row * g.out_row + column, g.out_row, rows, columns, PARTS_STEP_ASKS * p.steps)
            parts_product(
                2 if rows > PARTS_TILE else 1, across, p.a + (row - p.row_start) // PARTS_TILE * tile_floats, tile_floats,
                p.b, tile_floats, p.steps, p.sums, PARTS_SIDE, False, &ask, &p.next_panel,
            )
        else:
            band_as_whole(g, p, row, rows)
        store_tile(
            g, p.sums, PARTS_SIDE, row, rows, column, columns, g.accumulate or p.k_start > 0, p.k_start + p.depth == g.k
        )


cdef inline const float *tile_of_b(const GemmTask *g, ptrdiff_t k, ptrdiff_t column, ptrdiff_t *k_step, ptrdiff_t *column_step) noexcept nogil:
    """Where B has PARTS_TILE columns from here on, and its strides there."""
    if g.packed_b != NULL:
        k_step[0], column_step[0] = TILE_COLUMNS, 1
        return g.packed_b + column // TILE_COLUMNS * g.packed_panel + k * TILE_COLUMNS + column % TILE_COLUMNS
    k_step[0], column_step[0] = g.b_k, g.b_column
    return place_in_b(g, k, column)


# ---- where there is an infinity: as they are, an FMA after another ----

cdef void panel_as_whole(GemmTask *g, PartsBlock *p, ptrdiff_t column) noexcept nogil:
    cdef ptrdiff_t j, k, k_step, column_step
    cdef const float *b
    for j in range(PARTS_SIDE):
        b = tile_of_b(g, p.k_start, column + j, &k_step, &column_step) if column + j < g.n else NULL
        for k in range(p.depth):
            p.b[k * PARTS_SIDE + j] = b[k * k_step] if b != NULL else 0


cdef void band_as_whole(GemmTask *g, PartsBlock *p, ptrdiff_t row, ptrdiff_t rows) noexcept nogil:
    cdef ptrdiff_t i, k
    cdef const float *a
    cdef vf left, right, number
    for i in range(rows):
        a = g.a + (row + i) * g.a_row + p.k_start * g.a_k
        left = right = vf_zero()
        for k in range(p.depth):
            number = vf_set(a[k * g.a_k])
            left = vf_fma(number, vf_load(p.b + k * PARTS_SIDE), left)
            right = vf_fma(number, vf_load(p.b + k * PARTS_SIDE + PARTS_TILE), right)
        vf_store(p.sums + i * PARTS_SIDE, left)
        vf_store(p.sums + i * PARTS_SIDE + PARTS_TILE, right)
