# The linear layer for native modules, over the GEMM: include "vec.pxi", "matmul/gemm.pxi", then "matmul/linear.pxi".
# Weights are [in, out], or [out, in] where transpose_weight is said. Shapes and meaning: matmul/reference.py.

from fastmixer.kernels.philox import keep_scale, keep_threshold


cdef inline GemmTask linear_task(
    const float *x, const float *weight, bint transpose_weight, const float *bias, int activation, float *out,
    ptrdiff_t tokens, ptrdiff_t inputs, ptrdiff_t outputs,
) noexcept nogil:
    """out = act(x W + bias); multiplier, residual, pre_activation and dropout are set in the task that is returned."""
    cdef GemmTask g = gemm_task(
        x, inputs, 1, weight, 1 if transpose_weight else outputs, inputs if transpose_weight else 1,
        out, tokens, outputs, inputs, False,
    )
    g.bias = bias
    g.activation = activation
    return g


cdef inline int drop_out(GemmTask *g, double rate, uint64_t seed) except -1:
    """Have the task zero elements of out with this probability before the residual is added; rate 0: none."""
    if rate > 0:
        g.drops, g.seed, g.threshold, g.keep = True, seed, keep_threshold(rate), keep_scale(rate)
    return 0


cdef inline GemmTask input_gradient_task(
    const float *d_out, const float *weight, bint transpose_weight, float *d_x,
    ptrdiff_t tokens, ptrdiff_t inputs, ptrdiff_t outputs, bint accumulate,
) noexcept nogil:
    """d_x = (d_x +) d_out W^T: a weight stored [out, in] is W^T already."""
    return gemm_task(
        d_out, outputs, 1, weight, inputs if transpose_weight else 1, 1 if transpose_weight else outputs,
        d_x, tokens, inputs, outputs, accumulate,
    )


cdef inline GemmTask weight_gradient_task(
    const float *x, const float *d_out, float *d_weight, bint transpose_weight,
    ptrdiff_t tokens, ptrdiff_t inputs, ptrdiff_t outputs, bint accumulate,
) noexcept nogil:
    """d_W = (d_W +) x^T d_out, or its transpose d_out^T x."""
    if transpose_weight:
        return gemm_task(d_out, 1, outputs, x, inputs, 1, d_weight, outputs, inputs, tokens, accumulate)
    return gemm_task(x, 1, inputs, d_out, outputs, 1, d_weight, inputs, outputs, tokens, accumulate)


cdef inline int add_weight_gradient(
    const float *x, const float *d_out, float *d_weight, bint transpose_weight,
    ptrdiff_t tokens, ptrdiff_t inputs, ptrdiff_t outputs, bint accumulate,
) except -1 nogil:
    cdef GemmTask g = weight_gradient_task(x, d_out, d_weight, transpose_weight, tokens, inputs, outputs, accumulate)
    return gemm(&g)


cdef enum:
    BIAS_VECTORS = 4
    BIAS_COLUMNS = BIAS_VECTORS * VF_WIDTH  # columns a task


cdef struct BiasTask:
    const float *d_out
    float *d_bias
    ptrdiff_t rows, columns


cdef int add_bias_gradient(const float *d_out, float *d_bias, ptrdiff_t rows, ptrdiff_t columns) except -1 nogil:
    """d_bias += the sum of d_out over its rows."""
    cdef BiasTask b
    b.d_out, b.d_bias, b.rows, b.columns = d_out, d_bias, rows, columns
    return pool_run(bias_block, &b, (columns + BIAS_COLUMNS - 1) // BIAS_COLUMNS)


cdef void bias_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef BiasTask *b = <BiasTask *>argument
    cdef vf sums[BIAS_VECTORS]
    cdef ptrdiff_t start = task * BIAS_COLUMNS, columns = min(BIAS_COLUMNS, b.columns - start), row, j, lanes
    cdef const float *values
    for j in range(BIAS_VECTORS):
        sums[j] = vf_zero()
    for row in range(b.rows):
        values = b.d_out + row * b.columns + start
        if columns == BIAS_COLUMNS:
            for j in range(BIAS_VECTORS):
                sums[j] = vf_add(sums[j], vf_load(values + j * VF_WIDTH))
        else:
            for j in range(BIAS_VECTORS):
                lanes = max(0, min(VF_WIDTH, columns - j * VF_WIDTH))
                sums[j] = vf_add(sums[j], vf_load_first(values + j * VF_WIDTH, lanes))
    for j in range(BIAS_VECTORS):
        lanes = max(0, min(VF_WIDTH, columns - j * VF_WIDTH))
        if lanes > 0:
            vf_store_first(
                b.d_bias + start + j * VF_WIDTH,
                vf_add(vf_load_first(b.d_bias + start + j * VF_WIDTH, lanes), sums[j]), lanes,
            )
