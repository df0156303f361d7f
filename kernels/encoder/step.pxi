# One call of an encoder: an EncoderSpec as structs, the buffers of its tokens, and attention within each sequence, both
# ways. A task of attention is a tile of one sequence's queries in one head; its numbers depend on its own sequence only.

cdef extern from "decoder/attend_tile.h" nogil:
    enum: BLOCK_KEYS
    enum: ATTEND_TILE_ROWS
    enum: FAST_PAIRS
    ctypedef struct Gathered:
        float *blend
        float *totals
        float *largest
        ptrdiff_t dim
    ctypedef struct KeyBlock:
        ptrdiff_t dim, depth, rows
    ptrdiff_t whole_vectors(ptrdiff_t numbers)
    ptrdiff_t key_block_floats(ptrdiff_t head_dim)
    KeyBlock carve_key_block(float *memory, ptrdiff_t most, ptrdiff_t head_dim, bint pairs, bint scales)
    void begin_block(const KeyBlock *b)
    void end_block(const KeyBlock *b)
    void query_words(const KeyBlock *b, const float *q, float scale, float *out)
    void block_from_rows(const KeyBlock *b, const float *k, const float *v, ptrdiff_t row, ptrdiff_t keys)
    void attend_tile(const Gathered *g, ptrdiff_t row, ptrdiff_t rows, const float *queries, const KeyBlock *b, float softcap,
                     const ptrdiff_t *first, const ptrdiff_t *end, const float **added)

cdef enum:
    QUERY_TILE = 128  # queries a task: they share the copy of their keys and values
    CHUNK_TOKENS = 128  # of the sequences that one thread takes through all layers: their activations stay in L2
    CHUNKS_A_THREAD = 2  # fewer, and all threads share every layer instead: the last ones would wait too long
    CHUNKS_LEFT = 3  # a thread: the tokens that are left make so many, smaller ones in the end, so that all end at about the same time
    LAST_CHUNK_TOKENS = 32  # but not smaller than that
    CHUNK_LEAST = 8  # tokens: below that products of few rows add up in another order


cdef struct Layer:
    Norm attention_norm, feedforward_norm
    Linear q, k, v, output, gate, up, down
    bint gated
    ptrdiff_t window  # 0: none
    bint pairs  # attention multiplies pairs of bfloat16: weights are not more exact than that either
    const float *cos  # [context, half] or NULL
    const float *sin
    ptrdiff_t half  # numbers of a head that turn, halved


cdef struct Model:
    ptrdiff_t dim, heads, head_dim, hidden, layers
    bint pre
    bint rounded  # all weights have one scale an output: what a map reads is rounded where it is made
    bint paired  # all are panels of bfloat16: so is this
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
    l.pairs = FAST_PAIRS and not in_floats(&l.q.weight)
    if layer.cos is not None:
        l.cos, l.sin, l.half = table_of(layer.cos), table_of(layer.sin), layer.cos.shape[1]
    return l


cdef bint is_rounded(const Model *m) noexcept nogil:
    """Whether run_rounded_layer (native.pyx) can run all layers."""
    return (
        layers_are(m, in_channels, False) and CHANNEL_FUSES and not m.pre and m.hidden % CHANNEL_GROUP == 0
        and m.embedding_norm.present
    )


cdef bint is_paired(const Model *m) noexcept nogil:
    """Whether run_layer can have norms and attention round what maps read."""
    return layers_are(m, in_pairs, True) and m.head_dim % 2 == 0


cdef bint layers_are(const Model *m, bint (*form)(const Matrix *) noexcept nogil, bint gated) noexcept nogil:
    """Whether all matrices of all layers lie so; gated: a gate is one of them, else there may be none."""
    cdef ptrdiff_t i
    cdef const Layer *l
    for i in range(m.layers):
        l = &m.layer[i]
        if not (form(&l.q.weight) and form(&l.k.weight) and form(&l.v.weight) and form(&l.output.weight)):
            return False
        if not (form(&l.up.weight) and form(&l.down.weight)) or l.gated and not (gated and form(&l.gate.weight)):
            return False
    return True


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
    float *attended  # the same, or pairs of it
    float *added  # [heads, 2 * span]: the relative numbers of every distance that occurs
    ptrdiff_t span
    Bench bench
    ChannelRows rounded  # x in 8 bits, if model.rounded
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
    """call.bounds: whole sequences of about CHUNK_TOKENS together, in the end of fewer; returns how many chunks there are."""
    cdef ptrdiff_t chunks = 0, sequence, first = 0, tokens = call.starts[call.sequences], left, wanted
    for sequence in range(1, call.sequences + 1):
        left = tokens - call.starts[first]
        wanted = min(CHUNK_TOKENS, max(LAST_CHUNK_TOKENS, left // (CHUNKS_LEFT * pool_threads())))
        if (call.starts[sequence] - call.starts[first] >= wanted and tokens - call.starts[sequence] >= CHUNK_LEAST) or (
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


cdef int prepare(Step *s) except -1 nogil:
    """The call's memory, in one piece, and attention's tasks."""
    cdef const Model *m = s.model
    cdef ptrdiff_t width = m.heads * m.head_dim, widest = max(m.dim, max(m.hidden, width)), longest = 0, sequence, t, head, start, time
    cdef char *memory
    for sequence in range(s.sequences):
        time = s.call_starts[sequence + 1] - s.call_starts[sequence]
        longest = max(longest, time)
        s.tasks += m.heads * ((time + QUERY_TILE - 1) // QUERY_TILE)
    s.span = longest + 2 * VF_WIDTH  # a block's vectors of keys may reach past the sequence's end
    memory = <char *>pool_shared(
        lines(2 * s.tokens) + lines(s.tokens * m.dim) + 4 * lines(s.tokens * width)
        + lines(m.heads * 2 * s.span if m.relative != NULL else 0) + bench_bytes(s.tokens, m.hidden, widest)
        + lines(s.tasks * sizeof(AttendTask) // sizeof(float)) + lines((channel_bytes(s.tokens, m.dim) + 3) // 4)
    )
    s.position_of, s.normed = <int64_t *>take_floats(&memory, 2 * s.tokens), take_floats(&memory, s.tokens * m.dim)
    s.q, s.k = take_floats(&memory, s.tokens * width), take_floats(&memory, s.tokens * width)
    s.v, s.attended = take_floats(&memory, s.tokens * width), take_floats(&memory, s.tokens * width)
    if m.relative != NULL:
        s.added = take_floats(&memory, m.heads * 2 * s.span)
    carve_bench(&s.bench, &memory, s.tokens, m.hidden, widest)
    s.task = <AttendTask *>take_floats(&memory, s.tasks * sizeof(AttendTask) // sizeof(float))
    s.rounded = carve_channel(take_floats(&memory, (channel_bytes(s.tokens, m.dim) + 3) // 4), s.tokens, m.dim)
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
        if m.rounded:
            round_channel_row(x, m.dim, &s.rounded, t)
        if m.paired:
            row_along(x, m.dim, s.bench.pairs + t * halved(m.dim))


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


cdef void attend_block(void *argument, ptrdiff_t index) noexcept nogil:
    """A tile of queries of one head against all keys of their sequence, BLOCK_KEYS at a time."""
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef const AttendTask *task = &s.task[index]
    cdef ptrdiff_t width = m.heads * m.head_dim, dim = whole_vectors(m.head_dim), time = task.stop - task.start
    cdef ptrdiff_t rows = min(QUERY_TILE, time - task.first), window = s.layer.window, block, keys, row, i, query, query_row
    cdef const float *q = s.q + (task.start + task.first) * width + task.head * m.head_dim
    cdef const float *k = s.k + task.start * width + task.head * m.head_dim
    cdef const float *v = s.v + task.start * width + task.head * m.head_dim
    cdef float *queries = <float *>pool_scratch(sizeof(float) * (rows * (2 * dim + 2) + key_block_floats(m.head_dim)))
    cdef Gathered g
    cdef KeyBlock seen
    cdef ptrdiff_t first[ATTEND_TILE_ROWS]
    cdef ptrdiff_t end[ATTEND_TILE_ROWS]
    cdef const float *added[ATTEND_TILE_ROWS]
    g.blend, g.dim = queries + rows * dim, dim
    g.totals = g.blend + rows * dim
    g.largest = g.totals + rows
    seen = carve_key_block(g.largest + rows, min(BLOCK_KEYS, time), m.head_dim, s.layer.pairs, False)
    query_row = whole_vectors(seen.depth)
    for row in range(rows):
        query_words(&seen, q + row * width, m.attention_scale, queries + row * query_row)
        g.totals[row], g.largest[row] = 0, -INFINITY
    memset(g.blend, 0, sizeof(float) * rows * dim)

    begin_block(&seen)
    block = max(0, task.first - window) // BLOCK_KEYS * BLOCK_KEYS if window else 0
    while block < (min(time, task.first + rows + window) if window else time):
        keys = min(BLOCK_KEYS, time - block)
        block_from_rows(&seen, k + block * width, v + block * width, width, keys)
        row = 0
        while row < rows:
            for i in range(min(seen.rows, rows - row)):
                query = task.first + row + i
                first[i] = max(0, query - window - block) if window else 0
                end[i] = max(0, min(keys, query + window + 1 - block)) if window else keys
                if s.added != NULL:
                    added[i] = s.added + task.head * 2 * s.span + s.span + block - query
            attend_tile(&g, row, min(seen.rows, rows - row), queries, &seen, 0, first, end,
                        added if s.added != NULL else NULL)
            row += seen.rows
        block += BLOCK_KEYS
    end_block(&seen)

    for row in range(rows):
        finish_row(m, g.blend + row * dim, 1 / g.totals[row], s.attended, task.start + task.first + row, task.head)


cdef inline void finish_row(const Model *m, const float *blend, float factor, float *attended, ptrdiff_t token,
                            ptrdiff_t head) noexcept nogil:
    """attended, or pairs of it, = blend [head_dim] times factor, at its place."""
    cdef ptrdiff_t step = 2 * VF_WIDTH if m.paired else VF_WIDTH, halves = 2 if m.paired else 1, d
    cdef float *out = attended + (token * m.heads + head) * m.head_dim // halves
    cdef vf first, second
    for d from 0 <= d < m.head_dim by step:
        first = vf_mul(vf_load(blend + d), vf_set(factor))
        if m.paired:
            second = vf_mul(load_part(blend + d + VF_WIDTH, max(0, m.head_dim - d - VF_WIDTH)), vf_set(factor))
            first = bf16_neighbours(first, second)
        store_part(out + d // halves, first, (m.head_dim - d) // halves)
