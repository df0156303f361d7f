# Forward: a task is (sequence, head, tile of queries); tiles of keys pass by, a group of rows of queries meets them at a time.

cdef enum:
    FORWARD_QUERIES = 256  # so many share what it costs to pack a tile of keys

cdef struct ForwardTile:
    float *queries  # [FORWARD_QUERIES, words], times scale
    float *keys_t  # [depth, KEY_TILE]
    float *values  # [KEY_TILE or half of it, dim]
    float *rounded  # [KEY_TILE, words], for pairs
    float *weights  # [MOST_ROWS, KEY_TILE]
    float *split  # [MOST_ROWS, KEY_TILE], in parts
    float *blend  # [FORWARD_QUERIES, dim]: the sum of weights times values so far
    float *totals  # [FORWARD_QUERIES, VF_WIDTH]: the sum of weights so far, a part in each lane
    float *largest  # [FORWARD_QUERIES]: the largest score so far


cdef inline ForwardTile carve_forward(ptrdiff_t room) noexcept nogil:
    cdef ForwardTile t
    cdef float *place = <float *>pool_scratch(
        sizeof(float) * ((2 * FORWARD_QUERIES + 3 * KEY_TILE) * room + 3 * MOST_ROWS * KEY_TILE + FORWARD_QUERIES * (VF_WIDTH + 1))
    )
    t.queries = place
    t.keys_t = t.queries + FORWARD_QUERIES * room
    t.values = t.keys_t + KEY_TILE * room
    t.rounded = t.values + KEY_TILE * room
    t.weights = t.rounded + KEY_TILE * room
    t.split = t.weights + MOST_ROWS * KEY_TILE
    t.blend = t.split + 2 * MOST_ROWS * KEY_TILE
    t.totals = t.blend + FORWARD_QUERIES * room
    t.largest = t.totals + FORWARD_QUERIES * VF_WIDTH
    return t


cdef void forward_tile(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Attention *op = <Attention *>argument
    # the last tiles of a causal sequence are the longest: they go first
    cdef ptrdiff_t tile = op.query_tiles - 1 - task % op.query_tiles
    cdef ptrdiff_t head = task // op.query_tiles % op.heads
    cdef Span span = span_of(op, task // op.query_tiles // op.heads)
    cdef ptrdiff_t first = tile * FORWARD_QUERIES, count = min(FORWARD_QUERIES, span.nq - first)
    cdef ptrdiff_t kv_head = head // (op.heads // op.kv_heads), i, key, key_end, keys, ahead
    cdef ForwardTile t
    if count <= 0:
        return
    if op.tiles:
        tiles_begin()
    t = carve_forward(op.room)
    pack_along(op, row_of(&op.q, span.batch, head, span.q_start + first), op.q.row, count, op.scale, t.blend, t.queries)
    memset(t.blend, 0, sizeof(float) * FORWARD_QUERIES * op.dim)
    memset(t.totals, 0, sizeof(float) * FORWARD_QUERIES * VF_WIDTH)
    for i in range(count):
        t.largest[i] = -INFINITY

    key = first_visible(op, &span, first) // KEY_TILE * KEY_TILE
    key_end = visible_end(op, &span, first + count - 1)
    while key < key_end:
        keys = min(KEY_TILE, span.nk - key)
        pack_turned(op, row_of(&op.k, span.batch, kv_head, span.k_start + key), op.k.row, keys, t.rounded, t.keys_t)
        pack_across(op, row_of(&op.v, span.batch, kv_head, span.k_start + key), op.v.row, keys, 1, NULL, t.values)
        i = 0
        while i < count:
            if i < min(KEY_TILE, key_end - key - KEY_TILE):
                ahead = span.k_start + key + KEY_TILE + i
                ask_for_rows(row_of(&op.k, span.batch, kv_head, ahead), op.k.row, op.group, op.head_dim)
                ask_for_rows(row_of(&op.v, span.batch, kv_head, ahead), op.v.row, op.group, op.head_dim)
            forward_group(op, &span, &t, head, first, i, min(op.group, count - i), key, keys)
            i += op.group
        key += KEY_TILE

    if op.tiles:
        tiles_end()
    for i in range(count):
        finish_row(op, &span, &t, head, first, i)


cdef inline void forward_group(const Attention *op, const Span *span, const ForwardTile *t, ptrdiff_t head,
                               ptrdiff_t first, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t key, ptrdiff_t keys) noexcept nogil:
    """Rows row..row+rows-1 of the tile of queries against a tile of keys."""
    cdef Range seen = seen_by(op, span, first + row, rows, key, keys), wide = whole_vectors(op, seen), of_row
    cdef ptrdiff_t dim = op.dim, i
    cdef float *weights
    cdef float shrink
    cdef vf total
    cdef float kept[KEY_TILE]
    if seen.first >= seen.end:
        return
    # scores = scale q k^T + bias
    multiply_by_keys(op, t.queries + row * op.words, rows, t.keys_t, wide, t.weights)
    # online softmax: when a row's largest score grows, what was summed so far shrinks
    for i in range(rows):
        weights, of_row = t.weights + i * KEY_TILE, seen_by(op, span, first + row + i, 1, key, keys)
        if op.bias != NULL:
            add_bias(op, span, head, first + row + i, key, of_row, weights)
        hide(weights, wide, of_row)
        if op.drop:
            drop_row(op, span, head, first + row + i, key, kept)
        total = softmax_row(weights, wide.first, wide.end, t.largest + row + i, &shrink, op.pairs, kept if op.drop else NULL)
        if shrink != 1:
            scale_row(t.totals + (row + i) * VF_WIDTH, shrink, VF_WIDTH)
            scale_row(t.blend + (row + i) * dim, shrink, dim)
        add_to(t.totals + (row + i) * VF_WIDTH, total)
    # blend += weights v
    add_blend(op, t.weights, rows, seen, t.values, t.split, t.blend + row * dim)


cdef inline void add_to(float *total, vf value) noexcept nogil:
    vf_store(total, vf_add(vf_load(total), value))


cdef inline void finish_row(Attention *op, const Span *span, const ForwardTile *t, ptrdiff_t head, ptrdiff_t first,
                            ptrdiff_t i) noexcept nogil:
    """out = blend / total and log_sum_exp, or zeros and -inf for a query that saw no key."""
    cdef ptrdiff_t row = span.q_start + first + i
    cdef float total = vf_sum(vf_load(t.totals + i * VF_WIDTH))
    scale_row(t.blend + i * op.dim, 0 if total == 0 else 1 / total, op.dim)
    copy_row(row_of(&op.out, span.batch, head, row), t.blend + i * op.dim, op.head_dim)
    op.log_sum_exp[(span.batch * op.heads + head) * op.queries + row] = (
        -INFINITY if total == 0 else t.largest[i] + logf(total)
    )
