"""Attention in Cython: tiles of queries meet tiles of keys in a thread's scratch. Shapes and meaning: reference.py.

Forward: a task is (sequence, head, tile of queries), with an online softmax over its tiles of keys. Backward: a task is
(sequence, kv head), which sums d_k, d_v over the heads of its group in order. So every number has one writer and one
order of sums. Source of the tiles: Dao et al. 2022 (arXiv 2205.14135).
"""

include "vec.pxi"

from libc.math cimport INFINITY, expf, logf
from libc.string cimport memset

from fastmixer.kernels.philox import keep_scale, keep_threshold

cdef extern from "attention/tile.h" nogil:
    void multiply_small(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, ptrdiff_t b_stride, float *c,
                        ptrdiff_t c_stride, ptrdiff_t m, ptrdiff_t columns, ptrdiff_t depth, int add)
    void pack_rows(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float *out, ptrdiff_t out_stride)
    void pack_transposed(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float *out,
                         ptrdiff_t out_stride)

cdef extern from "philox.h" nogil:
    void philox_batch(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random)

cdef enum:
    QUERY_TILE = 64
    KEY_TILE = 64  # as many as philox_batch has words; scores [64, 64], keys and values of 64 fit L1 and a corner of L2


cdef struct View:
    float *data
    ptrdiff_t batch, head, row  # strides, in floats


cdef struct Attention:
    View q, k, v, out, d_out, d_q, d_k, d_v
    float *log_sum_exp  # [batch, heads, queries]
    float *delta
    const int64_t *spans
    ptrdiff_t heads, kv_heads, queries, head_dim, padded_dim, query_tiles
    float scale
    bint causal
    ptrdiff_t window
    bint drop
    uint64_t seed
    uint32_t threshold
    float keep


# One sequence: where it stands, and how many queries face how many keys.
cdef struct Span:
    ptrdiff_t sequence, batch, q_start, nq, k_start, nk


cdef inline View view_of(const float[:, :, :, :] x) noexcept:
    cdef View view
    view.data = <float *>&x[0, 0, 0, 0]
    view.batch, view.head, view.row = x.strides[0] // 4, x.strides[1] // 4, x.strides[2] // 4
    return view


cdef inline float *row_of(View *view, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row) noexcept nogil:
    return view.data + batch * view.batch + head * view.head + row * view.row


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


# ---- one row of a tile of scores ----

cdef inline void hide(float *scores, ptrdiff_t first, ptrdiff_t end) noexcept nogil:
    """-inf outside first..end-1 of a row of KEY_TILE scores."""
    cdef ptrdiff_t j
    for j in range(0, min(KEY_TILE, first)):
        scores[j] = -INFINITY
    for j in range(max(0, end), KEY_TILE):
        scores[j] = -INFINITY


cdef inline float tile_largest(const float *scores) noexcept nogil:
    cdef vf largest = vf_load(scores)
    cdef ptrdiff_t j = VF_WIDTH
    while j < KEY_TILE:
        largest = vf_max(largest, vf_load(scores + j))
        j += VF_WIDTH
    return vf_largest(largest)


cdef inline float exponentials(float *scores, float shift) noexcept nogil:
    """scores = exp(scores - shift), a row; returns its sum."""
    cdef vf total = vf_zero(), value, shifts = vf_set(shift)
    cdef ptrdiff_t j = 0
    while j < KEY_TILE:
        value = vf_exp(vf_sub(vf_load(scores + j), shifts))
        vf_store(scores + j, value)
        total = vf_add(total, value)
        j += VF_WIDTH
    return vf_sum(total)


cdef inline void scale_row(float *row, float factor, ptrdiff_t count) noexcept nogil:
    cdef vf factors = vf_set(factor)
    cdef ptrdiff_t j = 0
    while j < count:
        vf_store(row + j, vf_mul(vf_load(row + j), factors))
        j += VF_WIDTH


cdef inline void kept_row(const Attention *op, const Span *span, ptrdiff_t head, ptrdiff_t query, ptrdiff_t key,
                          float *kept) noexcept nogil:
    """0 where the weight of a key of this tile is dropped, 1 / (1 - rate) where it is kept."""
    cdef uint32_t words[KEY_TILE]
    cdef ptrdiff_t j
    philox_batch(op.seed, <uint32_t>(key // 4), <uint32_t>query, <uint32_t>head, <uint32_t>span.sequence, words)
    for j in range(KEY_TILE):
        kept[j] = op.keep if words[j] >= op.threshold else 0


# ---- forward ----

def attention_forward(const float[:, :, :, :] q, const float[:, :, :, :] k, const float[:, :, :, :] v,
                      const int64_t[:, ::1] spans, double scale, bint causal, ptrdiff_t window, double dropout,
                      uint64_t seed, float[:, :, :, :] out, float[:, :, ::1] log_sum_exp):
    cdef Attention op
    cdef ptrdiff_t tasks, sequence, longest = 0
    memset(&op, 0, sizeof(op))
    set_options(&op, q, k, spans, scale, causal, window, dropout, seed)
    op.q, op.k, op.v, op.out = view_of(q), view_of(k), view_of(v), view_of(out)
    op.log_sum_exp = &log_sum_exp[0, 0, 0]
    for sequence in range(spans.shape[0]):
        longest = max(longest, spans[sequence, 2] - spans[sequence, 1])
    op.query_tiles = (longest + QUERY_TILE - 1) // QUERY_TILE
    tasks = spans.shape[0] * op.heads * op.query_tiles
    with nogil:
        pool_run(forward_tile, &op, tasks)


cdef int set_options(Attention *op, const float[:, :, :, :] q, const float[:, :, :, :] k, const int64_t[:, ::1] spans,
                     double scale, bint causal, ptrdiff_t window, double dropout, uint64_t seed) except -1:
    op.spans = &spans[0, 0] if spans.shape[0] > 0 else NULL
    op.heads, op.queries, op.head_dim = q.shape[1], q.shape[2], q.shape[3]
    op.kv_heads = k.shape[1]
    op.padded_dim = (op.head_dim + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH
    op.scale, op.causal, op.window = scale, causal or window > 0, window
    op.drop, op.seed = dropout > 0, seed
    op.threshold, op.keep = keep_threshold(dropout), keep_scale(dropout)
    return 0


cdef void forward_tile(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Attention *op = <Attention *>argument
    # the last tiles of a causal sequence are the longest: they go first
    cdef ptrdiff_t tile = op.query_tiles - 1 - task % op.query_tiles
    cdef ptrdiff_t head = task // op.query_tiles % op.heads
    cdef Span span = span_of(op, task // op.query_tiles // op.heads)
    cdef ptrdiff_t first = tile * QUERY_TILE, count = min(QUERY_TILE, span.nq - first)
    cdef ptrdiff_t kv_head = head // (op.heads // op.kv_heads), dim = op.padded_dim, i, key, key_end, keys
    cdef float largest[QUERY_TILE]
    cdef float total[QUERY_TILE]
    cdef float kept[KEY_TILE]
    cdef float new_largest, shift, correction
    cdef float *scratch
    cdef float *scores
    cdef float *key_tile
    cdef float *value_tile
    cdef float *blend
    cdef float *weights
    if count <= 0:
        return
    scratch = <float *>pool_scratch(sizeof(float) * (QUERY_TILE * KEY_TILE + (2 * KEY_TILE + QUERY_TILE) * dim))
    scores = scratch
    key_tile = scores + QUERY_TILE * KEY_TILE
    value_tile = key_tile + KEY_TILE * dim
    blend = value_tile + KEY_TILE * dim
    memset(blend, 0, sizeof(float) * QUERY_TILE * dim)
    for i in range(count):
        largest[i], total[i] = -INFINITY, 0

    key = first_visible(op, &span, first) // KEY_TILE * KEY_TILE
    key_end = visible_end(op, &span, first + count - 1)
    while key < key_end:
        keys = min(KEY_TILE, span.nk - key)
        # scores = q k^T
        pack_transposed(row_of(&op.k, span.batch, kv_head, span.k_start + key), op.k.row, keys, op.head_dim, key_tile, KEY_TILE)
        multiply_small(row_of(&op.q, span.batch, head, span.q_start + first), op.q.row, 1, key_tile, KEY_TILE, scores,
                       KEY_TILE, count, KEY_TILE, op.head_dim, False)
        # online softmax: when a row's largest score grows, what was summed so far shrinks
        for i in range(count):
            weights = scores + i * KEY_TILE
            scale_row(weights, op.scale, KEY_TILE)
            hide(weights, first_visible(op, &span, first + i) - key,
                 min(keys, visible_end(op, &span, first + i) - key))
            new_largest = max(largest[i], tile_largest(weights))
            shift = 0 if new_largest == -INFINITY else new_largest
            if new_largest > largest[i] and total[i] > 0:
                correction = expf(largest[i] - shift)
                total[i] *= correction
                scale_row(blend + i * dim, correction, dim)
            largest[i] = new_largest
            total[i] += exponentials(weights, shift)
            if op.drop:
                kept_row(op, &span, head, first + i, key, kept)
                multiply_rows_by(weights, kept)
        # blend += weights v
        pack_rows(row_of(&op.v, span.batch, kv_head, span.k_start + key), op.v.row, keys, op.head_dim, value_tile, dim)
        multiply_small(scores, KEY_TILE, 1, value_tile, dim, blend, dim, count, dim, keys, True)
        key += KEY_TILE

    for i in range(count):
        finish_row(op, &span, head, first + i, blend + i * dim, largest[i], total[i])


cdef inline void multiply_rows_by(float *row, const float *factors) noexcept nogil:
    cdef ptrdiff_t j = 0
    while j < KEY_TILE:
        vf_store(row + j, vf_mul(vf_load(row + j), vf_load(factors + j)))
        j += VF_WIDTH


cdef inline void finish_row(Attention *op, const Span *span, ptrdiff_t head, ptrdiff_t query, const float *blend,
                            float largest, float total) noexcept nogil:
    """out = blend / total and log_sum_exp, or zeros and -inf for a query that saw no key."""
    cdef ptrdiff_t row = span.q_start + query, j
    cdef float *out = row_of(&op.out, span.batch, head, row)
    cdef float inverse = 0 if total == 0 else 1 / total
    for j in range(op.head_dim):
        out[j] = blend[j] * inverse
    op.log_sum_exp[(span.batch * op.heads + head) * op.queries + row] = (
        -INFINITY if total == 0 else largest + logf(total)
    )


# ---- backward ----

def attention_backward(const float[:, :, :, :] d_out, const float[:, :, :, :] q, const float[:, :, :, :] k,
                       const float[:, :, :, :] v, const float[:, :, :, :] out, const float[:, :, ::1] log_sum_exp,
                       const int64_t[:, ::1] spans, double scale, bint causal, ptrdiff_t window, double dropout,
                       uint64_t seed, float[:, :, ::1] delta, float[:, :, :, :] d_q, float[:, :, :, :] d_k,
                       float[:, :, :, :] d_v):
    cdef Attention op
    cdef ptrdiff_t tasks
    if q.shape[0] == 0 or q.shape[2] == 0 or k.shape[2] == 0:
        return  # nothing looked at anything: the face has zeroed what there is
    memset(&op, 0, sizeof(op))
    set_options(&op, q, k, spans, scale, causal, window, dropout, seed)
    op.q, op.k, op.v, op.out, op.d_out = view_of(q), view_of(k), view_of(v), view_of(out), view_of(d_out)
    op.d_q, op.d_k, op.d_v = view_of(d_q), view_of(d_k), view_of(d_v)
    op.log_sum_exp, op.delta = <float *>&log_sum_exp[0, 0, 0], &delta[0, 0, 0]
    tasks = spans.shape[0] * op.kv_heads
    with nogil:
        pool_run(backward_head, &op, tasks)


# What one task of backward works in: tiles of KEY_TILE or QUERY_TILE rows, padded to full vectors.
cdef struct Scratch:
    float *weights  # [QUERY_TILE, KEY_TILE]
    float *d_weights  # [QUERY_TILE, KEY_TILE]
    float *keys_t  # [head_dim, KEY_TILE]
    float *values_t  # [head_dim, KEY_TILE]
    float *keys  # [KEY_TILE, dim]
    float *d_keys  # [KEY_TILE, dim]
    float *d_values  # [KEY_TILE, dim]
    float *queries  # [QUERY_TILE, dim]
    float *d_outs  # [QUERY_TILE, dim]
    float *d_queries  # [group heads * nq, dim]


cdef inline Scratch carve(ptrdiff_t dim, ptrdiff_t rows) noexcept nogil:
    cdef Scratch s
    cdef float *place = <float *>pool_scratch(
        sizeof(float) * (2 * QUERY_TILE * KEY_TILE + (5 * KEY_TILE + 2 * QUERY_TILE + rows) * dim)
    )
    s.weights = place
    s.d_weights = s.weights + QUERY_TILE * KEY_TILE
    s.keys_t = s.d_weights + QUERY_TILE * KEY_TILE
    s.values_t = s.keys_t + KEY_TILE * dim
    s.keys = s.values_t + KEY_TILE * dim
    s.d_keys = s.keys + KEY_TILE * dim
    s.d_values = s.d_keys + KEY_TILE * dim
    s.queries = s.d_values + KEY_TILE * dim
    s.d_outs = s.queries + QUERY_TILE * dim
    s.d_queries = s.d_outs + QUERY_TILE * dim
    return s


cdef void backward_head(void *argument, ptrdiff_t task) noexcept nogil:
    """All gradients of one kv head in one sequence: for each tile of keys, the heads of its group, their tiles of queries."""
    cdef Attention *op = <Attention *>argument
    cdef ptrdiff_t kv_head = task % op.kv_heads, group = op.heads // op.kv_heads, dim = op.padded_dim
    cdef Span span = span_of(op, task // op.kv_heads)
    cdef Scratch s = carve(dim, group * span.nq)
    cdef ptrdiff_t key = 0, keys, head, first, count, i, member
    memset(s.d_queries, 0, sizeof(float) * group * span.nq * dim)
    for member in range(group):
        set_delta(op, &span, kv_head * group + member)

    while key < span.nk:
        keys = min(KEY_TILE, span.nk - key)
        pack_transposed(row_of(&op.k, span.batch, kv_head, span.k_start + key), op.k.row, keys, op.head_dim, s.keys_t, KEY_TILE)
        pack_transposed(row_of(&op.v, span.batch, kv_head, span.k_start + key), op.v.row, keys, op.head_dim, s.values_t, KEY_TILE)
        pack_rows(row_of(&op.k, span.batch, kv_head, span.k_start + key), op.k.row, keys, op.head_dim, s.keys, dim)
        memset(s.d_keys, 0, sizeof(float) * KEY_TILE * dim)
        memset(s.d_values, 0, sizeof(float) * KEY_TILE * dim)
        for member in range(group):
            head = kv_head * group + member
            first = 0
            while first < span.nq:
                count = min(QUERY_TILE, span.nq - first)
                if visible_end(op, &span, first + count - 1) > key and first_visible(op, &span, first) < key + keys:
                    backward_tile(op, &span, &s, head, first, count, key, keys, s.d_queries + (member * span.nq + first) * dim)
                first += QUERY_TILE
        for i in range(keys):
            copy_row(row_of(&op.d_k, span.batch, kv_head, span.k_start + key + i), s.d_keys + i * dim, op.head_dim)
            copy_row(row_of(&op.d_v, span.batch, kv_head, span.k_start + key + i), s.d_values + i * dim, op.head_dim)
        key += KEY_TILE

    for member in range(group):
        for i in range(span.nq):
            copy_row(row_of(&op.d_q, span.batch, kv_head * group + member, span.q_start + i),
                     s.d_queries + (member * span.nq + i) * dim, op.head_dim)


cdef void backward_tile(Attention *op, const Span *span, const Scratch *s, ptrdiff_t head, ptrdiff_t first,
                        ptrdiff_t count, ptrdiff_t key, ptrdiff_t keys, float *d_queries) noexcept nogil:
    """One tile of queries against the tile of keys in scratch: adds to d_keys, d_values and d_queries [count, dim]."""
    cdef ptrdiff_t dim = op.padded_dim, i, row = span.q_start + first
    cdef const float *lse = op.log_sum_exp + (span.batch * op.heads + head) * op.queries + row
    cdef const float *delta = op.delta + (span.batch * op.heads + head) * op.queries + row
    cdef float *q = row_of(&op.q, span.batch, head, row)
    cdef float *d_out = row_of(&op.d_out, span.batch, head, row)
    cdef float *weights
    cdef float *d_weights
    cdef float kept[KEY_TILE]
    pack_rows(q, op.q.row, count, op.head_dim, s.queries, dim)
    pack_rows(d_out, op.d_out.row, count, op.head_dim, s.d_outs, dim)
    # weights = exp(scale q k^T - log_sum_exp)
    multiply_small(q, op.q.row, 1, s.keys_t, KEY_TILE, s.weights, KEY_TILE, count, KEY_TILE, op.head_dim, False)
    # d_weights = d_out v^T
    multiply_small(d_out, op.d_out.row, 1, s.values_t, KEY_TILE, s.d_weights, KEY_TILE, count, KEY_TILE, op.head_dim, False)
    for i in range(count):
        weights, d_weights = s.weights + i * KEY_TILE, s.d_weights + i * KEY_TILE
        scale_row(weights, op.scale, KEY_TILE)
        hide(weights, first_visible(op, span, first + i) - key, min(keys, visible_end(op, span, first + i) - key))
        exponentials(weights, 0 if lse[i] == -INFINITY else lse[i])
        # d_scores = weights * (kept * d_weights - delta) * scale; then the weights that blended: weights * kept
        if op.drop:
            kept_row(op, span, head, first + i, key, kept)
            multiply_rows_by(d_weights, kept)
        row_d_scores(d_weights, weights, delta[i], op.scale)
        if op.drop:
            multiply_rows_by(weights, kept)
    # d_values += weights^T d_out; d_keys += d_scores^T q; d_queries += d_scores k
    multiply_small(s.weights, 1, KEY_TILE, s.d_outs, dim, s.d_values, dim, keys, dim, count, True)
    multiply_small(s.d_weights, 1, KEY_TILE, s.queries, dim, s.d_keys, dim, keys, dim, count, True)
    multiply_small(s.d_weights, KEY_TILE, 1, s.keys, dim, d_queries, dim, count, dim, keys, True)


cdef inline void row_d_scores(float *d_weights, const float *weights, float delta, float scale) noexcept nogil:
    cdef vf deltas = vf_set(delta), scales = vf_set(scale)
    cdef ptrdiff_t j = 0
    while j < KEY_TILE:
        vf_store(d_weights + j, vf_mul(vf_mul(vf_load(weights + j), vf_sub(vf_load(d_weights + j), deltas)), scales))
        j += VF_WIDTH


cdef inline void copy_row(float *out, const float *row, ptrdiff_t count) noexcept nogil:
    cdef ptrdiff_t j
    for j in range(count):
        out[j] = row[j]


cdef void set_delta(Attention *op, const Span *span, ptrdiff_t head) noexcept nogil:
    """delta = the sum of d_out * out over head_dim, for every query of a head."""
    cdef ptrdiff_t i, j, row, lanes
    cdef float *out
    cdef float *d_out
    cdef vf total
    for i in range(span.nq):
        row = span.q_start + i
        out, d_out = row_of(&op.out, span.batch, head, row), row_of(&op.d_out, span.batch, head, row)
        total = vf_zero()
        j = 0
        while j < op.head_dim:
            lanes = min(VF_WIDTH, op.head_dim - j)
            total = vf_fma(vf_load_first(out + j, lanes), vf_load_first(d_out + j, lanes), total)
            j += VF_WIDTH
        op.delta[(span.batch * op.heads + head) * op.queries + row] = vf_sum(total)
