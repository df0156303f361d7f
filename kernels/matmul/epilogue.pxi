# What happens to a row of sums on its way to out, while it is in L1. Included by gemm.pxi.
#
# One pass a step: short loops of independent vectors keep the processor's pipelines full, where one long loop over
# all steps would wait for each exponential.


cdef void store_row(
    GemmTask *g, float *sums, ptrdiff_t row, ptrdiff_t column, ptrdiff_t columns, bint load, bint last
) noexcept nogil:
    """columns sums of one row of out, through the epilogue if these are the last of k. The sums are used up; they lie
    in whole vectors, whose lanes past `columns` count for nothing."""
    cdef ptrdiff_t at = row * g.out_row + column, i
    cdef float *out = g.out + at
    if load:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(sums + i, vf_add(load_part(out + i, columns - i), vf_load(sums + i)))
    if last and g.input_pre != NULL:
        backward_epilogue(g, sums, at, columns)
    elif last and not g.plain:
        forward_epilogue(g, sums, at, column, columns)
    for i from 0 <= i < columns by VF_WIDTH:
        store_part(out + i, vf_load(sums + i), columns - i)


cdef void forward_epilogue(
    GemmTask *g, float *sums, ptrdiff_t at, ptrdiff_t column, ptrdiff_t columns
) noexcept nogil:
    """sums = dropout(act(sums + bias) * multiplier) + residual; pre_activation = sums + bias."""
    cdef ptrdiff_t i
    if g.bias != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(sums + i, vf_add(vf_load(sums + i), load_part(g.bias + column + i, columns - i)))
    if g.pre_activation != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            store_part(g.pre_activation + at + i, vf_load(sums + i), columns - i)
    activate_row(sums, columns, g.activation)
    if g.multiplier != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(sums + i, vf_mul(vf_load(sums + i), load_part(g.multiplier + at + i, columns - i)))
    if g.drops:
        drop_row(g, sums, at, columns)
    if g.residual != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(sums + i, vf_add(vf_load(sums + i), load_part(g.residual + at + i, columns - i)))


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


cdef void backward_epilogue(GemmTask *g, float *sums, ptrdiff_t at, ptrdiff_t columns) noexcept nogil:
    """d_multiplier = sums * act(input_pre); sums = sums * act'(input_pre) * multiplier."""
    cdef float factors[TILE_SUMS * VF_WIDTH]
    cdef ptrdiff_t i
    if g.d_multiplier != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(factors + i, load_part(g.input_pre + at + i, columns - i))
        activate_row(factors, columns, g.activation)
        for i from 0 <= i < columns by VF_WIDTH:
            store_part(g.d_multiplier + at + i, vf_mul(vf_load(sums + i), vf_load(factors + i)), columns - i)
    for i from 0 <= i < columns by VF_WIDTH:
        vf_store(factors + i, load_part(g.input_pre + at + i, columns - i))
    derive_row(factors, columns, g.activation)
    for i from 0 <= i < columns by VF_WIDTH:
        vf_store(sums + i, vf_mul(vf_load(sums + i), vf_load(factors + i)))
    if g.multiplier != NULL:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(sums + i, vf_mul(vf_load(sums + i), load_part(g.multiplier + at + i, columns - i)))


cdef void activate_row(float *x, ptrdiff_t columns, int activation) noexcept nogil:
    """x = act(x); each branch is a loop over one formula."""
    cdef ptrdiff_t i
    if activation == ACTIVATION_GELU:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_GELU))
    elif activation == ACTIVATION_GELU_TANH:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_GELU_TANH))
    elif activation == ACTIVATION_SILU:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_SILU))
    elif activation == ACTIVATION_RELU:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_activate(vf_load(x + i), ACTIVATION_RELU))


cdef void derive_row(float *x, ptrdiff_t columns, int activation) noexcept nogil:
    """x = act'(x)."""
    cdef ptrdiff_t i
    if activation == ACTIVATION_GELU:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_GELU))
    elif activation == ACTIVATION_GELU_TANH:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_GELU_TANH))
    elif activation == ACTIVATION_SILU:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_SILU))
    elif activation == ACTIVATION_RELU:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_derivative(vf_load(x + i), ACTIVATION_RELU))
    else:
        for i from 0 <= i < columns by VF_WIDTH:
            vf_store(x + i, vf_set(1))
