# One step of a decoder: where its tokens stand, its buffers, and the maps between them. Rows of all buffers are the
# step's tokens, those of all sequences one after another.

cdef enum:
    MAX_GROUPS = 2


cdef struct Pages:
    char *keys  # [layers, pages, kv_heads, head_dim, PAGE_KEYS]: transposed within a page
    char *values  # [layers, pages, kv_heads, PAGE_KEYS, head_dim]
    float *key_scales  # [layers, pages, kv_heads, PAGE_KEYS] or NULL
    float *value_scales
    ptrdiff_t pages
    const int32_t *tables  # [sequences, table_pages]
    ptrdiff_t table_pages


cdef struct Step:
    const Model *model
    const int64_t *ids
    const int64_t *starts  # [sequences + 1]
    const int64_t *first_positions  # [sequences]
    ptrdiff_t tokens, sequences
    int page_type
    ptrdiff_t page_bytes  # of one kv head's keys in a page
    Pages pages[MAX_GROUPS]
    # buffers
    int64_t *sequence_of  # [tokens]
    int64_t *position_of
    float *x  # [tokens, dim]: the residual stream
    float *normed  # [tokens, dim]
    float *q  # [tokens, heads * head_dim]
    float *k  # [tokens, kv_heads * head_dim]
    float *v
    float *attended  # [tokens, heads * head_dim]
    Bench bench
    # attention's work, of each group of layers (attention.pxi)
    AttendTask *attend[MAX_GROUPS]
    ptrdiff_t attend_tasks[MAX_GROUPS]
    Join *joins[MAX_GROUPS]
    ptrdiff_t join_count[MAX_GROUPS]
    float *partials
    const Layer *layer  # the one at work


cdef inline ptrdiff_t widest(const Model *m) noexcept nogil:
    return max(m.dim, max(m.hidden, m.heads * m.head_dim))


cdef ptrdiff_t buffer_bytes(const Model *m, ptrdiff_t rows) noexcept nogil:
    """What carve_buffers takes."""
    cdef ptrdiff_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim
    return (
        2 * lines(2 * rows) + 2 * lines(rows * m.dim) + 2 * lines(rows * q) + 2 * lines(rows * kv)
        + bench_bytes(rows, m.hidden, widest(m))
    )


cdef void carve_buffers(Step *s, char **memory, ptrdiff_t rows) noexcept nogil:
    """For so many rows: the step's tokens, or the wanted ones where those are more."""
    cdef const Model *m = s.model
    cdef ptrdiff_t sequence, t
    s.sequence_of = <int64_t *>take_floats(memory, 2 * s.tokens)
    s.position_of = <int64_t *>take_floats(memory, 2 * s.tokens)
    s.x, s.normed = take_floats(memory, rows * m.dim), take_floats(memory, rows * m.dim)
    s.q = take_floats(memory, s.tokens * m.heads * m.head_dim)
    s.k = take_floats(memory, s.tokens * m.kv_heads * m.head_dim)
    s.v = take_floats(memory, s.tokens * m.kv_heads * m.head_dim)
    s.attended = take_floats(memory, s.tokens * m.heads * m.head_dim)
    carve_bench(&s.bench, memory, rows, m.hidden, widest(m))
    for sequence in range(s.sequences):
        for t in range(s.starts[sequence], s.starts[sequence + 1]):
            s.sequence_of[t] = sequence
            s.position_of[t] = s.first_positions[sequence] + t - s.starts[sequence]


# ---- embedding ----

cdef void embed_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef ptrdiff_t t, i
    cdef const float *row
    cdef float *x
    for t in range(task * ROWS_A_BLOCK, min(s.tokens, (task + 1) * ROWS_A_BLOCK)):
        x = s.x + t * m.dim
        matrix_row(&m.embedding, s.ids[t], x)
        if m.embedding_scale != 1:
            for i in range(m.dim):
                x[i] *= m.embedding_scale
        if m.positions != NULL:
            row = m.positions + s.position_of[t] * m.dim
            for i in range(m.dim):
                x[i] += row[i]
