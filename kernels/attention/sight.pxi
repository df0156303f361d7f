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
    const int64_t *spans
    ptrdiff_t sequences, batch, heads, kv_heads, queries, head_dim, dim  # dim: head_dim padded to full vectors
    ptrdiff_t query_tiles, parts, part_keys
    float scale
    bint causal
    ptrdiff_t window
    bint drop
    uint64_t seed
    uint32_t threshold
    float keep
    bint pairs  # products of pairs of bfloat16, each pair a word; otherwise words are floats
    ptrdiff_t depth, words  # words that a row of head_dim takes, and those padded to full vectors
    bint tiles  # pairs are multiplied by AMX: whole tiles of words, zeros where nothing is
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
                     double scale, bint causal, ptrdiff_t window, double dropout, uint64_t seed,
                     bint pairs) except -1:
    op.spans, op.sequences = &spans[0, 0] if spans.shape[0] > 0 else NULL, spans.shape[0]
    op.batch, op.heads, op.queries, op.head_dim = q.shape[0], q.shape[1], q.shape[2], q.shape[3]
    op.kv_heads = k.shape[1]
    op.dim = (op.head_dim + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH
    op.scale, op.causal, op.window = scale, causal or window > 0, window
    op.drop, op.seed = dropout > 0, seed
    op.threshold, op.keep = keep_threshold(dropout), keep_scale(dropout)
    op.pairs, op.depth = pairs, (op.head_dim + 1) // 2 if pairs else op.head_dim
    op.words = (op.depth + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH
    op.tiles, op.group, op.vector = AMX and pairs, VALUE_ROWS, VF_WIDTH
    if op.tiles:
        op.depth, op.group, op.vector = op.words, MOST_ROWS, 2 * AMX_WORDS
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
    if op.window > 0:
        return max(0, span.nk - span.nq + query - op.window + 1)
    return 0


cdef inline ptrdiff_t visible_end(const Attention *op, const Span *span, ptrdiff_t query) noexcept nogil:
    """One past the last key that this query sees."""
    if op.causal:
        return max(0, min(span.nk, span.nk - span.nq + query + 1))
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


# ---- words: floats or pairs ----

cdef inline Range words_of(const Attention *op, Range items) noexcept nogil:
    """The words that hold these columns or rows; the other half of a pair, and of a tile, is zero or meets a weight of zero."""
    if op.tiles:
        items = whole_vectors(op, items)
    if op.pairs:
        items.first, items.end = items.first // 2, (items.end + 1) // 2
    return items


cdef inline void multiply_group(const Attention *op, const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows,
                                const float *b, ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, ptrdiff_t columns,
                                ptrdiff_t depth, bint add) noexcept nogil:
    if op.tiles:  # a_step is 1
        wide_tiles_of_pairs(rows, columns, a, a_row, b, b_stride, depth, c, c_stride, add)
    elif op.pairs:
        multiply_pairs(a, a_row, a_step, rows, b, b_stride, c, c_stride, columns, depth, add)
    else:
        multiply_floats(a, a_row, a_step, rows, b, b_stride, c, c_stride, columns, depth, add)


cdef inline void pack_along(const Attention *op, const float *x, ptrdiff_t stride, ptrdiff_t count, float factor,
                            float *out) noexcept nogil:
    """out [count, words]: rows times factor, for products that add up over head_dim."""
    if op.pairs:
        pack_neighbours(x, stride, count, op.head_dim, factor, out, op.words)
    else:
        pack_rows(x, stride, count, op.head_dim, factor, out, op.words)


cdef inline void pack_across(const Attention *op, const float *x, ptrdiff_t stride, ptrdiff_t count, float factor,
                             float *out) noexcept nogil:
    """out [count or count / 2, dim]: the same rows for products that add up over them; of tiles a whole number."""
    cdef ptrdiff_t rows = (count + 1) // 2
    if op.pairs:
        pack_couples(x, stride, count, op.head_dim, factor, out, op.dim)
        if op.tiles:
            memset(out + rows * op.dim, 0, sizeof(float) * ((rows + AMX_WORDS - 1) // AMX_WORDS * AMX_WORDS - rows) * op.dim)
    else:
        pack_rows(x, stride, count, op.head_dim, factor, out, op.dim)


cdef inline void pack_turned(const Attention *op, const float *x, ptrdiff_t stride, ptrdiff_t count, float *rounded,
                             float *out) noexcept nogil:
    """out [depth, KEY_TILE]: pack_along's rows as columns; rounded [KEY_TILE, words] is scratch."""
    if op.pairs:
        pack_neighbours(x, stride, count, op.head_dim, 1, rounded, op.words)
        pack_transposed(rounded, op.words, count, op.depth, out, KEY_TILE)
    else:
        pack_transposed(x, stride, count, op.head_dim, out, KEY_TILE)


# ---- one row of a tile of scores, columns wide.first..wide.end-1 ----

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
