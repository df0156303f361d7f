# The small products inside attention, and the forms in which they read their factors: floats, pairs of bfloat16, or on AMX floats in
# three parts (parts.h). What lies `along` head_dim is added up over it, what lies `across` over its rows.

cdef inline Range words_of(const Attention *op, Range items) noexcept nogil:
    """The words that hold these columns or rows; the other half of a pair, and of a tile, is zero or meets a weight of zero."""
    if op.tiles:
        items = whole_vectors(op, items)
    if op.pairs:
        items.first, items.end = items.first // 2, (items.end + 1) // 2
    return items


# ---- forms ----

cdef inline void pack_along(const Attention *op, const float *x, ptrdiff_t stride, ptrdiff_t count, float factor, float *scaled,
                            float *out) noexcept nogil:
    """out [count, words]: rows times factor, of which a product is the left factor; scaled [count, dim] is scratch for another
    factor than 1."""
    cdef ptrdiff_t i
    if op.split:
        x = scaled_rows(op, x, &stride, count, factor, scaled)
        for i from 0 <= i < count by PARTS_TILE:
            parts_of_a(True, x + i * stride, stride, op.head_dim, min(PARTS_TILE, count - i), out + i * op.words)
    elif op.pairs:
        pack_neighbours(x, stride, count, op.head_dim, factor, out, op.words)
    else:
        pack_rows(x, stride, count, op.head_dim, factor, out, op.words)


cdef inline void pack_across(const Attention *op, const float *x, ptrdiff_t stride, ptrdiff_t count, float factor, float *scaled,
                             float *out) noexcept nogil:
    """out [count or count / 2, dim]: the same rows, of which it is the right factor."""
    cdef ptrdiff_t rows = (count + 1) // 2, column
    if op.split:
        x = scaled_rows(op, x, &stride, count, factor, scaled)
        for column from 0 <= column < op.dim by PARTS_TILE:
            parts_of_b(
                False, x + column, stride, count, min(PARTS_TILE, op.head_dim - column), out + column // PARTS_TILE * TILE_STEPS * PARTS_FLOATS
            )
    elif op.pairs:
        pack_couples(x, stride, count, op.head_dim, factor, out, op.dim)
        if op.tiles:
            memset(out + rows * op.dim, 0, sizeof(float) * ((rows + AMX_WORDS - 1) // AMX_WORDS * AMX_WORDS - rows) * op.dim)
    else:
        pack_rows(x, stride, count, op.head_dim, factor, out, op.dim)


cdef inline const float *scaled_rows(const Attention *op, const float *x, ptrdiff_t *stride, ptrdiff_t count, float factor,
                                     float *scaled) noexcept nogil:
    """Where rows times factor lie, and how far apart: x itself, or `scaled`."""
    if factor == 1:
        return x
    pack_rows(x, stride[0], count, op.head_dim, factor, scaled, op.dim)
    stride[0] = op.dim
    return scaled


cdef inline void pack_turned(const Attention *op, const float *x, ptrdiff_t stride, ptrdiff_t count, float *rounded,
                             float *out) noexcept nogil:
    """out [depth, KEY_TILE]: pack_along's rows as columns; rounded [KEY_TILE, words] is scratch."""
    cdef ptrdiff_t i
    if op.split:
        for i from 0 <= i < KEY_TILE by PARTS_TILE:
            parts_of_b(True, x + i * stride, stride, op.head_dim, max(0, min(PARTS_TILE, count - i)), out + i * op.words)
    elif op.pairs:
        pack_neighbours(x, stride, count, op.head_dim, 1, rounded, op.words)
        pack_transposed(rounded, op.words, count, op.depth, out, KEY_TILE)
    else:
        pack_transposed(x, stride, count, op.head_dim, out, KEY_TILE)


# ---- products of at most op.group rows ----

cdef inline void multiply_by_keys(const Attention *op, const float *rows_along, ptrdiff_t rows, const float *turned, Range wide,
                                  float *out) noexcept nogil:
    """out [rows, KEY_TILE] = rows times keys (or values), in columns wide.first..wide.end-1."""
    if op.split:
        parts_of_rows(
            rows, wide.end - wide.first, rows_along, op.steps * PARTS_FLOATS, turned + wide.first * op.words, op.steps * PARTS_FLOATS,
            op.steps, out + wide.first, KEY_TILE, False,
        )
    else:
        multiply_group(
            op, rows_along, op.words, 1, rows, turned + wide.first, KEY_TILE, out + wide.first, KEY_TILE, wide.end - wide.first, op.depth,
            False,
        )


cdef inline void add_blend(const Attention *op, const float *weights, ptrdiff_t rows, Range seen, const float *across, float *split,
                           float *out) noexcept nogil:
    """out [rows, dim] += weights [rows, KEY_TILE] times values (or keys), which these columns see; split is scratch for parts."""
    cdef Range words = words_of(op, seen)
    cdef ptrdiff_t tile = (words.end - words.first) // PARTS_STEP * PARTS_FLOATS, i
    if op.split:
        for i from 0 <= i < rows by PARTS_TILE:
            parts_of_a(
                True, weights + i * KEY_TILE + words.first, KEY_TILE, words.end - words.first, min(PARTS_TILE, rows - i),
                split + i // PARTS_TILE * tile,
            )
        parts_of_rows(
            rows, op.dim, split, tile, across + words.first // PARTS_STEP * PARTS_FLOATS, TILE_STEPS * PARTS_FLOATS,
            (words.end - words.first) // PARTS_STEP, out, op.dim, True,
        )
    else:
        multiply_group(
            op, weights + words.first, KEY_TILE, 1, rows, across + words.first * op.dim, op.dim, out, op.dim, op.dim,
            words.end - words.first, True,
        )


cdef inline void multiply_group(const Attention *op, const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows,
                                const float *b, ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, ptrdiff_t columns,
                                ptrdiff_t depth, bint add) noexcept nogil:
    if op.tiles:  # a_step is 1
        wide_tiles_of_pairs(rows, columns, a, a_row, b, b_stride, depth, c, c_stride, add)
    elif op.pairs:
        multiply_pairs(a, a_row, a_step, rows, b, b_stride, c, c_stride, columns, depth, add)
    else:
        multiply_floats(a, a_row, a_step, rows, b, b_stride, c, c_stride, columns, depth, add)
