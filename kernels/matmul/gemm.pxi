# The packed GEMM for native modules: include "vec.pxi" first, then "matmul/gemm.pxi".
#
#   cdef int gemm(GemmTask *g) except -1 nogil          one parallel region; fill g with gemm_task(...) below
#
# out [m, n] = (out if accumulate else 0) + A [m, k] B [k, n], each with its rows or columns along memory (NN, NT, TN), then an
# epilogue on each tile while it is in cache. Blocks of out are tasks: one writer each, sums over k in a fixed order.
# A thread packs the panels of B that it uses into its scratch, a group at a time.

include "bfloat16.pxi"

cdef extern from *:
    """
    #define prefetch_read(p) __builtin_prefetch((p), 0, 2)
    #define prefetch_write(p) __builtin_prefetch((p), 1, 2)
    """
    void prefetch_read(const void *p) nogil
    void prefetch_write(const void *p) nogil

cdef extern from "activations.h" nogil:
    enum: ACTIVATION_GELU
    enum: ACTIVATION_GELU_TANH
    enum: ACTIVATION_SILU
    enum: ACTIVATION_RELU
    vf vf_activate(vf x, int activation)
    vf vf_derivative(vf x, int activation)

cdef extern from "bfloat16.h" nogil:
    vf bf16_neighbours(vf a, vf b)

cdef extern from "amx.h" nogil:
    enum: AMX

cdef extern from "philox.h" nogil:
    enum: PHILOX_BATCH_WORDS
    void philox_batch(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random)

cdef extern from "matmul/tile.h" nogil:
    enum: TILE_ROWS
    enum: PAIR_TILE_ROWS
    enum: TILE_VECTORS
    enum: TILE_COLUMNS
    enum: TILE_SUMS
    enum: K_BLOCK
    enum: GROUP_PANELS
    enum: FIRST_TILE_PACKS
    void tile_multiply(int row_count, int vectors, int ahead, int pairs, const float **rows, ptrdiff_t a_step,
                       const float *b, ptrdiff_t b_step, ptrdiff_t depth, float *packed, float *out, ptrdiff_t out_row,
                       bint add, const float *bias)
    void full_tile(const float **rows, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth,
                   float *packed, float *out, ptrdiff_t out_row, bint add, const float *bias)
    void full_tile_of_packed(const float **rows, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth,
                           float *packed, float *out, ptrdiff_t out_row, bint add, const float *bias)
    void full_tile_packing(const float **rows, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth,
                           float *packed, float *out, ptrdiff_t out_row, bint add, const float *bias)
    void full_tile_pairs(const float **rows, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth,
                   float *packed, float *out, ptrdiff_t out_row, bint add, const float *bias)
    void full_tile_pairs_of_packed(const float **rows, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth,
                           float *packed, float *out, ptrdiff_t out_row, bint add, const float *bias)
    void full_tile_pairs_packing(const float **rows, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth,
                           float *packed, float *out, ptrdiff_t out_row, bint add, const float *bias)
    void rest_tile(ptrdiff_t row_count, int pairs, const float **rows, ptrdiff_t a_k, const float *b, ptrdiff_t depth, float *out,
                   const float *bias)
    void dot_multiply(int row_count, bint halves, const float **rows, const void *b, ptrdiff_t depth, float *sums,
                      ptrdiff_t sums_step)
    void pack_rows_of_a(const float *a, ptrdiff_t a_k, ptrdiff_t depth, ptrdiff_t rows, float *out)
    void pack_transposed(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float *out, ptrdiff_t out_stride)
    void vf_transpose(const float *input, ptrdiff_t in_stride, float *out, ptrdiff_t out_stride)

cdef extern from "cpu/cpuid.h" nogil:
    bint cpu_has_tiles()

# Whether B is asked for ahead of its use, in bursts: 10 % on an Ice Lake, a Zen 3 or 4. A Granite Rapids waits 150 ns for its L3, and
# bursts keep the 16 places for lines on their way from those that a tile needs now: 2-9 % slower, with AVX2 1-5 %.
cdef bint asks_ahead = not cpu_has_tiles()

cdef enum:
    GROUP_COLUMNS = GROUP_PANELS * TILE_COLUMNS  # within a panel of PANEL_COLUMNS, where those are not tiles' own
    ROW_BLOCK = 512  # rows that a packed panel of B serves
    TASKS_A_THREAD = 2  # at least, where the shape allows: more of them read A more often (1-10 % slower with four)
    MIN_COLUMNS = 96  # columns of B a task, in whole groups: more of them save readings (and packings) of A
    MAX_COLUMNS = 384
    PACKED_ROWS = 256  # rows of A that are packed at once: 256 tokens of them are 256 KB, 512 half of an L2
    FEW_ROWS = 4  # products of so few rows read B where it lies (few_rows.pxi)


cdef struct GemmTask:
    const float *a
    ptrdiff_t a_row, a_k  # strides of A's rows and of k
    const float *b
    ptrdiff_t b_k, b_column  # strides of k and of B's columns
    ptrdiff_t b_panel  # 0, or B lies as panels of PANEL_COLUMNS, so far apart
    const float *packed_b  # B as panels of TILE_COLUMNS, each of all k, that tiles read as they lie; NULL: b is packed on the way
    ptrdiff_t packed_panel  # from one of them to the next
    bint packed_far  # packed_b comes from memory and is asked for ahead (groups are single panels)
    float *out
    ptrdiff_t out_row
    ptrdiff_t m, n, k
    bint accumulate
    bint as_many  # sums are made as those of many rows, however few there are
    bint pairs  # A and B are pairs of bfloat16 (bfloat16.h), and k counts pairs
    bint stores_pairs  # so is out, and out_row counts them; k is one block, n even, and nothing of [m, n] joins
    # epilogue, forward: out = dropout(act(sum + bias) * multiplier) + residual; pre_activation = sum + bias
    int activation
    const float *bias  # [n] or NULL
    const float *multiplier  # [m, n] or NULL
    const float *residual  # [m, n] or NULL
    float *pre_activation  # [m, n] or NULL
    bint drops  # dropout of out [m, n], flat, as kernels/dropout has it; set by drop_out
    uint64_t seed
    uint32_t threshold
    float keep
    # epilogue, backward: out = sum * multiplier * act'(input_pre), d_multiplier = sum * act(input_pre)
    const float *input_pre  # [m, n] or NULL
    float *d_multiplier  # [m, n] or NULL
    # set by gemm
    ptrdiff_t row_block, k_block, column_panels, column_tasks, tasks
    bint pack_a
    int threads
    bint plain


cdef inline GemmTask gemm_task(
    const float *a, ptrdiff_t a_row, ptrdiff_t a_k, const float *b, ptrdiff_t b_k, ptrdiff_t b_column,
    float *out, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, bint accumulate,
) noexcept nogil:
    """out [m, n], C-contiguous, = (out +) A B, with no epilogue until its fields are set."""
    cdef GemmTask g
    memset(&g, 0, sizeof(GemmTask))
    g.a, g.a_row, g.a_k = a, a_row, a_k
    g.b, g.b_k, g.b_column = b, b_k, b_column
    g.out, g.out_row = out, n
    g.m, g.n, g.k, g.accumulate = m, n, k, accumulate
    return g


cdef inline void take_panels(GemmTask *g, const float *panels, ptrdiff_t panel) noexcept nogil:
    """B as panels of PANEL_COLUMNS, `panel` words from one to the next: where tiles are as wide they read them as they lie."""
    if TILE_COLUMNS == PANEL_COLUMNS:
        g.packed_b, g.packed_panel, g.packed_far = panels, panel, GROUP_PANELS == 1
    else:
        g.b, g.b_k, g.b_column, g.b_panel = panels, PANEL_COLUMNS, 1, panel


cdef int gemm(GemmTask *g) except -1 nogil:
    cdef ptrdiff_t panels = (g.n + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef ptrdiff_t row_blocks
    if g.m == 0 or g.n == 0:
        return 0
    # A transposed (a weight's gradient): each k is another page, so blocks of A are packed. An Ice Lake, whose two FMA
    # units take 12 cycles for a k, is 1.2-1.6 times as fast for it; pairs on a Zen 4: 0.72 -> 0.86 of the bfloat16 peak.
    g.pack_a = g.a_k != 1  # and a_row is 1
    g.plain, g.threads = is_plain(g), pool_threads()
    if AMX and g.pairs and g.k > 0:
        return gemm_by_tiles(g)
    if worth_parts(g):
        return gemm_by_parts(g)
    # Even row blocks; a few panels a task, fewer where that leaves too few tasks. What a sum is made of depends on the shape only.
    g.row_block = even_block(g.m, PACKED_ROWS if g.pack_a else ROW_BLOCK, TILE_ROWS)
    row_blocks = (g.m + g.row_block - 1) // g.row_block
    g.k_block = even_block(g.k, K_BLOCK, LINE)
    g.column_panels = max(
        MIN_COLUMNS // TILE_COLUMNS,
        min(MAX_COLUMNS // TILE_COLUMNS, panels * row_blocks // (TASKS_A_THREAD * g.threads) // GROUP_PANELS * GROUP_PANELS),
    )
    g.column_tasks = (panels + g.column_panels - 1) // g.column_panels
    if row_blocks * g.column_tasks % 2 and panels > MIN_COLUMNS // TILE_COLUMNS:
        # of an odd number of tasks, one of two threads has one more (12 instead of 9 for 768 x 768: 3-4 % faster)
        g.column_tasks += 1
        g.column_panels = (panels + g.column_tasks * GROUP_PANELS - 1) // (g.column_tasks * GROUP_PANELS) * GROUP_PANELS
        g.column_tasks = (panels + g.column_panels - 1) // g.column_panels
    g.tasks = row_blocks * g.column_tasks
    if g.k == 0:
        return pool_run(gemm_empty_sum, g, g.tasks)
    if g.m <= FEW_ROWS and not g.as_many and g.packed_b == NULL and not g.pairs and g.a_k == 1 and (g.b_column == 1 or g.b_k == 1):
        return pool_run(few_rows_block, g, g.column_tasks)
    return pool_run(gemm_block, g, g.tasks)


cdef inline bint is_plain(const GemmTask *g) noexcept nogil:
    """Whether sums are stored as they are, but for a bias."""
    return (
        g.activation == 0 and g.multiplier == NULL and g.residual == NULL
        and g.pre_activation == NULL and g.input_pre == NULL and not g.drops and not g.stores_pairs
    )


cdef void gemm_block(void *argument, ptrdiff_t task) noexcept nogil:
    """One block of out: for each block of k, each group of panels of B is packed and then meets every row."""
    cdef GemmTask *g = <GemmTask *>argument
    cdef ptrdiff_t row_start = task // g.column_tasks * g.row_block
    cdef ptrdiff_t rows = min(g.row_block, g.m - row_start)
    cdef ptrdiff_t first_column = task % g.column_tasks * g.column_panels * TILE_COLUMNS
    cdef ptrdiff_t last_column = min(g.n, first_column + g.column_panels * TILE_COLUMNS)
    cdef ptrdiff_t tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    cdef float *group_buffer = <float *>pool_scratch(
        sizeof(float) * K_BLOCK * (GROUP_COLUMNS + (tiles * TILE_ROWS if g.pack_a else 0))
    )
    cdef float *a_buffer = group_buffer + K_BLOCK * GROUP_COLUMNS
    cdef const float *group_data
    cdef const float *a_tile
    cdef const float *b
    cdef ptrdiff_t k_start, depth, group, group_end, panel, column, tile, row
    cdef bint last, first_packs

    k_start = 0
    while k_start < g.k:
        depth = min(g.k_block, g.k - k_start)
        last = k_start + depth == g.k
        if g.pack_a:
            pack_rows_of_a(g.a + row_start + k_start * g.a_k, g.a_k, depth, rows, a_buffer)
        group = first_column
        while group < last_column:
            group_end = min(last_column, group + GROUP_COLUMNS)
            b, first_packs, panel = place_in_b(g, k_start, group), False, depth * TILE_COLUMNS
            if g.packed_b != NULL:
                group_data, panel = g.packed_b + group // TILE_COLUMNS * g.packed_panel + k_start * TILE_COLUMNS, g.packed_panel
            else:
                group_data = group_buffer
                # B's rows along memory: the first tiles read them where they lie, and pack them for the others on the way
                first_packs = (
                    FIRST_TILE_PACKS and g.b_column == 1 and group_end - group == GROUP_COLUMNS and rows >= TILE_ROWS
                )
                if not first_packs:
                    pack_group(b, g.b_k, g.b_column, depth, group_end - group, group_buffer)
            for tile in range(tiles):
                # What comes next is asked for while this tile is multiplied: without it every pack waits for memory.
                if asks_ahead and (g.packed_b == NULL or g.packed_far):
                    if group_end < last_column:
                        prefetch_slice(g, k_start, group_end, tile, tiles)
                    elif not last:
                        prefetch_slice(g, k_start + depth, first_column, tile, tiles)
                    elif task + g.threads < g.tasks:  # the task that this thread is likely to get
                        prefetch_slice(
                            g, 0, (task + g.threads) % g.column_tasks * g.column_panels * TILE_COLUMNS, tile, tiles
                        )
                a_tile = a_buffer + tile * depth * TILE_ROWS if g.pack_a else NULL
                row = row_start + tile * TILE_ROWS
                column = group
                while column < group_end:
                    if first_packs and tile == 0:
                        multiply_tile(
                            g, a_tile, row, TILE_ROWS, column, TILE_COLUMNS, k_start, depth, b + column - group, g.b_k,
                            group_buffer + (column - group) * depth, g.accumulate or k_start > 0, last,
                        )
                    else:
                        multiply_tile(
                            g, a_tile, row, min(TILE_ROWS, row_start + rows - row), column, min(TILE_COLUMNS, group_end - column),
                            k_start, depth, group_data + (column - group) // TILE_COLUMNS * panel, TILE_COLUMNS, NULL,
                            g.accumulate or k_start > 0, last,
                        )
                    column += TILE_COLUMNS
            group += GROUP_COLUMNS
        k_start += g.k_block


cdef inline const float *place_in_b(const GemmTask *g, ptrdiff_t k, ptrdiff_t column) noexcept nogil:
    if g.b_panel:  # (groups do not cross its panels)
        return g.b + column // PANEL_COLUMNS * g.b_panel + k * PANEL_COLUMNS + column % PANEL_COLUMNS
    return g.b + k * g.b_k + column * g.b_column


cdef void multiply_tile(
    GemmTask *g, const float *a_tile, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t column, ptrdiff_t columns, ptrdiff_t k_start, ptrdiff_t depth,
    const float *b, ptrdiff_t b_step, float *packed, bint load, bint last,
) noexcept nogil:
    """One register tile over one block of k, stored with the epilogue if that block is the last; b's rows are b_step
    apart, and with `packed` (which needs a full tile) also go there. a_tile: packed rows of A, or NULL."""
    cdef const float *starts[TILE_ROWS]
    cdef float sums[TILE_SUMS * VF_WIDTH]
    cdef float whole_bias[TILE_COLUMNS]
    cdef const float *bias = g.bias + column if last and g.bias != NULL else NULL
    cdef float *out = g.out + row * g.out_row + (column // 2 if g.stores_pairs else column)
    cdef ptrdiff_t words = columns // 2 if g.stores_pairs else columns
    cdef bint in_place = columns == TILE_COLUMNS and rows == TILE_ROWS and (g.plain or not last)
    cdef ptrdiff_t out_row = g.out_row, a_k = g.a_k, i
    # The tile's place in out is asked for now and needed when the sums are done.
    for i in range(rows):
        prefetch_write(out + i * g.out_row)
        if words > LINE:
            prefetch_write(out + i * g.out_row + LINE)
        if words > 2 * LINE:
            prefetch_write(out + i * g.out_row + 2 * LINE)
        prefetch_write(out + i * g.out_row + words - 1)
    if not in_place:
        out, out_row = sums, TILE_COLUMNS
    if bias != NULL and columns < TILE_COLUMNS:
        for i in range(columns):
            whole_bias[i] = bias[i]
        for i in range(columns, TILE_COLUMNS):
            whole_bias[i] = 0
        bias = whole_bias
    if a_tile != NULL:
        a_k = TILE_ROWS
    for i in range(rows):
        starts[i] = a_tile + i if a_tile != NULL else g.a + (row + i) * g.a_row + k_start * g.a_k
    if rows < TILE_ROWS:
        rest_tile(rows, g.pairs, starts, a_k, b, depth, out, bias)
    elif g.pairs:
        if packed != NULL:
            full_tile_pairs_packing(starts, a_k, b, b_step, depth, packed, out, out_row, load and in_place, bias)
        elif a_k == 1:
            full_tile_pairs(starts, 1, b, b_step, depth, NULL, out, out_row, load and in_place, bias)
        else:
            full_tile_pairs_of_packed(starts, TILE_ROWS, b, b_step, depth, NULL, out, out_row, load and in_place, bias)
    elif packed != NULL:
        full_tile_packing(starts, a_k, b, b_step, depth, packed, out, out_row, load and in_place, bias)
    elif a_k == 1:
        full_tile(starts, 1, b, b_step, depth, NULL, out, out_row, load and in_place, bias)
    else:
        full_tile_of_packed(starts, TILE_ROWS, b, b_step, depth, NULL, out, out_row, load and in_place, bias)
    if not in_place:
        finish_tile(g, sums, TILE_COLUMNS, row, rows, column, columns, load, last)


cdef void gemm_empty_sum(void *argument, ptrdiff_t task) noexcept nogil:
    """k = 0: every sum is empty, the epilogue still holds."""
    cdef GemmTask *g = <GemmTask *>argument
    cdef ptrdiff_t row_start = task // g.column_tasks * g.row_block
    cdef ptrdiff_t first = task % g.column_tasks * g.column_panels * TILE_COLUMNS
    cdef ptrdiff_t last = min(g.n, first + g.column_panels * TILE_COLUMNS)
    cdef float sums[TILE_COLUMNS]
    cdef ptrdiff_t row, column
    for row in range(row_start, min(g.m, row_start + g.row_block)):
        column = first
        while column < last:
            memset(sums, 0, sizeof(sums))
            store_tile(g, sums, TILE_COLUMNS, row, 1, column, min(TILE_COLUMNS, last - column), g.accumulate, True)
            column += TILE_COLUMNS


# ---- packing ----

cdef enum:
    LINE = 16  # floats a cache line


cdef inline ptrdiff_t even_block(ptrdiff_t total, ptrdiff_t most, ptrdiff_t step) noexcept nogil:
    """At most `most` (a multiple of step), in multiples of step: blocks are about equally large."""
    cdef ptrdiff_t blocks = max(1, (total + most - 1) // most)
    return max(step, ((total + blocks - 1) // blocks + step - 1) // step * step)


cdef inline void prefetch_slice(
    const GemmTask *g, ptrdiff_t k_start, ptrdiff_t column, ptrdiff_t slice, ptrdiff_t slices
) noexcept nogil:
    """Ask for one of `slices` parts of the group of panels of B that is packed or read next, while this one is multiplied:
    without it every pack waits for memory (10 % of a product of 256 rows)."""
    cdef ptrdiff_t depth = min(g.k_block, g.k - k_start), columns = min(GROUP_COLUMNS, g.n - column)
    cdef ptrdiff_t rows = depth if g.b_column == 1 else columns  # runs along memory, `length` floats each
    cdef ptrdiff_t length = columns if g.b_column == 1 else depth
    cdef ptrdiff_t stride = g.b_k if g.b_column == 1 else g.b_column
    cdef ptrdiff_t row, stop, at
    cdef const float *start = place_in_b(g, k_start, column)
    if g.packed_b != NULL:
        rows, length, stride = depth, TILE_COLUMNS, TILE_COLUMNS
        start = g.packed_b + column // TILE_COLUMNS * g.packed_panel + k_start * TILE_COLUMNS
    row, stop = rows * slice // slices, rows * (slice + 1) // slices
    while row < stop:
        at = 0
        while at < length:
            prefetch_read(start + row * stride + at)
            at += LINE
        prefetch_read(start + row * stride + length - 1)
        row += 1


cdef void pack_group(
    const float *b, ptrdiff_t b_k, ptrdiff_t b_column, ptrdiff_t depth, ptrdiff_t columns, float *group
) noexcept nogil:
    """group: panels [depth, TILE_COLUMNS], one after another, of a block of B of so many columns."""
    cdef ptrdiff_t k, panel, j
    if b_column != 1 or columns < GROUP_COLUMNS:
        for panel from 0 <= panel < columns by TILE_COLUMNS:
            pack_panel(
                b + panel * b_column, b_k, b_column, depth, min(TILE_COLUMNS, columns - panel), group + panel * depth
            )
        return
    # All of a row at once: panel after panel, forward products of 256 rows took 3 % longer.
    for k in range(depth):
        for panel in range(GROUP_PANELS):
            for j in range(TILE_VECTORS):
                vf_store(
                    group + (panel * depth + k) * TILE_COLUMNS + j * VF_WIDTH,
                    vf_load(b + k * b_k + panel * TILE_COLUMNS + j * VF_WIDTH),
                )


cdef void pack_panel(
    const float *b, ptrdiff_t b_k, ptrdiff_t b_column, ptrdiff_t depth, ptrdiff_t columns, float *panel
) noexcept nogil:
    """panel [depth, TILE_COLUMNS] = a block of B; columns past the end are zero."""
    cdef ptrdiff_t k, column, j
    if columns < TILE_COLUMNS:
        memset(panel, 0, sizeof(float) * depth * TILE_COLUMNS)
    if b_column == 1 and columns == TILE_COLUMNS:
        for k in range(depth):
            for j in range(TILE_VECTORS):
                vf_store(panel + k * TILE_COLUMNS + j * VF_WIDTH, vf_load(b + k * b_k + j * VF_WIDTH))
        return
    if b_column == 1:
        for k in range(depth):
            for column in range(columns):
                panel[k * TILE_COLUMNS + column] = b[k * b_k + column]
        return
    # B is transposed: k runs along memory (b_k is 1 for every caller), so squares are turned in registers.
    column = 0
    while b_k == 1 and column + VF_WIDTH <= columns:
        k = 0
        while k + VF_WIDTH <= depth:
            vf_transpose(b + column * b_column + k, b_column, panel + k * TILE_COLUMNS + column, TILE_COLUMNS)
            k += VF_WIDTH
        while k < depth:
            for j in range(VF_WIDTH):
                panel[k * TILE_COLUMNS + column + j] = b[k + (column + j) * b_column]
            k += 1
        column += VF_WIDTH
    while column < columns:
        for k in range(depth):
            panel[k * TILE_COLUMNS + column] = b[k * b_k + column * b_column]
        column += 1


include "matmul/epilogue.pxi"
include "matmul/tiles.pxi"
include "matmul/parts.pxi"
include "matmul/few_rows.pxi"
