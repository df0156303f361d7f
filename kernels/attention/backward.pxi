# Backward: delta of every query; then a task is (sequence, kv head, part of its keys), which owns d_k, d_v of its keys
# and sums d_q over them, the heads of its group in order; then the parts of d_q and d_bias are added up, in order.

cdef enum:
    BACKWARD_TASKS = 32  # keys are parted until there are so many: the work, never the threads, decides


cdef struct BackwardTile:
    float *weights  # [QUERY_TILE, KEY_TILE]
    float *d_weights  # [QUERY_TILE, KEY_TILE]
    float *d_scores  # [MOST_ROWS, KEY_TILE], for pairs
    float *split  # as many numbers, in parts
    float *keys_t  # [depth, KEY_TILE]
    float *values_t  # [depth, KEY_TILE]
    float *keys  # [KEY_TILE or half of it, dim]
    float *rounded  # [KEY_TILE, words], for pairs
    float *d_keys  # [KEY_TILE, dim]
    float *d_values  # [KEY_TILE, dim]
    float *queries  # [QUERY_TILE, words], times scale
    float *d_outs  # [QUERY_TILE, words]
    float *queries_across  # [QUERY_TILE or half of it, dim]: the same for sums over queries
    float *d_outs_across
    float *d_queries  # [group * nq, dim] when there is one part
    float *d_bias  # [group, distances]: what this task adds up, or NULL


cdef inline BackwardTile carve_backward(const Attention *op, ptrdiff_t rows) noexcept nogil:
    """What all tiles of keys share, and the first of them."""
    cdef BackwardTile t
    cdef ptrdiff_t room = op.room
    cdef float *place = <float *>pool_scratch(
        sizeof(float) * (
            (2 * QUERY_TILE + 3 * MOST_ROWS) * KEY_TILE + ((5 * BACKWARD_TILES + 1) * KEY_TILE + 4 * QUERY_TILE) * room + rows * op.dim
        )
    )
    t.weights = place
    t.d_weights = t.weights + QUERY_TILE * KEY_TILE
    t.d_scores = t.d_weights + QUERY_TILE * KEY_TILE
    t.split = t.d_scores + MOST_ROWS * KEY_TILE
    t.queries = t.split + 2 * MOST_ROWS * KEY_TILE
    t.d_outs = t.queries + QUERY_TILE * room
    t.queries_across, t.d_outs_across = t.queries, t.d_outs
    if op.pairs or op.split:  # other words than those along head_dim
        t.queries_across, t.d_outs_across = t.d_outs + QUERY_TILE * room, t.d_outs + 2 * QUERY_TILE * room
    t.rounded = t.d_outs + 3 * QUERY_TILE * room
    t.keys_t = t.rounded + KEY_TILE * room
    t.values_t = t.keys_t + KEY_TILE * room
    t.keys = t.values_t + KEY_TILE * room
    t.d_keys = t.keys + KEY_TILE * room
    t.d_values = t.d_keys + KEY_TILE * room
    t.d_queries = t.keys_t + 5 * BACKWARD_TILES * KEY_TILE * room
    return t


cdef inline BackwardTile next_tile(const Attention *op, const BackwardTile *t) noexcept nogil:
    """The same for the tile of keys that follows."""
    cdef BackwardTile next = t[0]
    cdef ptrdiff_t floats = 5 * KEY_TILE * op.room
    next.keys_t, next.values_t, next.keys = t.keys_t + floats, t.values_t + floats, t.keys + floats
    next.d_keys, next.d_values = t.d_keys + floats, t.d_values + floats
    return next


cdef void set_delta(void *argument, ptrdiff_t task) noexcept nogil:
    """delta = the sum of d_out * out over head_dim, for every query of a head."""
    cdef Attention *op = <Attention *>argument
    cdef ptrdiff_t head = task % op.heads, i, j, row
    cdef Span span = span_of(op, task // op.heads)
    cdef float *out
    cdef float *d_out
    cdef vf total, rounded
    for i in range(span.nq):
        row = span.q_start + i
        out, d_out = row_of(&op.out, span.batch, head, row), row_of(&op.d_out, span.batch, head, row)
        total = vf_zero()
        j = 0
        while j < op.head_dim:
            rounded = vf_load_first(d_out + j, min(VF_WIDTH, op.head_dim - j))
            if op.pairs:  # as the products of d_out see it, so that delta is still the mean of d_weights
                rounded = bf16_nearest(rounded)
            total = vf_fma(vf_load_first(out + j, min(VF_WIDTH, op.head_dim - j)), rounded, total)
            j += VF_WIDTH
        op.delta[(span.batch * op.heads + head) * op.queries + row] = vf_sum(total)


cdef inline float *d_q_part(const Attention *op, ptrdiff_t part, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t row) noexcept nogil:
    return op.d_q_parts + (((part * op.batch + batch) * op.heads + head) * op.queries + row) * op.dim


cdef inline ptrdiff_t first_query_of(const Attention *op, const Span *span, ptrdiff_t part) noexcept nogil:
    """The first query that sees keys of this part; those before it have no sums there (in part 0, which all begin with, zeros)."""
    if op.after >= 0 and part > 0:
        return max(0, min(span.nq, part * op.part_keys - op.after - (span.nk - span.nq)))
    return 0


cdef void backward_part(void *argument, ptrdiff_t task) noexcept nogil:
    """d_k, d_v of a part of the keys of one kv head in one sequence, and what they add to d_q."""
    cdef Attention *op = <Attention *>argument
    cdef ptrdiff_t kv_head = task % op.kv_heads, part = task // op.kv_heads // op.sequences
    cdef ptrdiff_t group = op.heads // op.kv_heads, member, head, first, count, i
    cdef Span span = span_of(op, task // op.kv_heads % op.sequences)
    cdef ptrdiff_t key = part * op.part_keys, key_end = min(span.nk, key + op.part_keys), keys
    cdef BackwardTile tiles[BACKWARD_TILES]
    cdef ptrdiff_t most, j
    cdef float *d_queries  # [group, nq or queries, dim]
    cdef ptrdiff_t d_queries_head = span.nq * op.dim, unseen = first_query_of(op, &span, part)
    cdef bint packed
    tiles[0] = carve_backward(op, group * span.nq if op.parts == 1 else 0)
    tiles[0].d_bias = NULL
    if op.d_bias != NULL:
        tiles[0].d_bias = op.d_bias_parts + ((part * op.sequences + span.sequence) * op.heads + kv_head * group) * op.distances
        memset(tiles[0].d_bias, 0, sizeof(float) * group * op.distances)
    for j in range(1, BACKWARD_TILES):
        tiles[j] = next_tile(op, &tiles[j - 1])
    d_queries = tiles[0].d_queries
    if op.tiles:
        tiles_begin()
    if op.parts > 1:
        d_queries, d_queries_head = d_q_part(op, part, span.batch, kv_head * group, span.q_start), op.queries * op.dim
    for member in range(group):
        memset(d_queries + member * d_queries_head + unseen * op.dim, 0, sizeof(float) * (span.nq - unseen) * op.dim)

    while key < key_end:
        most = min(BACKWARD_TILES, (key_end - key + KEY_TILE - 1) // KEY_TILE)
        for j in range(most):
            begin_keys(op, &span, &tiles[j], kv_head, key + j * KEY_TILE, min(KEY_TILE, key_end - key - j * KEY_TILE))
        for member in range(group):
            head = kv_head * group + member
            first = 0
            while first < span.nq:
                count, packed = min(QUERY_TILE, span.nq - first), False
                for j in range(most):
                    keys = min(KEY_TILE, key_end - key - j * KEY_TILE)
                    backward_tile(op, &span, &tiles[j], head, first, count, key + j * KEY_TILE, keys,
                                  d_queries + member * d_queries_head + first * op.dim, &packed)
                first += QUERY_TILE
        for j in range(most):
            end_keys(op, &span, &tiles[j], kv_head, key + j * KEY_TILE, min(KEY_TILE, key_end - key - j * KEY_TILE))
        key += most * KEY_TILE

    if op.tiles:
        tiles_end()
    if op.parts == 1:
        for member in range(group):
            for i in range(span.nq):
                scale_row(d_queries + member * d_queries_head + i * op.dim, op.scale, op.dim)
                copy_row(row_of(&op.d_q, span.batch, kv_head * group + member, span.q_start + i),
                         d_queries + member * d_queries_head + i * op.dim, op.head_dim)


cdef inline void begin_keys(Attention *op, const Span *span, const BackwardTile *t, ptrdiff_t kv_head, ptrdiff_t key, ptrdiff_t keys) noexcept nogil:
    cdef const float *k = row_of(&op.k, span.batch, kv_head, span.k_start + key)
    cdef const float *v = row_of(&op.v, span.batch, kv_head, span.k_start + key)
    pack_turned(op, k, op.k.row, keys, t.rounded, t.keys_t)
    pack_turned(op, v, op.v.row, keys, t.rounded, t.values_t)
    pack_across(op, k, op.k.row, keys, 1, NULL, t.keys)
    memset(t.d_keys, 0, sizeof(float) * KEY_TILE * op.dim)
    memset(t.d_values, 0, sizeof(float) * KEY_TILE * op.dim)


cdef inline void end_keys(Attention *op, const Span *span, const BackwardTile *t, ptrdiff_t kv_head, ptrdiff_t key, ptrdiff_t keys) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(keys):
        copy_row(row_of(&op.d_k, span.batch, kv_head, span.k_start + key + i), t.d_keys + i * op.dim, op.head_dim)
        copy_row(row_of(&op.d_v, span.batch, kv_head, span.k_start + key + i), t.d_values + i * op.dim, op.head_dim)


cdef inline void backward_tile(Attention *op, const Span *span, const BackwardTile *t, ptrdiff_t head, ptrdiff_t first, ptrdiff_t count,
                               ptrdiff_t key, ptrdiff_t keys, float *d_queries, bint *packed) noexcept nogil:
    """One tile of queries against a tile of keys in scratch: adds to d_keys, d_values and d_queries [count, dim]."""
    cdef Range seen = seen_by(op, span, first, count, key, keys), seeing, words
    cdef ptrdiff_t dim = op.dim, row = span.q_start + first, i, ahead
    if seen.first >= seen.end:
        return
    if not packed[0]:
        packed[0] = True
        pack_queries(op, span, t, head, row, count)
    i = 0
    while i < count:
        ahead = min(first + QUERY_TILE + i, span.nq - op.group)
        if ahead > first:
            ask_for_rows(row_of(&op.q, span.batch, head, span.q_start + ahead), op.q.row, op.group, op.head_dim)
            ask_for_rows(row_of(&op.d_out, span.batch, head, span.q_start + ahead), op.d_out.row, op.group, op.head_dim)
        backward_group(op, span, t, head, first, i, min(op.group, count - i), key, keys, d_queries)
        i += op.group
    if op.split:
        add_turned_parts(op, t.weights, count, keys, t.d_outs_across, t.split, t.d_values)
        add_turned_parts(op, t.d_weights, count, keys, t.queries_across, t.split, t.d_keys)
        return
    if op.tiles:
        key_gradients_by_tiles(op, t, count, keys)
        return
    # d_values += weights^T d_out; d_keys += d_scores^T (scale q): over the queries that see a group of keys
    i = seen.first // op.group * op.group
    while i < seen.end:
        seeing.first, seeing.end = 0, count
        if op.after >= 0:
            seeing.first = max(0, key + i - op.after - (span.nk - span.nq) - first)
        if op.before >= 0:
            seeing.end = min(count, key + min(i + op.group, keys) + op.before - (span.nk - span.nq) - first)
        if seeing.first < seeing.end:
            words = words_of(op, seeing)
            multiply_group(op, t.weights + words.first * KEY_TILE + i, 1, KEY_TILE, min(op.group, keys - i),
                           t.d_outs_across + words.first * dim, dim, t.d_values + i * dim, dim, dim,
                           words.end - words.first, True)
            multiply_group(op, t.d_weights + words.first * KEY_TILE + i, 1, KEY_TILE, min(op.group, keys - i),
                           t.queries_across + words.first * dim, dim, t.d_keys + i * dim, dim, dim,
                           words.end - words.first, True)
        i += op.group


cdef void key_gradients_by_tiles(const Attention *op, const BackwardTile *t, ptrdiff_t count, ptrdiff_t keys) noexcept nogil:
    """What backward_tile adds to d_values and d_keys, over all its queries: pairs of them are turned along memory first."""
    cdef ptrdiff_t words = (count + 2 * AMX_WORDS - 1) // (2 * AMX_WORDS) * AMX_WORDS, made = (count + 1) // 2
    memset(t.weights + made * KEY_TILE, 0, sizeof(float) * (words - made) * KEY_TILE)
    memset(t.d_weights + made * KEY_TILE, 0, sizeof(float) * (words - made) * KEY_TILE)
    by_turned_tiles(op, t.weights, words, keys, t.d_scores, t.d_outs_across, t.d_values)
    by_turned_tiles(op, t.d_weights, words, keys, t.d_scores, t.queries_across, t.d_keys)


cdef inline void by_turned_tiles(const Attention *op, const float *couples, ptrdiff_t words, ptrdiff_t keys, float *turned,
                                 const float *b, float *out) noexcept nogil:
    """out [keys, dim] += the transpose of couples [words, KEY_TILE] times b [words, dim]."""
    cdef ptrdiff_t i = 0
    pack_transposed(couples, KEY_TILE, words, keys, turned, words)
    while i < keys:
        wide_tiles_of_pairs(min(op.group, keys - i), op.dim, turned + i * words, words, b, op.dim, words, out + i * op.dim, op.dim, True)
        i += op.group


cdef inline void pack_queries(Attention *op, const Span *span, const BackwardTile *t, ptrdiff_t head, ptrdiff_t row, ptrdiff_t count) noexcept nogil:
    cdef const float *q = row_of(&op.q, span.batch, head, row)
    cdef const float *d_out = row_of(&op.d_out, span.batch, head, row)
    pack_along(op, q, op.q.row, count, op.scale, t.d_outs, t.queries)
    if t.queries_across != t.queries:
        pack_across(op, q, op.q.row, count, op.scale, t.d_outs, t.queries_across)
        pack_across(op, d_out, op.d_out.row, count, 1, NULL, t.d_outs_across)
    pack_along(op, d_out, op.d_out.row, count, 1, NULL, t.d_outs)


cdef void add_turned_parts(const Attention *op, const float *weights, ptrdiff_t count, ptrdiff_t keys, const float *across, float *split,
                           float *out) noexcept nogil:
    """out [keys, dim] += the transpose of weights [count, KEY_TILE] times rows of d_out (or of queries)."""
    cdef ptrdiff_t steps = (count + PARTS_STEP - 1) // PARTS_STEP, tile = steps * PARTS_FLOATS, i, key
    for i from 0 <= i < keys by op.group:
        for key from i <= key < min(keys, i + op.group) by PARTS_TILE:
            parts_of_a(False, weights + key, KEY_TILE, count, min(PARTS_TILE, keys - key), split + (key - i) // PARTS_TILE * tile)
        parts_of_rows(
            min(op.group, keys - i), op.dim, split, tile, across, TILE_STEPS * PARTS_FLOATS, steps, out + i * op.dim, op.dim, True
        )


cdef inline void clear_unseen(const Attention *op, const BackwardTile *t, ptrdiff_t row, ptrdiff_t rows, Range wide) noexcept nogil:
    """Rows row..row+rows-1, or the pairs of them, are zeros outside of these columns."""
    cdef ptrdiff_t i, first = row // 2 if op.pairs else row, end = (row + rows + 1) // 2 if op.pairs else row + rows
    for i in range(first, end):
        memset(t.weights + i * KEY_TILE, 0, sizeof(float) * wide.first)
        memset(t.d_weights + i * KEY_TILE, 0, sizeof(float) * wide.first)
        memset(t.weights + i * KEY_TILE + wide.end, 0, sizeof(float) * (KEY_TILE - wide.end))
        memset(t.d_weights + i * KEY_TILE + wide.end, 0, sizeof(float) * (KEY_TILE - wide.end))


cdef inline void backward_group(Attention *op, const Span *span, const BackwardTile *t, ptrdiff_t head, ptrdiff_t first,
                                ptrdiff_t row, ptrdiff_t rows, ptrdiff_t key, ptrdiff_t keys, float *d_queries) noexcept nogil:
    """Rows row..row+rows-1 of the tile of queries: their weights and d_scores, and what these keys add to d_queries."""
    cdef Range seen = seen_by(op, span, first + row, rows, key, keys), wide = whole_vectors(op, seen), of_row
    cdef ptrdiff_t dim = op.dim, i, place = (span.batch * op.heads + head) * op.queries + span.q_start + first + row
    cdef float *weights = t.weights + row * KEY_TILE
    cdef float *d_scores = t.d_weights + row * KEY_TILE
    cdef float shifts[MOST_ROWS]
    cdef float deltas[MOST_ROWS]
    cdef float kept[MOST_ROWS * KEY_TILE]
    if seen.first >= seen.end:
        if op.tiles:
            wide.first = wide.end = 0
            clear_unseen(op, t, row, rows, wide)
        return
    # weights = exp(scale q k^T + bias - log_sum_exp)
    multiply_by_keys(op, t.queries + row * op.words, rows, t.keys_t, wide, weights)
    # d_weights = d_out v^T
    multiply_by_keys(op, t.d_outs + row * op.words, rows, t.values_t, wide, d_scores)
    for i in range(rows):
        of_row = seen_by(op, span, first + row + i, 1, key, keys)
        if op.bias != NULL:
            add_bias(op, span, head, first + row + i, key, of_row, weights + i * KEY_TILE)
        hide(weights + i * KEY_TILE, wide, of_row)
        shifts[i], deltas[i] = op.log_sum_exp[place + i], op.delta[place + i]
        if shifts[i] == -INFINITY:
            shifts[i] = 0
        if op.drop:
            drop_row(op, span, head, first + row + i, key, kept + i * KEY_TILE)
    # d_scores = weights * (kept * d_weights - delta); then the weights that blended: weights * kept
    if op.pairs:  # for the sums over queries too; a group is even, so both of a pair are here
        i = 0
        while i < rows:
            row_gradients_in_pairs(
                weights + i * KEY_TILE, d_scores + i * KEY_TILE, min(2, rows - i), wide.first, wide.end, shifts + i, deltas + i,
                kept + i * KEY_TILE if op.drop else NULL, t.d_scores + i * KEY_TILE,
                t.weights + (row + i) // 2 * KEY_TILE, t.d_weights + (row + i) // 2 * KEY_TILE,
            )
            i += 2
        d_scores = t.d_scores
    else:
        for i in range(rows):
            row_gradients(weights + i * KEY_TILE, d_scores + i * KEY_TILE, wide.first, wide.end, shifts[i], deltas[i],
                          kept + i * KEY_TILE if op.drop else NULL)
    if t.d_bias != NULL:
        for i in range(rows):
            add_to_d_bias(op, t.d_bias + (head % (op.heads // op.kv_heads)) * op.distances + bias_place(op, span, first + row + i, key),
                          d_scores + i * KEY_TILE, seen_by(op, span, first + row + i, 1, key, keys))
    if op.tiles:
        clear_unseen(op, t, row, rows, wide)
    # d_queries += d_scores k, still to be scaled
    add_blend(op, d_scores, rows, seen, t.keys, t.split, d_queries + row * dim)


cdef inline void add_to_d_bias(const Attention *op, float *d_bias, const float *d_scores, Range seen) noexcept nogil:
    """d_bias += a row of d_scores, which are pairs of neighbours where products read pairs."""
    cdef ptrdiff_t j
    if op.pairs:
        for j in range(seen.first, seen.end):
            d_bias[j] += bf16_of_pair(d_scores[j // 2], j % 2)
    else:
        for j in range(seen.first, seen.end):
            d_bias[j] += d_scores[j]


cdef void add_bias_parts(void *argument, ptrdiff_t head) noexcept nogil:
    """d_bias of a head = the sum of its parts, in order."""
    cdef Attention *op = <Attention *>argument
    cdef float *total = op.d_bias + head * op.distances
    cdef const float *more
    cdef ptrdiff_t part, j
    memset(total, 0, sizeof(float) * op.distances)
    for part in range(op.parts * op.sequences):
        more = op.d_bias_parts + (part * op.heads + head) * op.distances
        for j in range(op.distances):
            total[j] += more[j]


cdef void add_parts(void *argument, ptrdiff_t task) noexcept nogil:
    """d_q = scale * the sum of its parts, for one tile of queries of a head."""
    cdef Attention *op = <Attention *>argument
    cdef ptrdiff_t head = task // op.query_tiles % op.heads, first = task % op.query_tiles * QUERY_TILE, i, j, part
    cdef Span span = span_of(op, task // op.query_tiles // op.heads)
    cdef float *total
    cdef float *more
    for i in range(first, min(first + QUERY_TILE, span.nq)):
        total = d_q_part(op, 0, span.batch, head, span.q_start + i)
        for part in range(1, op.parts):
            if i < first_query_of(op, &span, part):
                break
            more = d_q_part(op, part, span.batch, head, span.q_start + i)
            j = 0
            while j < op.dim:
                vf_store(total + j, vf_add(vf_load(total + j), vf_load(more + j)))
                j += VF_WIDTH
        scale_row(total, op.scale, op.dim)
        copy_row(row_of(&op.d_q, span.batch, head, span.q_start + i), total, op.head_dim)
