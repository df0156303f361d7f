# Linear maps over weights that lie as rows, float32 or pairs of bfloat16, or as panels of them: include after packed.pxi, matmul/gemm.pxi and
# matmul/linear.pxi.
#
#   linear_rows(&task)        out [tokens, outputs] = x W^T + bias through task.mode (all but LINEAR_GATE)

cdef extern from "packed/rows.h" nogil:
    void dot_columns(ptrdiff_t rows, ptrdiff_t columns, bint pairs, const float *x, const float *weight, ptrdiff_t words, float *sums,
                     ptrdiff_t sums_row)

cdef enum:
    FEW_TOKENS = 16  # at most so many rows come out, each, as it would alone, bit for bit (decoder/spec.py)
    ROWS_A_TASK = 64  # outputs a task when rows of x are few (a multiple of VF_WIDTH)


cdef struct RowsTask:
    const float *x  # [tokens, inputs]
    const float *pairs  # [tokens, halved(inputs)]: x in pairs (make_pairs), for weights in bfloat16
    float *out_pairs  # NULL, or [tokens, halved(outputs)]: out in pairs instead, as the next map reads it (can_pass_pairs)
    const float *weight  # float32 [outputs, inputs], or pairs [outputs, halved(inputs)]; NULL: panels
    const float *panels  # the same as gemm's panels, or NULL
    bint bfloat16
    bint few  # FEW_TOKENS rows at most, each to come out as it would alone
    bint read  # rows of a text, to come out the same however it is cut
    const float *bias
    float *out  # [tokens, outputs]
    ptrdiff_t tokens, inputs, outputs
    int mode, activation


cdef int linear_rows(RowsTask *op) except -1 nogil:
    cdef GemmTask g
    cdef ptrdiff_t depth = halved(op.inputs) if op.bfloat16 else op.inputs
    if op.few and op.panels == NULL:
        return pool_run(few_rows_of_words, op, (op.outputs + ROWS_A_TASK - 1) // ROWS_A_TASK)
    g = linear_task(
        op.pairs if op.bfloat16 else op.x, op.weight, True, op.bias, op.activation if op.mode == LINEAR_ACTIVATE else 0, op.out,
        op.tokens, depth, op.outputs,
    )
    g.as_many = op.read
    g.accumulate, g.pairs, g.packed_b, g.packed_panel = op.mode == LINEAR_ADD, op.bfloat16, op.panels, depth * TILE_COLUMNS
    if op.out_pairs != NULL:
        g.out, g.out_row, g.stores_pairs = op.out_pairs, halved(op.outputs), True
    return gemm(&g)


cdef inline bint can_pass_pairs(ptrdiff_t inputs, ptrdiff_t outputs) noexcept nogil:
    """Whether sums are whole when they are first stored, and have partners."""
    return halved(inputs) <= K_BLOCK and outputs % 2 == 0


cdef void few_rows_of_words(void *argument, ptrdiff_t task) noexcept nogil:
    cdef RowsTask *op = <RowsTask *>argument
    cdef float sums[FEW_TOKENS * VF_WIDTH]
    cdef const float *x = op.pairs if op.bfloat16 else op.x
    cdef ptrdiff_t words = halved(op.inputs) if op.bfloat16 else op.inputs
    cdef ptrdiff_t column = task * ROWS_A_TASK, stop = min(op.outputs, (task + 1) * ROWS_A_TASK), columns, t
    while column < stop:
        columns = min(VF_WIDTH, stop - column)
        dot_columns(op.tokens, columns, op.bfloat16, x, op.weight + column * words, words, sums, VF_WIDTH)
        for t in range(op.tokens):
            finish_row_of_sums(op, t, column, columns, sums + t * VF_WIDTH)
        column += VF_WIDTH


cdef inline void finish_row_of_sums(const RowsTask *op, ptrdiff_t row, ptrdiff_t column, ptrdiff_t columns,
                                    const float *sums) noexcept nogil:
    cdef vf value = vf_load(sums)
    cdef float *out = op.out + row * op.outputs + column
    if op.bias != NULL:
        value = vf_add(value, load_part(op.bias + column, columns))
    if op.mode == LINEAR_ADD:
        value = vf_add(load_part(out, columns), value)
    elif op.mode == LINEAR_ACTIVATE:
        value = vf_activate(value, op.activation)
    store_part(out, value, columns)
