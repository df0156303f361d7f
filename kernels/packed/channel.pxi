# Linear maps over weights with one scale a column (channel.h): include after "vec.pxi" and "packed/packed.pxi".
#
#   round_channel_rows(x, tokens, columns, &rows)     activations to 8 bits
#   channel_linears(&task)                            out = x W^T + bias of up to three weights through task.mode (all but
#                                                     LINEAR_GATE), one parallel region
#
# A task is a block of rows by a few panels of one weight; a column's sum takes the same steps whatever the number of rows or threads.

cdef extern from "packed/channel.h" nogil:
    enum: CHANNEL_GROUP
    enum: CHANNEL_DEPTH
    enum: CHANNEL_STEPS
    enum: CHANNEL_ROWS
    enum: CHANNEL_PANELS
    enum: CHANNEL_FUSES
    ctypedef struct ChannelMatrix:
        const uint8_t *numbers
        const float *scales
        ptrdiff_t outputs, inputs, steps
    ctypedef struct ChannelRows:
        int8_t *numbers
        float *scales
        int32_t *offsets
        ptrdiff_t steps, groups
    ptrdiff_t channel_panel_bytes(const ChannelMatrix *w)
    void round_channel_row(const float *x, ptrdiff_t columns, const ChannelRows *rows, ptrdiff_t row)
    void round_channel_group(const float *x, ptrdiff_t count, const ChannelRows *rows, ptrdiff_t row, ptrdiff_t group)
    void channel_tile_of(ptrdiff_t row_count, const ChannelMatrix *w, ptrdiff_t panel, const ChannelRows *x, ptrdiff_t row,
                         ptrdiff_t group, float *sums, bint add)
    void scale_channels(const ChannelMatrix *w, ptrdiff_t panel, const float *bias, ptrdiff_t rows, float *sums)
    void store_channels(const ChannelMatrix *w, ptrdiff_t panel, const float *bias, ptrdiff_t rows, const float *sums, float *out, bint add)
    void copy_channels(const ChannelMatrix *w, ptrdiff_t panel, ptrdiff_t rows, const float *sums, float *out)
    ptrdiff_t channel_panels(const ChannelMatrix *w)

cdef enum:
    CHANNEL_BLOCK = 64  # rows a task: their sums for a tile's panels, 12 KB, stay in L1
    CHANNEL_TASK = 2  # a tile's panels so often: columns a task
    ROUND_ALONE = 8192  # numbers of x up to which the caller rounds them itself: less than it takes to wake a thread


cdef struct ChannelPart:
    const ChannelMatrix *weight
    const float *bias  # [outputs] or NULL
    float *out  # [tokens, outputs]
    ptrdiff_t column_tasks, last_task  # set by channel_linears


cdef struct ChannelTask:
    ChannelPart parts[MAX_PARTS]
    int count, mode, activation
    ChannelRows x
    const ChannelRows *rounded  # NULL, or in place of out: what the next map reads, activated (CHANNEL_FUSES, whole groups of outputs)
    ptrdiff_t tokens


cdef struct RoundTask:
    const float *x
    ptrdiff_t tokens, columns
    ChannelRows rows


cdef inline ptrdiff_t channel_bytes(ptrdiff_t tokens, ptrdiff_t columns) noexcept nogil:
    """Of the arrays of ChannelRows, one after another."""
    return tokens * ((columns + 3) // 4 * 4 + (columns + CHANNEL_GROUP - 1) // CHANNEL_GROUP * 8)


cdef inline ChannelRows carve_channel(void *memory, ptrdiff_t tokens, ptrdiff_t columns) noexcept nogil:
    cdef ChannelRows rows
    rows.steps, rows.groups = (columns + 3) // 4, (columns + CHANNEL_GROUP - 1) // CHANNEL_GROUP
    rows.scales = <float *>memory
    rows.offsets = <int32_t *>(rows.scales + tokens * rows.groups)
    rows.numbers = <int8_t *>(rows.offsets + tokens * rows.groups)
    return rows


cdef int round_channel_rows(const float *x, ptrdiff_t tokens, ptrdiff_t columns, const ChannelRows *rows) except -1 nogil:
    """rows = x [tokens, columns] in 8 bits."""
    cdef RoundTask r
    cdef ptrdiff_t t
    if tokens * columns <= ROUND_ALONE:
        for t in range(tokens):
            round_channel_row(x + t * columns, columns, rows, t)
        return 0
    r.x, r.tokens, r.columns, r.rows = x, tokens, columns, rows[0]
    return pool_run(round_channel_block, &r, (tokens + QUANTIZE_ROWS - 1) // QUANTIZE_ROWS)


cdef void round_channel_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef RoundTask *r = <RoundTask *>argument
    cdef ptrdiff_t t
    for t in range(task * QUANTIZE_ROWS, min(r.tokens, (task + 1) * QUANTIZE_ROWS)):
        round_channel_row(r.x + t * r.columns, r.columns, &r.rows, t)


cdef int channel_linears(ChannelTask *op) except -1 nogil:
    cdef ptrdiff_t columns = CHANNEL_TASK * CHANNEL_PANELS * VF_WIDTH, row_tasks, tasks = 0, i
    row_tasks = (op.tokens + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    for i in range(op.count):
        op.parts[i].column_tasks = (op.parts[i].weight.outputs + columns - 1) // columns
        tasks += row_tasks * op.parts[i].column_tasks
        op.parts[i].last_task = tasks
    return pool_run(channel_block, op, tasks)


cdef void channel_block(void *argument, ptrdiff_t task) noexcept nogil:
    """A block of rows against a tile's panels, a few groups at a time, so often; then what the mode says of the sums."""
    cdef ChannelTask *op = <ChannelTask *>argument
    cdef ptrdiff_t i = 0, row_start, rows, panels, panel, stop, group, row
    cdef const ChannelPart *part
    cdef float sums[CHANNEL_BLOCK * CHANNEL_PANELS * VF_WIDTH]
    while task >= op.parts[i].last_task:
        i += 1
    part = &op.parts[i]
    task -= op.parts[i - 1].last_task if i > 0 else 0
    row_start = task // part.column_tasks * CHANNEL_BLOCK
    rows = min(CHANNEL_BLOCK, op.tokens - row_start)
    panels = (part.weight.outputs + VF_WIDTH - 1) // VF_WIDTH
    panel = task % part.column_tasks * CHANNEL_TASK * CHANNEL_PANELS
    stop = min(panels, panel + CHANNEL_TASK * CHANNEL_PANELS)
    while panel < stop:
        group = 0
        while group < op.x.groups:
            row = 0
            while row < rows:
                # What comes next is asked for meanwhile: a panel is read once for all rows, and where those are few it sets the
                # time.
                ask_for_slice(part.weight, panel, group, row // CHANNEL_ROWS, (rows + CHANNEL_ROWS - 1) // CHANNEL_ROWS)
                channel_tile_of(min(CHANNEL_ROWS, rows - row), part.weight, panel, &op.x, row_start + row, group,
                                sums + row * CHANNEL_PANELS * VF_WIDTH, group > 0)
                row += CHANNEL_ROWS
            group += CHANNEL_DEPTH
        if op.mode == LINEAR_ACTIVATE:
            scale_channels(part.weight, panel, part.bias, rows, sums)
            activate_all(sums, rows * CHANNEL_PANELS * VF_WIDTH, op.activation)
        if op.rounded != NULL:
            round_channel_group(sums, rows, op.rounded, row_start, panel // CHANNEL_PANELS)
        elif op.mode == LINEAR_ACTIVATE:
            copy_channels(part.weight, panel, rows, sums, part.out + row_start * part.weight.outputs)
        else:
            store_channels(part.weight, panel, part.bias, rows, sums, part.out + row_start * part.weight.outputs, op.mode == LINEAR_ADD)
        panel += CHANNEL_PANELS


cdef inline void ask_for_slice(const ChannelMatrix *w, ptrdiff_t panel, ptrdiff_t group, ptrdiff_t slice, ptrdiff_t slices) noexcept nogil:
    """One of `slices` parts of the visit after that of `group` at a tile's panels: the same panels' next groups, or the first
    groups of the next panels."""
    cdef ptrdiff_t step = CHANNEL_STEPS * (group + CHANNEL_DEPTH), steps, p
    if step >= w.steps:
        step, panel = 0, panel + CHANNEL_PANELS
        if panel >= channel_panels(w):
            return
    steps = min(CHANNEL_STEPS * CHANNEL_DEPTH, w.steps - step)
    for p in range(CHANNEL_PANELS):
        ask_for_share(w.numbers + (panel + p) * channel_panel_bytes(w) + step * VF_WIDTH * 4, steps * VF_WIDTH * 4, slice, slice + 1,
                      slices)
