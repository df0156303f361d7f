# One step of a decoder: where its tokens stand, its buffers, and the maps between them. Rows of all buffers are the
# step's tokens, those of all sequences one after another.

cdef enum:
    ROWS_A_BLOCK = 8  # rows a task of norms and rotations: up to so many the caller does alone
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
    float *wide  # [tokens, hidden]
    float *other  # [tokens, hidden]
    float *pairs  # [tokens, widest / 2]
    void *quantized
    # attention's work, of each group of layers (attention.pxi)
    AttendTask *attend[MAX_GROUPS]
    ptrdiff_t attend_tasks[MAX_GROUPS]
    Join *joins[MAX_GROUPS]
    ptrdiff_t join_count[MAX_GROUPS]
    float *partials
    const Layer *layer  # the one at work


cdef inline float *take_floats(char **memory, ptrdiff_t count) noexcept nogil:
    """The next `count` floats of memory, beginning at a cache line."""
    cdef float *taken = <float *>memory[0]
    memory[0] += (count * sizeof(float) + 63) // 64 * 64
    return taken


cdef inline ptrdiff_t lines(ptrdiff_t count) noexcept nogil:
    return (count * <ptrdiff_t>sizeof(float) + 63) // 64 * 64


cdef inline ptrdiff_t widest(const Model *m) noexcept nogil:
    return max(m.dim, max(m.hidden, m.heads * m.head_dim))


cdef ptrdiff_t buffer_bytes(const Model *m, ptrdiff_t tokens) noexcept nogil:
    """What carve_buffers takes."""
    cdef ptrdiff_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim
    return (
        2 * lines(2 * tokens) + 2 * lines(tokens * m.dim) + 2 * lines(tokens * q) + 2 * lines(tokens * kv)
        + 2 * lines(tokens * m.hidden) + lines(tokens * halved(widest(m))) + quantized_bytes(2 * tokens, widest(m) // PAIR + 1) + 64
    )


cdef void carve_buffers(Step *s, char **memory) noexcept nogil:
    cdef const Model *m = s.model
    cdef ptrdiff_t sequence, t
    s.sequence_of = <int64_t *>take_floats(memory, 2 * s.tokens)
    s.position_of = <int64_t *>take_floats(memory, 2 * s.tokens)
    s.x, s.normed = take_floats(memory, s.tokens * m.dim), take_floats(memory, s.tokens * m.dim)
    s.q = take_floats(memory, s.tokens * m.heads * m.head_dim)
    s.k = take_floats(memory, s.tokens * m.kv_heads * m.head_dim)
    s.v = take_floats(memory, s.tokens * m.kv_heads * m.head_dim)
    s.attended = take_floats(memory, s.tokens * m.heads * m.head_dim)
    s.wide, s.other = take_floats(memory, s.tokens * m.hidden), take_floats(memory, s.tokens * m.hidden)
    s.pairs = take_floats(memory, s.tokens * halved(widest(m)))
    s.quantized = take_floats(memory, (quantized_bytes(2 * s.tokens, widest(m) // PAIR + 1) + 3) // 4)
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


# ---- norms ----

cdef struct NormTask:
    const Norm *norm
    const float *x  # [rows, width]
    float *out
    ptrdiff_t rows, width
    bint add  # out += the normed row: a branch joins the residual stream


cdef int normalize(const Norm *norm, const float *x, float *out, ptrdiff_t rows, ptrdiff_t width, bint add) except -1 nogil:
    cdef NormTask n
    n.norm, n.x, n.out, n.rows, n.width, n.add = norm, x, out, rows, width, add
    return pool_run(norm_block, &n, (rows + ROWS_A_BLOCK - 1) // ROWS_A_BLOCK)


cdef void norm_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef NormTask *n = <NormTask *>argument
    cdef ptrdiff_t row
    for row in range(task * ROWS_A_BLOCK, min(n.rows, (task + 1) * ROWS_A_BLOCK)):
        norm_row(n.norm, n.x + row * n.width, n.out + row * n.width, n.width, n.add)


cdef inline float sum_of(const float *x, ptrdiff_t width, float centre, bint squares) noexcept nogil:
    """The sum of x - centre, or of its squares."""
    cdef vf total[2]
    cdef vf value, middle = vf_set(centre)
    cdef ptrdiff_t i = 0, left
    total[0], total[1] = vf_zero(), vf_zero()
    while i < width:
        left = width - i
        value = vf_sub(load_part(x + i, left), middle)
        if squares:
            if left < VF_WIDTH:  # lanes past the end count for nothing
                value = vf_only_first(value, left)
            total[i // VF_WIDTH % 2] = vf_fma(value, value, total[i // VF_WIDTH % 2])
        else:
            total[i // VF_WIDTH % 2] = vf_add(value, total[i // VF_WIDTH % 2])
        i += VF_WIDTH
    return vf_sum(vf_add(total[0], total[1]))


cdef void norm_row(const Norm *norm, const float *x, float *out, ptrdiff_t width, bint add) noexcept nogil:
    """One row normalized: LayerNorm or RMSNorm."""
    cdef float mean = sum_of(x, width, 0, False) / width if norm.layernorm else 0
    cdef vf inverse = vf_set(1 / sqrtf(sum_of(x, width, mean, True) / width + norm.epsilon)), middle = vf_set(mean), value
    cdef ptrdiff_t i = 0, left
    while i < width:
        left = width - i
        value = vf_mul(vf_mul(vf_sub(load_part(x + i, left), middle), inverse), load_part(norm.weight + i, left))
        if norm.bias != NULL:
            value = vf_add(value, load_part(norm.bias + i, left))
        if add:
            value = vf_add(load_part(out + i, left), value)
        store_part(out + i, value, left)
        i += VF_WIDTH


# ---- linear maps ----

cdef int project(Step *s, const float *x, ptrdiff_t rows, ptrdiff_t width, const Linear **linears, float **outs, int count,
                 int mode, int activation, bint fine) except -1 nogil:
    """Up to three linear maps of x [rows, width], into outs [rows, outputs] of each; those of packed weights in one region,
    fine where rounding x costs most (reference.py)."""
    cdef LinearTask packed
    cdef RowsTask dense
    cdef ptrdiff_t i
    memset(&packed, 0, sizeof(packed))
    for i in range(count):
        if linears[i].weight.rows == NULL:
            packed.parts[packed.count].weight, packed.parts[packed.count].bias = linears[i].weight.packed, linears[i].bias
            packed.parts[packed.count].out, packed.parts[packed.count].out_row = outs[i], linears[i].weight.outputs
            packed.count += 1
        else:
            memset(&dense, 0, sizeof(dense))
            dense.x, dense.pairs, dense.weight, dense.bfloat16 = x, s.pairs, linears[i].weight.rows, linears[i].weight.bfloat16
            dense.bias, dense.out, dense.tokens, dense.inputs = linears[i].bias, outs[i], rows, width
            dense.outputs, dense.mode, dense.activation = linears[i].weight.outputs, mode, activation
            linear_rows(&dense)
    if packed.count:
        packed.x = carve_quantized(s.quantized, 2 * rows, width)
        quantize_rows(x, width, rows, width, fine, &packed.x)
        packed.tokens, packed.fine, packed.mode, packed.activation = rows, fine, mode, activation
        packed_linears(&packed)
    return 0


cdef int feed_forward(Step *s, const Layer *layer, float *out, int mode) except -1 nogil:
    """out = (out +) down(act(gate) * up) or down(act(up)) of s.normed."""
    cdef const Model *m = s.model
    cdef const Linear *maps[2]
    cdef float *outs[2]
    cdef Gating g
    maps[0], maps[1], outs[0], outs[1] = &layer.up, NULL, s.wide, NULL
    if not layer.gated:
        project(s, s.normed, s.tokens, m.dim, maps, outs, 1, LINEAR_ACTIVATE, m.activation, False)
    elif layer.gate.weight.rows == NULL and layer.up.weight.rows == NULL:
        maps[0], maps[1], outs[1] = &layer.gate, &layer.up, s.other
        project(s, s.normed, s.tokens, m.dim, maps, outs, 2, LINEAR_GATE, m.activation, False)
    else:
        maps[0], outs[0] = &layer.gate, s.wide
        project(s, s.normed, s.tokens, m.dim, maps, outs, 1, LINEAR_ACTIVATE, m.activation, False)
        maps[0], outs[0] = &layer.up, s.other
        project(s, s.normed, s.tokens, m.dim, maps, outs, 1, LINEAR_STORE, 0, False)
        g.out, g.factor, g.rows, g.width = s.wide, s.other, s.tokens, m.hidden
        pool_run(gate_block, &g, (s.tokens + ROWS_A_BLOCK - 1) // ROWS_A_BLOCK)
    maps[0], outs[0] = &layer.down, out
    return project(s, s.wide, s.tokens, m.hidden, maps, outs, 1, mode, 0, False)


cdef struct Gating:
    float *out  # [rows, width]
    const float *factor
    ptrdiff_t rows, width


cdef void gate_block(void *argument, ptrdiff_t task) noexcept nogil:
    """out *= factor."""
    cdef Gating *g = <Gating *>argument
    cdef ptrdiff_t i
    for i in range(task * ROWS_A_BLOCK * g.width, min(g.rows, (task + 1) * ROWS_A_BLOCK) * g.width):
        g.out[i] *= g.factor[i]
