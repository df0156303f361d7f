# What happens to a tile of sums on its way to out, while it is in L1. Included by gemm.pxi.
#
# One pass a step over the whole tile: loops of many independent vectors keep the processor's pipelines full, where one loop over
# all steps would wait for each exponential, and row by row the loops were too short (a third of MiniLM's time outside of tiles).


cdef struct SumsTile:
    float *sums  # [rows, sums_row]: used up; whole vectors, whose lanes past `columns` count for nothing
    ptrdiff_t sums_row, rows, columns
    ptrdiff_t at  # of its first element in out


cdef void store_tile(
    GemmTask *g, float *sums, ptrdiff_t sums_row, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t column, ptrdiff_t columns, bint load, bint last
) noexcept nogil:
    """rows x columns sums of out, with the bias and through the epilogue if these are the last of k."""
    cdef ptrdiff_t r, i
    cdef vf bias
    if last and g.bias != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            bias = load_part(g.bias + column + i, columns - i)
            for r in range(rows):
                vf_store(sums + r * sums_row + i, vf_add(vf_load(sums + r * sums_row + i), bias))
    finish_tile(g, sums, sums_row, row, rows, column, columns, load, last)


cdef void finish_tile(
    GemmTask *g, float *sums, ptrdiff_t sums_row, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t column, ptrdiff_t columns, bint load, bint last
) noexcept nogil:
    """store_tile() of sums that the bias is in."""
    cdef SumsTile t
    t.sums, t.sums_row, t.rows, t.columns, t.at = sums, sums_row, rows, columns, row * g.out_row + column
    if load:
        add_elements(g, &t, g.out)
    if last and g.input_pre != NULL:
        backward_epilogue(g, &t)
    elif last and not g.plain:
        forward_epilogue(g, &t)
    if g.stores_pairs:
        store_pairs(g, &t, g.out + row * g.out_row + column // 2)
    else:
        store_sums(g, &t, g.residual if last else NULL, g.out)


cdef inline void add_elements(const GemmTask *g, const SumsTile *t, const float *x) noexcept nogil:
    """sums += x's elements, which lie as out's do."""
    cdef ptrdiff_t r, i
    for r in range(t.rows):
        for i from 0 <= i < t.columns by VF_WIDTH:
            vf_store(
                t.sums + r * t.sums_row + i,
                vf_add(load_part(x + t.at + r * g.out_row + i, t.columns - i), vf_load(t.sums + r * t.sums_row + i)),
            )


cdef inline void multiply_elements(const GemmTask *g, const SumsTile *t, const float *x) noexcept nogil:
    """sums *= x's elements."""
    cdef ptrdiff_t r, i
    for r in range(t.rows):
        for i from 0 <= i < t.columns by VF_WIDTH:
            vf_store(
                t.sums + r * t.sums_row + i,
                vf_mul(vf_load(t.sums + r * t.sums_row + i), load_part(x + t.at + r * g.out_row + i, t.columns - i)),
            )


cdef inline void store_sums(const GemmTask *g, const SumsTile *t, const float *residual, float *out) noexcept nogil:
    """out = sums (+ residual)."""
    cdef ptrdiff_t r, i
    cdef vf value
    for r in range(t.rows):
        for i from 0 <= i < t.columns by VF_WIDTH:
            value = vf_load(t.sums + r * t.sums_row + i)
            if residual != NULL:
                value = vf_add(value, load_part(residual + t.at + r * g.out_row + i, t.columns - i))
            store_part(out + t.at + r * g.out_row + i, value, t.columns - i)


cdef inline void stream_sums(const GemmTask *g, const SumsTile *t, float *out) noexcept nogil:
    """out = sums, past the caches: backward reads them much later (a step's feedforward: 14-17 % faster on a Granite Rapids)."""
    cdef ptrdiff_t r, i
    cdef vf value
    for r in range(t.rows):
        for i from 0 <= i < t.columns by VF_WIDTH:
            value = vf_load(t.sums + r * t.sums_row + i)
            if t.columns - i >= VF_WIDTH:
                vf_stream(out + t.at + r * g.out_row + i, value)
            else:
                store_part(out + t.at + r * g.out_row + i, value, t.columns - i)


cdef inline void store_pairs(const GemmTask *g, const SumsTile *t, float *out) noexcept nogil:
    """out [rows, columns / 2] = sums in pairs of bfloat16."""
    cdef ptrdiff_t r, i
    cdef vf first, second
    for r in range(t.rows):
        for i from 0 <= i < t.columns by 2 * VF_WIDTH:
            first = vf_load(t.sums + r * t.sums_row + i)
            second = vf_load(t.sums + r * t.sums_row + i + VF_WIDTH) if i + VF_WIDTH < t.columns else vf_zero()
            store_part(out + r * g.out_row + i // 2, bf16_neighbours(first, second), (t.columns - i) // 2)


cdef void forward_epilogue(GemmTask *g, const SumsTile *t) noexcept nogil:
    """sums = dropout(act(sums) * multiplier); pre_activation = sums."""
    cdef ptrdiff_t r
    if g.pre_activation != NULL:
        stream_sums(g, t, g.pre_activation)
    activate_all(t.sums, t.rows * t.sums_row, g.activation)
    if g.multiplier != NULL:
        multiply_elements(g, t, g.multiplier)
    if g.drops:
        for r in range(t.rows):
            drop_row(g, t.sums + r * t.sums_row, t.at + r * g.out_row, t.columns)


cdef void drop_row(const GemmTask *g, float *sums, ptrdiff_t at, ptrdiff_t columns) noexcept nogil:
    """sums = 0 or sums * keep, as the word of element at + i of out says."""
    cdef uint32_t words[PHILOX_BATCH_WORDS]
    cdef uint32_t threshold = g.threshold
    cdef float keep = g.keep, value
    cdef uint64_t block
    cdef ptrdiff_t i = 0, j, skipped, stop
    while i < columns:
        # a batch does not carry into c1, so it is used up to where c0 wraps at most
        block, skipped = <uint64_t>(at + i) // 4, (at + i) % 4
        stop = min(columns, i + min(PHILOX_BATCH_WORDS, 4 * ((<ptrdiff_t>1 << 32) - <uint32_t>block)) - skipped)
        philox_batch(g.seed, <uint32_t>block, <uint32_t>(block >> 32), 0, 0, words)
        for j in range(stop - i):
            value = sums[i + j] * keep
            sums[i + j] = value if words[skipped + j] >= threshold else 0
        i = stop


cdef void backward_epilogue(GemmTask *g, const SumsTile *t) noexcept nogil:
    """d_multiplier = sums * act(input_pre); sums = sums * act'(input_pre) * multiplier."""
    cdef float factors[PAIR_TILE_ROWS * TILE_COLUMNS]
    cdef SumsTile f = t[0]
    f.sums = factors
    if g.d_multiplier != NULL:
        load_elements(g, &f, g.input_pre)
        activate_all(factors, f.rows * f.sums_row, g.activation)
        multiply_by_sums(&f, t.sums)
        store_sums(g, &f, NULL, g.d_multiplier)
    load_elements(g, &f, g.input_pre)
    derive_all(factors, f.rows * f.sums_row, g.activation)
    multiply_by_sums(t, factors)
    if g.multiplier != NULL:
        multiply_elements(g, t, g.multiplier)


cdef inline void load_elements(const GemmTask *g, const SumsTile *t, const float *x) noexcept nogil:
    """sums = x's elements, zeros behind them."""
    cdef ptrdiff_t r, i
    for r in range(t.rows):
        for i from 0 <= i < t.sums_row by VF_WIDTH:
            vf_store(
                t.sums + r * t.sums_row + i,
                load_part(x + t.at + r * g.out_row + i, t.columns - i) if i < t.columns else vf_zero(),
            )


cdef inline void multiply_by_sums(const SumsTile *t, const float *sums) noexcept nogil:
    """sums *= those of another tile."""
    cdef ptrdiff_t i
    for i from 0 <= i < t.rows * t.sums_row by VF_WIDTH:
        vf_store(t.sums + i, vf_mul(vf_load(t.sums + i), vf_load(sums + i)))


cdef void activate_all(float *x, ptrdiff_t count, int activation) noexcept nogil:
    """x = act(x); each branch is a loop over one formula."""
    cdef ptrdiff_t i
    if activation == ACTIVATION_GELU:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_GELU))
    elif activation == ACTIVATION_GELU_TANH:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_GELU_TANH))
    elif activation == ACTIVATION_SILU:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_SILU))
    elif activation == ACTIVATION_RELU:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_RELU))


cdef void derive_all(float *x, ptrdiff_t count, int activation) noexcept nogil:
    """x = act'(x)."""
    cdef ptrdiff_t i
    if activation == ACTIVATION_GELU:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_GELU))
    elif activation == ACTIVATION_GELU_TANH:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_GELU_TANH))
    elif activation == ACTIVATION_SILU:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_SILU))
    elif activation == ACTIVATION_RELU:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_RELU))
    else:
        for i from 0 <= i < count by VF_WIDTH:
            vf_store(x + i, vf_set(1))
