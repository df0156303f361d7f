# One call of an encoder: an EncoderSpec as structs, the buffers of its tokens, and attention within each sequence, both
# ways. A task of attention is a tile of one sequence's queries in one head; its numbers depend on its own sequence only.

cdef extern from "decoder/attend.h" nogil:
    enum: PAGE_KEYS
    enum: ATTEND_ROWS
    enum: PAGES_FLOAT32
    ctypedef struct Gathered:
        float *blend
        float *totals
        float *largest
        ptrdiff_t dim
    ctypedef struct Page:
        const char *keys
        const char *values
        const float *key_scales
        const float *value_scales
        ptrdiff_t value_row, ahead
        int type
    void attend_page(const Gathered *g, ptrdiff_t row, ptrdiff_t rows, const float *queries, const Page *page,
                     ptrdiff_t head_dim, float softcap, const ptrdiff_t *first, const ptrdiff_t *end, const float **added)

cdef enum:
    QUERY_TILE = 64  # queries a task
    CHUNK_TOKENS = 128  # of the sequences that one thread takes through all layers: their activations stay in L2
    CHUNKS_A_THREAD = 2  # fewer, and all threads share every layer instead: the last ones would wait too long
    CHUNK_LEAST = 8  # tokens: below that products of few rows add up in another order


cdef struct Layer:
    Norm attention_norm, feedforward_norm
    Linear q, k, v, output, gate, up, down
    bint gated
    ptrdiff_t window  # 0: none
    const float *cos  # [context, half] or NULL
    const float *sin
    ptrdiff_t half  # numbers of a head that turn, halved


cdef struct Model:
    ptrdiff_t dim, heads, head_dim, hidden, layers
    bint pre
    int activation
    float attention_scale
    Matrix embedding
    const float *positions  # [context, dim] or NULL
    const float *token_types  # [types, dim] or NULL
    Norm embedding_norm, final_norm
    const float *relative  # [heads, 2 distance + 1] or NULL
    ptrdiff_t distance
    Layer *layer


cdef Layer layer_of(layer) except *:
    cdef Layer l
    memset(&l, 0, sizeof(l))
    l.attention_norm, l.feedforward_norm = norm_of(layer.attention_norm), norm_of(layer.feedforward_norm)
    l.q, l.k, l.v, l.output = linear_of(layer.q), linear_of(layer.k), linear_of(layer.v), linear_of(layer.output)
    l.gate, l.up, l.down = linear_of(layer.gate), linear_of(layer.up), linear_of(layer.down)
    l.gated, l.window = layer.gate is not None, layer.window
    if layer.cos is not None:
        l.cos, l.sin, l.half = table_of(layer.cos), table_of(layer.sin), layer.cos.shape[1]
    return l


cdef struct AttendTask:
    ptrdiff_t start, stop  # the sequence's tokens
    ptrdiff_t first, head  # its first query, counted from start


cdef struct Step:
    const Model *model
    const int64_t *ids
    const int64_t *call_starts  # [sequences + 1], counted from the call's first token
    const int64_t *token_types  # [tokens] or NULL
    ptrdiff_t tokens, sequences
    # buffers, rows are tokens
    int64_t *position_of  # [tokens]
    float *x  # [tokens, dim]: the residual stream, where the result is wanted
    float *normed  # [tokens, dim]
    float *q  # [tokens, heads * head_dim]
    float *k
    float *v
    float *attended
    float *added  # [heads, 2 * span]: the relative numbers of every distance that occurs
    ptrdiff_t span
    Bench bench
    AttendTask *task
    ptrdiff_t tasks
    const Layer *layer  # the one at work


cdef struct Call:
    const Model *model
    const int64_t *ids  # [tokens]
    const int64_t *starts  # [sequences + 1]
    const int64_t *token_types  # [tokens] or NULL
    float *hidden  # [tokens, dim]
    ptrdiff_t sequences, chunks
    int64_t *bounds  # [chunks + 1]: the sequences of each chunk


cdef ptrdiff_t cut_into_chunks(Call *call) noexcept nogil:
    """call.bounds: whole sequences of about CHUNK_TOKENS together; returns how many chunks there are."""
    cdef ptrdiff_t chunks = 0, sequence, first = 0, tokens = call.starts[call.sequences]
    for sequence in range(1, call.sequences + 1):
        if (call.starts[sequence] - call.starts[first] >= CHUNK_TOKENS and tokens - call.starts[sequence] >= CHUNK_LEAST) or (
            sequence == call.sequences
        ):
            call.bounds[chunks], call.bounds[chunks + 1] = first, sequence
            chunks, first = chunks + 1, sequence
    return chunks


cdef Step step_of(const Call *call, ptrdiff_t first, ptrdiff_t stop) noexcept nogil:
    """Sequences first..stop-1 of a call."""
    cdef Step s
    cdef ptrdiff_t start = call.starts[first]
    memset(&s, 0, sizeof(s))
    s.model, s.tokens, s.sequences = call.model, call.starts[stop] - start, stop - first
    s.ids, s.x, s.call_starts = call.ids + start, call.hidden + start * call.model.dim, call.starts + first
    s.token_types = call.token_types + start if call.token_types != NULL else NULL
    return s


cdef inline ptrdiff_t padded(ptrdiff_t width) noexcept nogil:
    return (width + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH


cdef int prepare(Step *s) except -1 nogil:
    """The call's memory, in one piece, and attention's tasks."""
    cdef const Model *m = s.model
    cdef ptrdiff_t width = m.heads * m.head_dim, widest = max(m.dim, max(m.hidden, width)), longest = 0, sequence, t, head, start, time
    cdef char *memory
    for sequence in range(s.sequences):
        time = s.call_starts[sequence + 1] - s.call_starts[sequence]
        longest = max(longest, time)
        s.tasks += m.heads * ((time + QUERY_TILE - 1) // QUERY_TILE)
    s.span = longest + PAGE_KEYS  # a block of keys may reach past the sequence's end
    memory = <char *>pool_shared(
        lines(2 * s.tokens) + lines(s.tokens * m.dim) + 4 * lines(s.tokens * width)
        + lines(m.heads * 2 * s.span if m.relative != NULL else 0) + bench_bytes(s.tokens, m.hidden, widest)
        + lines(s.tasks * sizeof(AttendTask) // sizeof(float))
    )
    s.position_of, s.normed = <int64_t *>take_floats(&memory, 2 * s.tokens), take_floats(&memory, s.tokens * m.dim)
    s.q, s.k = take_floats(&memory, s.tokens * width), take_floats(&memory, s.tokens * width)
    s.v, s.attended = take_floats(&memory, s.tokens * width), take_floats(&memory, s.tokens * width)
    if m.relative != NULL:
        s.added = take_floats(&memory, m.heads * 2 * s.span)
    carve_bench(&s.bench, &memory, s.tokens, m.hidden, widest)
    s.task = <AttendTask *>take_floats(&memory, s.tasks * sizeof(AttendTask) // sizeof(float))
    s.tasks = 0
    for sequence in range(s.sequences):
        start, time = s.call_starts[sequence] - s.call_starts[0], s.call_starts[sequence + 1] - s.call_starts[sequence]
        for t in range(time):
            s.position_of[start + t] = t
        for head in range(m.heads):
            t = 0
            while t < time:
                s.task[s.tasks].start, s.task[s.tasks].stop = start, start + time
                s.task[s.tasks].first, s.task[s.tasks].head = t, head
                s.tasks += 1
                t += QUERY_TILE
    if m.relative != NULL:
        for head in range(m.heads):
            for t in range(2 * s.span):  # the distance t - span, key minus query
                s.added[head * 2 * s.span + t] = m.relative[
                    head * (2 * m.distance + 1) + max(-m.distance, min(m.distance, t - s.span)) + m.distance
                ]
    return 0


# ---- embedding ----

cdef void embed_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef ptrdiff_t t
    cdef float *x
    for t in range(task * ROWS_A_BLOCK, min(s.tokens, (task + 1) * ROWS_A_BLOCK)):
        x = s.x + t * m.dim
        matrix_row(&m.embedding, s.ids[t], x)
        if m.positions != NULL:
            add_row(x, m.positions + s.position_of[t] * m.dim, m.dim)
        if m.token_types != NULL:
            add_row(x, m.token_types + (s.token_types[t] if s.token_types != NULL else 0) * m.dim, m.dim)
        if m.embedding_norm.present:
            norm_row(&m.embedding_norm, x, x, m.dim, False)


cdef inline void add_row(float *x, const float *row, ptrdiff_t width) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(width):
        x[i] += row[i]


# ---- attention ----

cdef void turn_block(void *argument, ptrdiff_t task) noexcept nogil:
    """For a block of tokens: q and k turned by their positions."""
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef ptrdiff_t t, head, width = m.heads * m.head_dim
    for t in range(task * ROWS_A_BLOCK, min(s.tokens, (task + 1) * ROWS_A_BLOCK)):
        for head in range(m.heads):
            turn(s.layer, s.q + t * width + head * m.head_dim, s.position_of[t])
            turn(s.layer, s.k + t * width + head * m.head_dim, s.position_of[t])


cdef inline void turn(const Layer *layer, float *x, ptrdiff_t position) noexcept nogil:
    cdef const float *cos = layer.cos + position * layer.half
    cdef const float *sin = layer.sin + position * layer.half
    cdef ptrdiff_t i
    cdef float first
    for i in range(layer.half):
        first = x[i]
        x[i] = first * cos[i] - x[layer.half + i] * sin[i]
        x[layer.half + i] = x[layer.half + i] * cos[i] + first * sin[i]


cdef inline void turn_keys(const float *k, ptrdiff_t row, ptrdiff_t keys, ptrdiff_t head_dim, float *across) noexcept nogil:
    """across [head_dim, PAGE_KEYS] = k [keys, head_dim], rows `row` apart; zeros up to a whole vector of keys: what lay there
    before might be numbers so small that products of them take hundreds of cycles."""
    cdef float square[VF_WIDTH * VF_WIDTH]
    cdef ptrdiff_t i = 0, d, j, count
    while i < keys:
        count, d = min(VF_WIDTH, keys - i), 0
        while d + VF_WIDTH <= head_dim:
            if count == VF_WIDTH:
                vf_transpose(k + i * row + d, row, across + d * PAGE_KEYS + i, PAGE_KEYS)
            else:
                for j in range(VF_WIDTH):
                    vf_store(square + j * VF_WIDTH, vf_load(k + (i + j) * row + d) if j < count else vf_zero())
                vf_transpose(square, VF_WIDTH, across + d * PAGE_KEYS + i, PAGE_KEYS)
            d += VF_WIDTH
        while d < head_dim:
            for j in range(VF_WIDTH):
                across[d * PAGE_KEYS + i + j] = k[(i + j) * row + d] if j < count else 0
            d += 1
        i += VF_WIDTH


cdef void attend_block(void *argument, ptrdiff_t index) noexcept nogil:
    """A tile of queries of one head against all keys of their sequence, PAGE_KEYS at a time."""
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef const AttendTask *task = &s.task[index]
    cdef ptrdiff_t width = m.heads * m.head_dim, dim = padded(m.head_dim), time = task.stop - task.start
    cdef ptrdiff_t rows = min(QUERY_TILE, time - task.first), window = s.layer.window, block, keys, row, i, d, query
    cdef const float *q = s.q + (task.start + task.first) * width + task.head * m.head_dim
    cdef const float *k = s.k + task.start * width + task.head * m.head_dim
    cdef const float *v = s.v + task.start * width + task.head * m.head_dim
    cdef float *out = s.attended + (task.start + task.first) * width + task.head * m.head_dim
    cdef float *queries = <float *>pool_scratch(sizeof(float) * (rows * (2 * dim + 2) + PAGE_KEYS * (m.head_dim + dim)))
    cdef float *keys_across = queries + rows * dim
    cdef float *values = keys_across + PAGE_KEYS * m.head_dim
    cdef Gathered g
    cdef Page page
    cdef ptrdiff_t first[ATTEND_ROWS]
    cdef ptrdiff_t end[ATTEND_ROWS]
    cdef const float *added[ATTEND_ROWS]
    g.blend, g.dim = values + PAGE_KEYS * dim, dim
    g.totals = g.blend + rows * dim
    g.largest = g.totals + rows
    for row in range(rows):
        for d in range(m.head_dim):
            queries[row * dim + d] = q[row * width + d] * m.attention_scale
        memset(queries + row * dim + m.head_dim, 0, sizeof(float) * (dim - m.head_dim))
        g.totals[row], g.largest[row] = 0, -INFINITY
    memset(g.blend, 0, sizeof(float) * rows * dim)
    memset(&page, 0, sizeof(page))
    page.type, page.keys, page.values, page.value_row = PAGES_FLOAT32, <char *>keys_across, <char *>values, dim

    block = max(0, task.first - window) // PAGE_KEYS * PAGE_KEYS if window else 0
    while block < (min(time, task.first + rows + window) if window else time):
        keys = min(PAGE_KEYS, time - block)
        turn_keys(k + block * width, width, keys, m.head_dim, keys_across)
        if dim == m.head_dim:  # values can be read where they lie
            page.values, page.value_row = <char *>(v + block * width), width
        else:
            for i in range(keys):
                memcpy(values + i * dim, v + (block + i) * width, sizeof(float) * m.head_dim)
                memset(values + i * dim + m.head_dim, 0, sizeof(float) * (dim - m.head_dim))
        row = 0
        while row < rows:
            for i in range(min(ATTEND_ROWS, rows - row)):
                query = task.first + row + i
                first[i] = max(0, query - window - block) if window else 0
                end[i] = max(0, min(keys, query + window + 1 - block)) if window else keys
                if s.added != NULL:
                    added[i] = s.added + task.head * 2 * s.span + s.span + block - query
            attend_page(&g, row, min(ATTEND_ROWS, rows - row), queries, &page, m.head_dim, 0, first, end,
                        added if s.added != NULL else NULL)
            row += ATTEND_ROWS
        block += PAGE_KEYS

    for row in range(rows):
        for d in range(m.head_dim):
            out[row * width + d] = g.blend[row * dim + d] / g.totals[row]
