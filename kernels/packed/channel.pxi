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
    const ChannelRows *rounded  # NULL, or in place of out: what the next map reads (CHANNEL_FUSES, whole groups of outputs)
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
    cdef ptrdiff_t i = 0, row_start, rows, panels, panel, stop, group, row, p, t
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
        if op.rounded != NULL:
            for p in range(CHANNEL_PANELS):
                for t in range(rows):
                    activate_channel(op, part, panel + p, sums + (t * CHANNEL_PANELS + p) * VF_WIDTH)
            round_channel_group(sums, rows, op.rounded, row_start, panel // CHANNEL_PANELS)
        else:
            for p in range(min(CHANNEL_PANELS, stop - panel)):
                for t in range(rows):
                    finish_channel(op, part, row_start + t, panel + p, sums + (t * CHANNEL_PANELS + p) * VF_WIDTH)
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


cdef inline vf scaled_channel(const ChannelPart *part, ptrdiff_t column, const float *sums) noexcept nogil:
    cdef vf value = vf_mul(vf_load(sums), vf_load(part.weight.scales + column))
    if part.bias != NULL:
        value = vf_add(value, load_part(part.bias + column, part.weight.outputs - column))
    return value


cdef inline void activate_channel(const ChannelTask *op, const ChannelPart *part, ptrdiff_t panel, float *sums) noexcept nogil:
    """Scale, bias and activation in place."""
    vf_store(sums, vf_activate(scaled_channel(part, panel * VF_WIDTH, sums), op.activation))


cdef inline void finish_channel(const ChannelTask *op, const ChannelPart *part, ptrdiff_t row, ptrdiff_t panel,
                                const float *sums) noexcept nogil:
    """Scale, bias and what op.mode says, for the sums of one panel of a row."""
    cdef ptrdiff_t column = panel * VF_WIDTH, lanes = part.weight.outputs - column
    cdef float *out = part.out + row * part.weight.outputs + column
    cdef vf value = scaled_channel(part, column, sums)
    if op.mode == LINEAR_ADD:
        value = vf_add(load_part(out, lanes), value)
    elif op.mode == LINEAR_ACTIVATE:
        value = vf_activate(value, op.activation)
    store_part(out, value, lanes)
