"""AdamW, SGD and the gradient's norm in Cython: fixed blocks of elements are tasks.

Memory bandwidth is the limit, so each array is passed over once, in plain loops that the compiler makes vectors of.
"""

include "vec.pxi"
include "bfloat16.pxi"

from libc.math cimport sqrtf

from fastmixer.kernels.optimizer import BLOCK, adamw_factors

cdef ptrdiff_t BLOCK_SIZE = BLOCK

cdef enum:
    STRIP_COLUMNS = 768  # of a matrix: PANEL_COLUMNS rows of them stay in L2 until they are rounded


cdef struct Update:
    float *p
    float *m
    float *v
    const float *g
    ptrdiff_t count
    float keep
    float step_size
    float root_scale
    float beta1
    float rest1  # 1 - beta1
    float beta2
    float rest2
    float epsilon
    float gradient_scale
    bint zero_gradient


cdef inline void zero(const float *g, ptrdiff_t count) noexcept nogil:
    cdef float *target = <float *>g  # asked for by the caller, who checked that g may be written
    cdef ptrdiff_t i
    for i in range(count):
        target[i] = 0


cdef inline void adamw_range(const Update *op, ptrdiff_t start, ptrdiff_t count) noexcept nogil:
    cdef ptrdiff_t i
    cdef float *p = op.p + start
    cdef float *m = op.m + start
    cdef float *v = op.v + start
    cdef const float *g = op.g + start
    cdef float keep = op.keep, step_size = op.step_size, root_scale = op.root_scale, epsilon = op.epsilon
    cdef float beta1 = op.beta1, rest1 = op.rest1, beta2 = op.beta2, rest2 = op.rest2
    cdef float gradient_scale = op.gradient_scale, gradient, moment, square
    for i in range(count):
        # 1. clip
        gradient = g[i] * gradient_scale
        # 2. the moments
        moment = beta1 * m[i] + rest1 * gradient
        square = beta2 * v[i] + rest2 * gradient * gradient
        m[i] = moment
        v[i] = square
        # 3. decay and step
        p[i] = keep * p[i] - step_size * moment / (root_scale * sqrtf(square) + epsilon)
    # 4. zero the gradient
    if op.zero_gradient:
        zero(g, count)


cdef void adamw_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Update *op = <const Update *>argument
    adamw_range(op, task * BLOCK_SIZE, min(BLOCK_SIZE, op.count - task * BLOCK_SIZE))


cdef int set_factors(Update *op, double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
                     ptrdiff_t step, double gradient_scale, bint zero_gradient) except -1:
    op.keep, op.step_size, op.root_scale = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    op.beta1, op.rest1 = beta1, 1 - beta1
    op.beta2, op.rest2 = beta2, 1 - beta2
    op.epsilon, op.gradient_scale, op.zero_gradient = epsilon, gradient_scale, zero_gradient
    return 0


def adamw(float[::1] p, float[::1] m, float[::1] v, const float[::1] g, double learning_rate, double beta1,
          double beta2, double epsilon, double weight_decay, ptrdiff_t step, double gradient_scale,
          bint zero_gradient):
    """One AdamW step, in place. p, m, v, g: float32 [n]; step counts from 1; g is written only if zero_gradient."""
    cdef Update op
    if p.shape[0] == 0:
        return
    op.p, op.m, op.v, op.g, op.count = &p[0], &m[0], &v[0], &g[0], p.shape[0]
    set_factors(&op, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale, zero_gradient)
    with nogil:
        pool_run(adamw_block, &op, (op.count + BLOCK_SIZE - 1) // BLOCK_SIZE)


# A matrix whose rounded copies the products read: they are written while its new rows are in cache.
cdef struct MatrixUpdate:
    Update update
    PairsTask pairs


cdef void adamw_rows(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const MatrixUpdate *op = <const MatrixUpdate *>argument
    cdef ptrdiff_t row = task * PAIR_ROWS, stop = min(op.pairs.rows, row + PAIR_ROWS), column, end, i
    for column from 0 <= column < op.pairs.columns by STRIP_COLUMNS:
        end = min(op.pairs.columns, column + STRIP_COLUMNS)
        for i in range(row, stop):
            adamw_range(&op.update, i * op.pairs.columns + column, end - column)
        pairs_in_panels(&op.pairs, row, stop, column, end)


def adamw_bfloat16(float[:, ::1] p, float[:, ::1] m, float[:, ::1] v, const float[:, ::1] g, uint32_t[:, :, ::1] over_rows,
                   uint32_t[:, :, ::1] over_columns, double learning_rate, double beta1, double beta2, double epsilon,
                   double weight_decay, ptrdiff_t step, double gradient_scale, bint zero_gradient):
    """One AdamW step of a matrix p, m, v, g: float32 [rows, columns], and in the same pass its rounded copies in panels
    (kernels/bfloat16.py), over_rows: uint32 [ceil(columns / 48), ceil(rows / 2), 48] and over_columns: uint32
    [ceil(rows / 48), ceil(columns / 2), 48]."""
    cdef MatrixUpdate op
    if p.shape[0] == 0 or p.shape[1] == 0:
        return
    op.update.p, op.update.m, op.update.v, op.update.g = &p[0, 0], &m[0, 0], &v[0, 0], &g[0, 0]
    op.pairs = pairs_task(&p[0, 0], p.shape[1], p.shape[0], p.shape[1])
    op.pairs.over_rows, op.pairs.over_columns = <float *>&over_rows[0, 0, 0], <float *>&over_columns[0, 0, 0]
    op.pairs.stream = True
    set_factors(&op.update, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale, zero_gradient)
    with nogil:
        pool_run(adamw_rows, &op, (op.pairs.rows + PAIR_ROWS - 1) // PAIR_ROWS)


cdef void sgd_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Update *op = <const Update *>argument
    cdef ptrdiff_t i, start = task * BLOCK_SIZE
    cdef ptrdiff_t count = min(BLOCK_SIZE, op.count - start)
    cdef float *p = op.p + start
    cdef const float *g = op.g + start
    cdef float rate = op.step_size
    for i in range(count):
        p[i] -= rate * g[i]
    if op.zero_gradient:
        zero(g, count)


def sgd(float[::1] p, const float[::1] g, double learning_rate, double gradient_scale, bint zero_gradient):
    """p -= learning_rate * gradient_scale * g. p, g: float32 [n]; g is written only if zero_gradient."""
    cdef Update op
    if p.shape[0] == 0:
        return
    op.p = &p[0]
    op.g = &g[0]
    op.count = p.shape[0]
    op.step_size = learning_rate * gradient_scale
    op.zero_gradient = zero_gradient
    with nogil:
        pool_run(sgd_block, &op, (op.count + BLOCK_SIZE - 1) // BLOCK_SIZE)


cdef enum:
    LANES = 32  # independent sums, enough to hide the additions' latency


cdef struct Search:
    const float *x
    ptrdiff_t count
    double *sums
    int64_t *indices


cdef void square_sum_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Search *op = <const Search *>argument
    cdef const float *x = op.x + task * BLOCK_SIZE
    cdef ptrdiff_t i = 0, count = min(BLOCK_SIZE, op.count - task * BLOCK_SIZE)
    cdef double sums[LANES]
    cdef double value, total = 0
    cdef int lane
    for lane in range(LANES):
        sums[lane] = 0
    while i + LANES <= count:
        for lane in range(LANES):
            value = x[i + lane]
            sums[lane] += value * value
        i += LANES
    while i < count:
        value = x[i]
        total += value * value
        i += 1
    for lane in range(LANES):
        total += sums[lane]
    op.sums[task] = total


def squared_norm(const float[::1] g, double[::1] partial):
    """The sum of g^2 as a float, summed in float64. g: float32 [n]; partial: float64 [blocks(n)], scratch."""
    cdef Search op
    cdef ptrdiff_t block, blocks = partial.shape[0]
    cdef double total = 0
    if blocks == 0:
        return 0.0
    op.x = &g[0]
    op.count = g.shape[0]
    op.sums = &partial[0]
    with nogil:
        pool_run(square_sum_block, &op, blocks)
        for block in range(blocks):
            total += partial[block]
    return total


cdef void first_nonfinite_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Search *op = <const Search *>argument
    cdef const float *x = op.x + task * BLOCK_SIZE
    cdef ptrdiff_t i, count = min(BLOCK_SIZE, op.count - task * BLOCK_SIZE)
    cdef float difference
    cdef int found = 0
    # 1. is there any (x - x is NaN for infinity and NaN, otherwise 0)
    for i in range(count):
        difference = x[i] - x[i]
        found |= difference != 0
    # 2. which is the first
    op.indices[task] = -1
    if found:
        for i in range(count):
            difference = x[i] - x[i]
            if difference != 0:
                op.indices[task] = i
                return


def first_nonfinite(const float[::1] x, int64_t[::1] partial):
    """The index of the first NaN or infinity in x: float32 [n], -1 if none; partial: int64 [blocks(n)], scratch."""
    cdef Search op
    cdef ptrdiff_t block, blocks = partial.shape[0]
    if blocks == 0:
        return -1
    op.x = &x[0]
    op.count = x.shape[0]
    op.indices = &partial[0]
    with nogil:
        pool_run(first_nonfinite_block, &op, blocks)
    for block in range(blocks):
        if partial[block] >= 0:
            return block * BLOCK_SIZE + partial[block]
    return -1
