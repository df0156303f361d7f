# What forward and backward share: where arrays lie, which keys a query sees, one row of a tile of scores.

cdef enum:
    QUERY_TILE = 64


cdef struct View:
    float *data
    ptrdiff_t batch, head, row  # strides, in floats


cdef struct Attention:
    View q, k, v, out, d_out, d_q, d_k, d_v
    float *log_sum_exp  # [batch, heads, queries]
    float *delta
    float *d_q_parts  # [parts, batch, heads, queries, dim], when parts > 1
    const float *bias  # [heads, distances] or NULL; a distance of 0 stands at reach
    float *d_bias  # [heads, distances] or NULL
    float *d_bias_parts  # [parts, sequences, heads, distances]
    ptrdiff_t distances, reach
    const int64_t *spans
    ptrdiff_t sequences, batch, heads, kv_heads, queries, head_dim, dim  # dim: head_dim padded to full vectors
    ptrdiff_t query_tiles, parts, part_keys
    float scale
    ptrdiff_t before, after  # how far a query sees to either side, or -1: all of it
    bint drop
    uint64_t seed
    uint32_t threshold
    float keep
    bint pairs  # products of pairs of bfloat16, each pair a word; otherwise words are floats
    bint tiles  # products are made by AMX: whole tiles, zeros where nothing is
    bint split  # so are those of floats, each in three parts (parts.h)
    ptrdiff_t depth, words  # words that a row of head_dim takes, and those padded to full vectors; in parts: floats that it takes
    ptrdiff_t steps  # of head_dim, in parts
    ptrdiff_t room  # floats that a row takes in the roomiest of the forms in which products read it
    ptrdiff_t group  # rows that a small product makes together; an even number
    ptrdiff_t vector  # columns of scores that are made together, VF_WIDTH or twice that (a power of two)


# One sequence: where it stands, and how many queries face how many keys.
cdef struct Span:
    ptrdiff_t sequence, batch, q_start, nq, k_start, nk


# Columns of a tile of keys: those that a query (or any of a group) sees, first..end-1.
cdef struct Range:
    ptrdiff_t first, end


cdef inline View view_of(const float[:, :, :, :] x) noexcept:
    cdef View view
    view.data = <float *>&x[0, 0, 0, 0]
    view.batch, view.head, view.row = x.strides[0] // 4, x.strides[1] // 4, x.strides[2] // 4
    return view


cdef inline float *row_of(View *view, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row) noexcept nogil:
    return view.data + batch * view.batch + head * view.head + row * view.row


cdef int set_options(Attention *op, const float[:, :, :, :] q, const float[:, :, :, :] k, const int64_t[:, ::1] spans,
                     double scale, ptrdiff_t before, ptrdiff_t after, const float[:, ::1] bias, double dropout, uint64_t seed,
                     bint pairs) except -1:
    op.spans, op.sequences = &spans[0, 0] if spans.shape[0] > 0 else NULL, spans.shape[0]
    op.batch, op.heads, op.queries, op.head_dim = q.shape[0], q.shape[1], q.shape[2], q.shape[3]
    op.kv_heads = k.shape[1]
    op.dim = (op.head_dim + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH
    op.scale, op.before, op.after = scale, before, after
    if bias.shape[0] > 0:
        op.bias, op.distances, op.reach = &bias[0, 0], bias.shape[1], bias.shape[1] // 2
    op.drop, op.seed = dropout > 0, seed
    op.threshold, op.keep = keep_threshold(dropout), keep_scale(dropout)
    op.pairs, op.depth = pairs, (op.head_dim + 1) // 2 if pairs else op.head_dim
    op.words = (op.depth + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH
    op.tiles, op.split, op.group, op.vector = AMX, AMX and not pairs, VALUE_ROWS, VF_WIDTH
    if op.tiles:
        op.depth, op.group, op.vector = op.words, MOST_ROWS, 2 * AMX_WORDS
    if op.split:
        op.steps = (op.head_dim + PARTS_STEP - 1) // PARTS_STEP
        op.words = op.steps * PARTS_FLOATS // PARTS_TILE
    op.room = max(op.dim, op.words)
    return 0


cdef inline Span span_of(const Attention *op, ptrdiff_t sequence) noexcept nogil:
    cdef Span span
    cdef const int64_t *row = op.spans + 5 * sequence
    span.sequence, span.batch = sequence, row[0]
    span.q_start, span.nq = row[1], row[2] - row[1]
    span.k_start, span.nk = row[3], row[4] - row[3]
    return span


cdef inline ptrdiff_t first_visible(const Attention *op, const Span *span, ptrdiff_t query) noexcept nogil:
    """The first key that this query of the sequence sees."""
    if op.before >= 0:
        return max(0, span.nk - span.nq + query - op.before)
    return 0


cdef inline ptrdiff_t visible_end(const Attention *op, const Span *span, ptrdiff_t query) noexcept nogil:
    """One past the last key that this query sees."""
    if op.after >= 0:
        return max(0, min(span.nk, span.nk - span.nq + query + op.after + 1))
    return span.nk


cdef inline Range seen_by(const Attention *op, const Span *span, ptrdiff_t query, ptrdiff_t count, ptrdiff_t key,
                          ptrdiff_t keys) noexcept nogil:
    """Columns of the tile [key, key + keys) that some of the queries [query, query + count) see."""
    cdef Range columns
    columns.first = max(0, first_visible(op, span, query) - key)
    columns.end = min(keys, visible_end(op, span, query + count - 1) - key)
    return columns


cdef inline Range whole_vectors(const Attention *op, Range columns) noexcept nogil:
    cdef Range wide
    wide.first = columns.first & -op.vector
    wide.end = (columns.end + op.vector - 1) & -op.vector
    return wide


# ---- one row of a tile of scores, columns wide.first..wide.end-1 ----

cdef inline ptrdiff_t bias_place(const Attention *op, const Span *span, ptrdiff_t query, ptrdiff_t key) noexcept nogil:
    """Where in a head's row of biases this key's stands."""
    return op.reach + key - (span.nk - span.nq + query)


cdef inline void add_bias(const Attention *op, const Span *span, ptrdiff_t head, ptrdiff_t query, ptrdiff_t key, Range seen,
                          float *scores) noexcept nogil:
    cdef const float *bias = op.bias + head * op.distances + bias_place(op, span, query, key)
    cdef ptrdiff_t j
    for j in range(seen.first, seen.end):
        scores[j] += bias[j]


cdef inline void hide(float *scores, Range wide, Range seen) noexcept nogil:
    """-inf outside of what is seen."""
    cdef ptrdiff_t j = wide.first
    if seen.first <= wide.first and seen.end >= wide.end:
        return
    while j < wide.end:
        if j < seen.first or j + VF_WIDTH > seen.end:
            vf_store(scores + j, vf_only(vf_load(scores + j), seen.first - j, seen.end - j))
        j += VF_WIDTH


cdef inline void scale_row(float *row, float factor, ptrdiff_t count) noexcept nogil:
    cdef vf factors = vf_set(factor)
    cdef ptrdiff_t j = 0
    while j < count:
        vf_store(row + j, vf_mul(vf_load(row + j), factors))
        j += VF_WIDTH


cdef inline void drop_row(const Attention *op, const Span *span, ptrdiff_t head, ptrdiff_t query, ptrdiff_t key,
                          float *kept) noexcept nogil:
    """kept [KEY_TILE] = 0 where the weight of a key of this tile is dropped, 1 / (1 - rate) where it is kept."""
    cdef uint32_t words[KEY_TILE]
    cdef ptrdiff_t j
    philox_batch(op.seed, <uint32_t>(key // 4), <uint32_t>query, <uint32_t>head, <uint32_t>span.sequence, words)
    for j in range(KEY_TILE):
        kept[j] = op.keep if words[j] >= op.threshold else 0
