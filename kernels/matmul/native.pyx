"""Matrix products in Cython: the packed GEMM of gemm.pxi with what each function needs in its epilogue.

Shapes and meaning: reference.py. Knows nothing of layers beyond one linear map.
"""

include "vec.pxi"
include "matmul/gemm.pxi"


def matmul(const float[:, ::1] a, const float[:, ::1] b, float[:, ::1] out, bint transpose_a, bint transpose_b,
           bint accumulate):
    cdef ptrdiff_t k = a.shape[0] if transpose_a else a.shape[1]
    cdef GemmTask g = gemm_task(
        &a[0, 0], 1 if transpose_a else a.shape[1], a.shape[1] if transpose_a else 1,
        &b[0, 0], 1 if transpose_b else b.shape[1], b.shape[1] if transpose_b else 1,
        &out[0, 0], out.shape[0], out.shape[1], k, accumulate,
    )
    with nogil:
        gemm(&g)


def linear_forward(const float[:, ::1] x, const float[:, ::1] weight, const float[::1] bias,
                   const float[:, ::1] multiplier, const float[:, ::1] residual, float[:, ::1] pre_activation,
                   float[:, ::1] out, bint transpose_weight, int activation):
    cdef GemmTask g = gemm_task(
        &x[0, 0], x.shape[1], 1,
        &weight[0, 0], 1 if transpose_weight else weight.shape[1], weight.shape[1] if transpose_weight else 1,
        &out[0, 0], out.shape[0], out.shape[1], x.shape[1], False,
    )
    g.activation = activation
    if bias is not None:
        g.bias = &bias[0]
    if multiplier is not None:
        g.multiplier = &multiplier[0, 0]
    if residual is not None:
        g.residual = &residual[0, 0]
    if pre_activation is not None:
        g.pre_activation = &pre_activation[0, 0]
    with nogil:
        gemm(&g)


def linear_backward_input(const float[:, ::1] d_out, const float[:, ::1] weight, const float[:, ::1] pre_activation,
                          const float[:, ::1] multiplier, float[:, ::1] d_x, float[:, ::1] d_multiplier,
                          bint transpose_weight, int activation, bint accumulate):
    # d_h = d_out W^T: a weight stored [out, in] is already W^T
    cdef GemmTask g = gemm_task(
        &d_out[0, 0], d_out.shape[1], 1,
        &weight[0, 0], weight.shape[1] if transpose_weight else 1, 1 if transpose_weight else weight.shape[1],
        &d_x[0, 0], d_x.shape[0], d_x.shape[1], d_out.shape[1], accumulate,
    )
    g.activation = activation
    if pre_activation is not None:
        g.input_pre = &pre_activation[0, 0]
    if multiplier is not None:
        g.multiplier = &multiplier[0, 0]
    if d_multiplier is not None:
        g.d_multiplier = &d_multiplier[0, 0]
    with nogil:
        gemm(&g)


def linear_backward_weight(const float[:, ::1] x, const float[:, ::1] d_out, float[:, ::1] d_weight,
                           bint transpose_weight):
    # d_W += x^T d_out, or its transpose
    if transpose_weight:
        matmul(d_out, x, d_weight, True, False, True)
    else:
        matmul(x, d_out, d_weight, True, False, True)


cdef struct BiasTask:
    const float *d_out
    float *d_bias
    ptrdiff_t rows, columns

cdef enum:
    BIAS_COLUMNS = 64  # columns a task: 256 bytes of each row


def linear_backward_bias(const float[:, ::1] d_out, float[::1] d_bias):
    cdef BiasTask b
    b.d_out, b.d_bias = &d_out[0, 0], &d_bias[0]
    b.rows, b.columns = d_out.shape[0], d_out.shape[1]
    cdef ptrdiff_t tasks = (b.columns + BIAS_COLUMNS - 1) // BIAS_COLUMNS
    with nogil:
        pool_run(bias_block, &b, tasks)


cdef void bias_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef BiasTask *b = <BiasTask *>argument
    cdef float sums[BIAS_COLUMNS]
    cdef ptrdiff_t start = task * BIAS_COLUMNS, columns = min(BIAS_COLUMNS, b.columns - start), row, column
    cdef const float *values
    memset(sums, 0, sizeof(sums))
    for row in range(b.rows):
        values = b.d_out + row * b.columns + start
        if columns == BIAS_COLUMNS:
            for column in range(BIAS_COLUMNS):
                sums[column] += values[column]
        else:
            for column in range(columns):
                sums[column] += values[column]
    for column in range(columns):
        b.d_bias[start + column] += sums[column]


# ---- constant weights, packed once ----

def packed_size(ptrdiff_t inputs, ptrdiff_t outputs):
    return inputs * ((outputs + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS)


cdef struct PackTask:
    const float *weight
    ptrdiff_t k_stride, column_stride
    float *packed
    ptrdiff_t k, n


def pack_weight(const float[:, ::1] weight, float[::1] packed, bint transpose_weight):
    cdef PackTask p
    cdef ptrdiff_t panels
    p.weight, p.packed = &weight[0, 0], &packed[0]
    p.k = weight.shape[1] if transpose_weight else weight.shape[0]
    p.n = weight.shape[0] if transpose_weight else weight.shape[1]
    p.k_stride = 1 if transpose_weight else weight.shape[1]
    p.column_stride = weight.shape[1] if transpose_weight else 1
    panels = (p.n + TILE_COLUMNS - 1) // TILE_COLUMNS
    with nogil:
        pool_run(pack_weight_panel, &p, panels)


cdef void pack_weight_panel(void *argument, ptrdiff_t panel) noexcept nogil:
    cdef PackTask *p = <PackTask *>argument
    cdef ptrdiff_t panels = (p.n + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef ptrdiff_t column = panel * TILE_COLUMNS, k_start, depth
    k_start = 0
    while k_start < p.k:
        depth = min(K_BLOCK, p.k - k_start)
        pack_panel(
            p.weight + k_start * p.k_stride + column * p.column_stride, p.k_stride, p.column_stride, depth,
            min(TILE_COLUMNS, p.n - column), p.packed + (k_start * panels + panel * depth) * TILE_COLUMNS,
        )
        k_start += K_BLOCK


def linear_forward_packed(const float[:, ::1] x, const float[::1] packed, const float[::1] bias,
                          const float[:, ::1] multiplier, const float[:, ::1] residual, float[:, ::1] out,
                          int activation):
    cdef GemmTask g = gemm_task(
        &x[0, 0], x.shape[1], 1, NULL, 0, 1, &out[0, 0], out.shape[0], out.shape[1], x.shape[1], False,
    )
    g.packed_b = &packed[0]
    g.activation = activation
    if bias is not None:
        g.bias = &bias[0]
    if multiplier is not None:
        g.multiplier = &multiplier[0, 0]
    if residual is not None:
        g.residual = &residual[0, 0]
    with nogil:
        gemm(&g)
