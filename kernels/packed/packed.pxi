# Linear maps over packed weights for native modules: include "vec.pxi", "matmul/gemm.pxi", then "packed/packed.pxi".
#
#   outliers_of(columns, one_in)                       numbers of a row that are kept as they are
#   quantize_rows(x, row, tokens, columns, &rows)        activations to 8 bits, inline or as one region
#   packed_linears(&task)                                one parallel region over the panels of up to three weights
#
# A task owns columns of out for all rows; a column's sum takes the same steps whatever the number of rows or threads.

from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy

cdef extern from "amx.h" nogil:
    void tiles_of_pairs(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                        ptrdiff_t depth, float *out, ptrdiff_t out_row, bint add)

cdef extern from "activations.h" nogil:
    vf vf_activate(vf x, int activation)

cdef extern from "packed/tile.h" nogil:
    enum: BLOCK
    enum: PAIR
    enum: MANY
    enum: ROWS_TILE
    enum: PANELS_TILE
    ctypedef struct PackedMatrix:
        const uint8_t *data
        ptrdiff_t outputs, inputs, pairs, panel_bytes
        int bits, half, minimum
    ctypedef struct QuantizedRows:
        int8_t *numbers
        float *scales
        int32_t *offsets
        float *scaled_sums
        uint32_t *places
        float *values
        ptrdiff_t pairs, outliers
    ctypedef struct OpenPanels:
        pass
    ptrdiff_t packed_pair_bytes(int bits, int half, int minimum)
    int packed_offset(int bits, int minimum)
    void quantize_row(const float *x, ptrdiff_t columns, const QuantizedRows *rows, ptrdiff_t row)
    ptrdiff_t open_panel_bytes(ptrdiff_t pairs)
    OpenPanels open_panels(const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, uint8_t *scratch)
    enum: WHOLE_TILES
    enum: PAIR_PANELS
    enum: PAIR_COLUMNS
    void open_pairs(const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, float *words)
    void open_tile_of(ptrdiff_t rows, const OpenPanels *open, const QuantizedRows *x, ptrdiff_t row, float *sums)
    void panel_dots(ptrdiff_t rows, const PackedMatrix *w, ptrdiff_t panel, const QuantizedRows *x, float *sums)

cdef enum:
    QUANTIZE_ROWS = 8  # rows a task of rounding: up to so many the caller does alone
    MAX_PARTS = 3
    TASK_BYTES = 262144  # of weights a task at most when rows are few: a thread that reads on and on is prefetched for
    MOST_ROWS = PAIR_TILE_ROWS  # of a tile of any kind,
    MOST_PANELS = TILE_VECTORS  # and panels

# What becomes of a sum plus bias.
cdef enum:
    LINEAR_STORE = 0
    LINEAR_ADD = 1  # out += it: a residual
    LINEAR_ACTIVATE = 2  # out = act(it)
    LINEAR_GATE = 3  # part 0's out = act(part 0's) * part 1's


cdef inline ptrdiff_t panels_of(const PackedMatrix *w) noexcept nogil:
    return (w.outputs + VF_WIDTH - 1) // VF_WIDTH


# ---- activations ----

cdef struct QuantizeTask:
    const float *x
    ptrdiff_t row, tokens, columns
    QuantizedRows rows


cdef inline ptrdiff_t outliers_of(ptrdiff_t columns, ptrdiff_t one_in) noexcept nogil:
    """One in so many numbers of a row, rounded up; none if one_in is 0."""
    return (columns + one_in - 1) // one_in if one_in else 0


cdef inline ptrdiff_t quantized_bytes(ptrdiff_t tokens, ptrdiff_t pairs, ptrdiff_t outliers) noexcept nogil:
    """Of the arrays of QuantizedRows, one after another."""
    return tokens * (2 * pairs * (BLOCK + 12) + 8 * outliers)


cdef inline QuantizedRows carve_quantized(void *memory, ptrdiff_t tokens, ptrdiff_t columns, ptrdiff_t outliers) noexcept nogil:
    cdef QuantizedRows rows
    cdef ptrdiff_t blocks
    rows.pairs, rows.outliers = (columns + PAIR - 1) // PAIR, outliers
    blocks = tokens * 2 * rows.pairs
    rows.numbers = <int8_t *>memory
    rows.scales = <float *>(rows.numbers + blocks * BLOCK)
    rows.offsets = <int32_t *>(rows.scales + blocks)
    rows.scaled_sums = <float *>(rows.offsets + blocks)
    rows.places = <uint32_t *>(rows.scaled_sums + blocks)
    rows.values = <float *>(rows.places + tokens * outliers)
    return rows


cdef void quantize_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef QuantizeTask *q = <QuantizeTask *>argument
    cdef ptrdiff_t t
    for t in range(task * QUANTIZE_ROWS, min(q.tokens, (task + 1) * QUANTIZE_ROWS)):
        quantize_row(q.x + t * q.row, q.columns, &q.rows, t)


cdef inline int quantize_rows(const float *x, ptrdiff_t row, ptrdiff_t tokens, ptrdiff_t columns, const QuantizedRows *rows) except -1 nogil:
    """rows = x [tokens, columns], `row` floats apart, in 8 bits, but for its outliers."""
    cdef QuantizeTask q
    q.x, q.row, q.tokens, q.columns, q.rows = x, row, tokens, columns, rows[0]
    return pool_run(quantize_block, &q, (tokens + QUANTIZE_ROWS - 1) // QUANTIZE_ROWS)


# ---- the products ----

cdef struct LinearPart:
    PackedMatrix weight
    const float *bias  # [outputs] or NULL
    float *out  # [tokens, outputs], rows out_row apart
    ptrdiff_t out_row


cdef struct LinearTask:
    LinearPart parts[MAX_PARTS]
    int count, mode, activation
    QuantizedRows x
    const float *pairs  # NULL, or [tokens, halved(inputs)]: x in pairs of bfloat16 instead, multiplied by AMX
    ptrdiff_t tokens
    # set by packed_linears
    ptrdiff_t panels_a_task[MAX_PARTS]
    ptrdiff_t last_task[MAX_PARTS]


cdef inline bint is_for_tiles(ptrdiff_t tokens) noexcept nogil:
    """Whether so many tokens of a sequence are best multiplied as pairs by AMX, as a panel's numbers come to bfloat16: faster than in
    8 bits, and nearer to the truth, as x keeps 8 bits of each number instead of 8 below the largest of 32."""
    return AMX and tokens > MANY


cdef inline bint reads_once(const LinearTask *op) noexcept nogil:
    """Whether rows are so few that they read panels as they lie."""
    return op.tokens <= MANY and op.pairs == NULL


cdef int packed_linears(LinearTask *op) except -1 nogil:
    """out = x W^T + bias of every part, through op.mode; all parts read the same x."""
    cdef ptrdiff_t tasks = 0, panels, i, parts = 1 if op.mode == LINEAR_GATE else op.count, total = 0, share
    if op.tokens == 0:
        return 0
    for i in range(parts):
        total += panels_of(&op.parts[i].weight) * op.parts[i].weight.panel_bytes
    # an equal share for every thread, or several where that is long; a column's sum does not depend on it
    share = total // pool_threads()
    share = share // ((share + TASK_BYTES - 1) // TASK_BYTES) if share else 1
    for i in range(parts):
        panels = panels_of(&op.parts[i].weight)
        op.panels_a_task[i] = PAIR_PANELS if op.pairs != NULL else PANELS_TILE
        if reads_once(op):
            op.panels_a_task[i] = max(1, (share + op.parts[i].weight.panel_bytes - 1) // op.parts[i].weight.panel_bytes)
        tasks += (panels + op.panels_a_task[i] - 1) // op.panels_a_task[i]
        op.last_task[i] = tasks
    return pool_run(linear_block, op, tasks)


cdef void linear_block(void *argument, ptrdiff_t task) noexcept nogil:
    """A few panels of one part (of both, where one gates the other)."""
    cdef LinearTask *op = <LinearTask *>argument
    cdef ptrdiff_t i = 0, first, stop
    while task >= op.last_task[i]:
        i += 1
    first = (task - (op.last_task[i - 1] if i > 0 else 0)) * op.panels_a_task[i]
    stop = min(panels_of(&op.parts[i].weight), first + op.panels_a_task[i])
    if reads_once(op):
        few_rows(op, i, first, stop)
    else:
        many_rows(op, i, first, stop)


cdef void few_rows(LinearTask *op, ptrdiff_t i, ptrdiff_t first, ptrdiff_t stop) noexcept nogil:
    cdef float sums[MANY * VF_WIDTH]
    cdef float gated[MANY * VF_WIDTH]
    cdef ptrdiff_t panel, row
    for panel in range(first, stop):
        panel_dots(op.tokens, &op.parts[i].weight, panel, &op.x, sums)
        if op.mode == LINEAR_GATE:
            panel_dots(op.tokens, &op.parts[1].weight, panel, &op.x, gated)
        for row in range(op.tokens):
            finish_columns(op, i, row, panel, sums + row * VF_WIDTH, gated + row * VF_WIDTH)


cdef void many_rows(LinearTask *op, ptrdiff_t i, ptrdiff_t first, ptrdiff_t stop) noexcept nogil:
    cdef float sums[MOST_ROWS * MOST_PANELS * VF_WIDTH]
    cdef float gated[MOST_ROWS * MOST_PANELS * VF_WIDTH]
    cdef const PackedMatrix *w = &op.parts[i].weight
    cdef const PackedMatrix *up = &op.parts[1].weight
    cdef Opened open, open_up
    cdef ptrdiff_t tile_rows = PAIR_TILE_ROWS if op.pairs != NULL else ROWS_TILE
    cdef ptrdiff_t tile_panels = PAIR_PANELS if op.pairs != NULL else PANELS_TILE
    cdef ptrdiff_t panel = first, panels, p, t, row, rows, room = opened_bytes(op)
    cdef uint8_t *scratch = <uint8_t *>pool_scratch(2 * room)
    if op.pairs != NULL:
        tiles_begin()
    while panel < stop:
        panels = min(tile_panels, stop - panel)
        open = opened(op, w, panel, panels, scratch)
        if op.mode == LINEAR_GATE:
            open_up = opened(op, up, panel, panels, scratch + room)
        row = 0
        while row < op.tokens:
            rows = min(tile_rows, op.tokens - row)
            ask_for_panels(w, panel + tile_panels, tile_panels, row, rows, op.tokens)
            if op.mode == LINEAR_GATE:
                ask_for_panels(up, panel + tile_panels, tile_panels, row, rows, op.tokens)
            # the tile's places in out are asked for now and needed when its sums are done
            for t in range(rows):
                for p in range(panels):
                    prefetch_write(place_of_sum(op, i, row + t, panel + p))
            multiply_opened(op, &open, row, rows, panels, sums)
            if op.mode == LINEAR_GATE:
                multiply_opened(op, &open_up, row, rows, panels, gated)
            for t in range(rows):
                for p in range(panels):
                    finish_columns(op, i, row + t, panel + p, sums + (t * tile_panels + p) * VF_WIDTH,
                                   gated + (t * tile_panels + p) * VF_WIDTH)
            row += rows
        panel += panels
    if op.pairs != NULL:
        tiles_end()


cdef struct Opened:
    OpenPanels bytes
    const float *words  # in pairs: [x's words, PAIR_COLUMNS]


cdef inline ptrdiff_t opened_bytes(const LinearTask *op) noexcept nogil:
    """Of a tile's panels, opened."""
    cdef ptrdiff_t pairs = op.parts[0].weight.pairs
    if op.pairs != NULL:
        return pairs * (PAIR // 2 * PAIR_COLUMNS) * sizeof(float)
    return PANELS_TILE * open_panel_bytes(pairs)


cdef inline Opened opened(const LinearTask *op, const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, uint8_t *scratch) noexcept nogil:
    cdef Opened o
    if op.pairs != NULL:
        o.words = <float *>scratch
        open_pairs(w, panel, panels, <float *>scratch)
    else:
        o.bytes = open_panels(w, panel, panels, scratch)
    return o


cdef inline void multiply_opened(const LinearTask *op, const Opened *o, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t panels, float *sums) noexcept nogil:
    """sums [rows, a tile's panels * VF_WIDTH] of x's rows and opened panels."""
    cdef ptrdiff_t words = halved(op.parts[0].weight.inputs)
    if op.pairs != NULL:
        tiles_of_pairs(rows, panels * VF_WIDTH, op.pairs + row * words, words, o.words, PAIR_COLUMNS, words, sums, PAIR_COLUMNS, False)
    else:
        open_tile_of(rows, &o.bytes, &op.x, row, sums)


cdef inline void ask_for_panels(const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, ptrdiff_t row, ptrdiff_t rows,
                                ptrdiff_t all_rows) noexcept nogil:
    """A share of a tile's panels from `panel` on, that of `rows` of all rows: they come from memory while the ones before are
    multiplied."""
    ask_for_share(w.data + panel * w.panel_bytes, min(panels, panels_of(w) - panel) * w.panel_bytes, row, row + rows, all_rows)


cdef inline void ask_for_share(const uint8_t *start, ptrdiff_t size, ptrdiff_t part, ptrdiff_t stop, ptrdiff_t parts) noexcept nogil:
    """Parts part..stop-1 of so many equal ones of memory [size]; nothing if size <= 0."""
    cdef ptrdiff_t line = size * part // parts // 64 * 64, end = size * stop // parts
    while line < end:
        prefetch_read(start + line)
        line += 64


cdef inline float *place_of_sum(const LinearTask *op, ptrdiff_t i, ptrdiff_t row, ptrdiff_t panel) noexcept nogil:
    return op.parts[i].out + row * op.parts[i].out_row + panel * VF_WIDTH


cdef inline void finish_columns(LinearTask *op, ptrdiff_t i, ptrdiff_t row, ptrdiff_t panel, const float *sums,
                                const float *gated) noexcept nogil:
    """Bias, and what op.mode says, for the sums of one panel of x's row."""
    cdef LinearPart *part = &op.parts[i]
    cdef ptrdiff_t column = panel * VF_WIDTH, lanes = part.weight.outputs - column
    cdef float *out = place_of_sum(op, i, row, panel)
    cdef vf value = vf_load(sums), other
    if part.bias != NULL:
        value = vf_add(value, load_part(part.bias + column, lanes))
    if op.mode == LINEAR_ADD:
        value = vf_add(load_part(out, lanes), value)
    elif op.mode == LINEAR_ACTIVATE:
        value = vf_activate(value, op.activation)
    elif op.mode == LINEAR_GATE:
        other = vf_load(gated)
        if op.parts[1].bias != NULL:
            other = vf_add(other, load_part(op.parts[1].bias + column, lanes))
        value = vf_mul(vf_activate(value, op.activation), other)
    store_part(out, value, lanes)
