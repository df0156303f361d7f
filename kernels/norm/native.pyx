"""LayerNorm and RMSNorm in Cython: blocks of rows are tasks; what is summed over rows goes through `partial`.

A row is passed over several times, but comes from memory once. Sums over a row run in vectors (vec.h); loops without
a sum are plain, the compiler makes vectors of them.
"""

include "vec.pxi"
include "norm/sums.pxi"

from libc.math cimport sqrtf

from fastmixer.kernels.norm import row_block


cdef struct Norm:
    const float *x
    const float *weight
    const float *bias  # NULL: none
    float epsilon
    float *out
    float *mean  # NULL: RMSNorm
    float *inverse  # inverse_std or inverse_rms
    const float *d_out
    const float *d_residual  # NULL: none
    float *d_x
    float *partial
    ptrdiff_t tokens
    ptrdiff_t dim
    ptrdiff_t rows  # a task


cdef void layernorm_forward_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Norm *op = <const Norm *>argument
    cdef ptrdiff_t t, i, dim = op.dim
    cdef const float *weight = op.weight
    cdef const float *bias = op.bias
    cdef const float *x
    cdef float *out
    cdef float mean, inverse_std
    for t in range(task * op.rows, min((task + 1) * op.rows, op.tokens)):
        x = op.x + t * dim
        out = op.out + t * dim
        # 1. the row's mean and inverse standard deviation
        mean = row_sum(x, dim) / dim
        inverse_std = 1 / sqrtf(row_square_sum(x, mean, dim) / dim + op.epsilon)
        op.mean[t] = mean
        op.inverse[t] = inverse_std
        # 2. normalize, scale and shift
        if bias == NULL:
            for i in range(dim):
                out[i] = (x[i] - mean) * inverse_std * weight[i]
        else:
            for i in range(dim):
                out[i] = (x[i] - mean) * inverse_std * weight[i] + bias[i]


def layernorm_forward(const float[:, ::1] x, const float[::1] weight, const float[::1] bias, float epsilon,
                      float[:, ::1] out, float[::1] mean, float[::1] inverse_std):
    """out = (x - mean) * inverse_std * weight + bias, each row of x by its own mean and variance.

    x, out: float32 [tokens, dim]; weight, bias (or None): float32 [dim]; mean, inverse_std: float32 [tokens].
    """
    cdef Norm op
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    op.x = &x[0, 0]
    op.weight = &weight[0]
    op.bias = &bias[0] if bias is not None else NULL
    op.epsilon = epsilon
    op.out = &out[0, 0]
    op.mean = &mean[0]
    op.inverse = &inverse_std[0]
    op.tokens = x.shape[0]
    op.dim = x.shape[1]
    op.rows = row_block(op.tokens)
    with nogil:
        pool_run(layernorm_forward_block, &op, (op.tokens + op.rows - 1) // op.rows)


cdef void rmsnorm_forward_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Norm *op = <const Norm *>argument
    cdef ptrdiff_t t, i, dim = op.dim
    cdef const float *weight = op.weight
    cdef const float *x
    cdef float *out
    cdef float inverse_rms
    for t in range(task * op.rows, min((task + 1) * op.rows, op.tokens)):
        x = op.x + t * dim
        out = op.out + t * dim
        # 1. the row's inverse root mean square
        inverse_rms = 1 / sqrtf(row_square_sum(x, 0, dim) / dim + op.epsilon)
        op.inverse[t] = inverse_rms
        # 2. normalize and scale
        for i in range(dim):
            out[i] = x[i] * inverse_rms * weight[i]


def rmsnorm_forward(const float[:, ::1] x, const float[::1] weight, float epsilon, float[:, ::1] out,
                    float[::1] inverse_rms):
    """out = x * inverse_rms * weight, each row of x by its own root mean square.

    x, out: float32 [tokens, dim]; weight: float32 [dim]; inverse_rms: float32 [tokens].
    """
    cdef Norm op
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    op.x = &x[0, 0]
    op.weight = &weight[0]
    op.epsilon = epsilon
    op.out = &out[0, 0]
    op.inverse = &inverse_rms[0]
    op.tokens = x.shape[0]
    op.dim = x.shape[1]
    op.rows = row_block(op.tokens)
    with nogil:
        pool_run(rmsnorm_forward_block, &op, (op.tokens + op.rows - 1) // op.rows)


cdef inline vf normalize(vf x, vf mean, vf inverse) noexcept nogil:
    return vf_mul(vf_sub(x, mean), inverse)


# Adds one row to d_weight and d_bias (NULL: none), and gives the means over the row of d_normalized and of
# d_normalized * normalized, where normalized = (x - mean) * inverse and d_normalized = d_out * weight.
cdef inline void gradient_sums(const float *d_out, const float *x, const float *weight, float row_mean,
                               float row_inverse, ptrdiff_t dim, float *d_weight, float *d_bias,
                               float *along_mean, float *along_normalized) noexcept nogil:
    cdef vf mean = vf_set(row_mean), inverse = vf_set(row_inverse), d_out_lanes, normalized, d_normalized
    cdef vf total = vf_zero(), product_total = vf_zero()
    cdef ptrdiff_t i = 0, rest
    while i + VF_WIDTH <= dim:
        # 1. the parameter gradients
        d_out_lanes = vf_load(d_out + i)
        normalized = normalize(vf_load(x + i), mean, inverse)
        vf_store(d_weight + i, vf_fma(d_out_lanes, normalized, vf_load(d_weight + i)))
        if d_bias != NULL:
            vf_store(d_bias + i, vf_add(d_out_lanes, vf_load(d_bias + i)))
        # 2. what the row's mean and variance take out of the gradient
        d_normalized = vf_mul(d_out_lanes, vf_load(weight + i))
        total = vf_add(total, d_normalized)
        product_total = vf_fma(d_normalized, normalized, product_total)
        i += VF_WIDTH
    rest = dim - i
    if rest > 0:  # the same, with lanes of zeros in d_out past the end of the row
        d_out_lanes = vf_load_first(d_out + i, rest)
        normalized = normalize(vf_load_first(x + i, rest), mean, inverse)
        vf_store_first(d_weight + i, vf_fma(d_out_lanes, normalized, vf_load_first(d_weight + i, rest)), rest)
        if d_bias != NULL:
            vf_store_first(d_bias + i, vf_add(d_out_lanes, vf_load_first(d_bias + i, rest)), rest)
        d_normalized = vf_mul(d_out_lanes, vf_load_first(weight + i, rest))
        total = vf_add(total, d_normalized)
        product_total = vf_fma(d_normalized, normalized, product_total)
    along_mean[0] = vf_sum(total) / dim
    along_normalized[0] = vf_sum(product_total) / dim


cdef inline void zero(float *values, ptrdiff_t count) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(count):
        values[i] = 0


cdef inline void add(float *target, const float *values, ptrdiff_t count) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(count):
        target[i] += values[i]


cdef void layernorm_backward_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Norm *op = <const Norm *>argument
    cdef ptrdiff_t t, i, dim = op.dim
    cdef const float *weight = op.weight
    cdef float *d_weight = op.partial + task * 2 * dim
    cdef float *d_bias = d_weight + dim
    cdef const float *x
    cdef const float *d_out
    cdef const float *d_residual
    cdef float *d_x
    cdef float mean, inverse_std, along_mean, along_normalized, gradient
    zero(d_weight, 2 * dim)
    for t in range(task * op.rows, min((task + 1) * op.rows, op.tokens)):
        x = op.x + t * dim
        d_out = op.d_out + t * dim
        d_x = op.d_x + t * dim
        mean = op.mean[t]
        inverse_std = op.inverse[t]
        # 1. the parameter gradients; 2. what the row's mean and variance take out of the gradient
        gradient_sums(d_out, x, weight, mean, inverse_std, dim, d_weight, d_bias, &along_mean, &along_normalized)
        # 3. the gradient of the row
        if op.d_residual == NULL:
            for i in range(dim):
                gradient = d_out[i] * weight[i] - along_mean - (x[i] - mean) * inverse_std * along_normalized
                d_x[i] = gradient * inverse_std
        else:
            d_residual = op.d_residual + t * dim
            for i in range(dim):
                gradient = d_out[i] * weight[i] - along_mean - (x[i] - mean) * inverse_std * along_normalized
                d_x[i] = gradient * inverse_std + d_residual[i]


def layernorm_backward(const float[:, ::1] d_out, const float[:, ::1] x, const float[::1] weight,
                       const float[::1] mean, const float[::1] inverse_std, const float[:, ::1] d_residual,
                       float[:, ::1] d_x, float[::1] d_weight, float[::1] d_bias, float[:, :, ::1] partial):
    """d_x = d_residual + the gradient; d_weight += ...; d_bias += ...

    d_out, x, d_residual (or None), d_x: float32 [tokens, dim]; weight, d_weight, d_bias (or None): float32 [dim];
    mean, inverse_std: float32 [tokens]; partial: float32 [row_blocks(tokens), 2, dim], scratch.
    """
    cdef Norm op
    cdef ptrdiff_t block, blocks = partial.shape[0]
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    op.d_out = &d_out[0, 0]
    op.x = &x[0, 0]
    op.weight = &weight[0]
    op.mean = <float *>&mean[0]
    op.inverse = <float *>&inverse_std[0]
    op.d_residual = &d_residual[0, 0] if d_residual is not None else NULL
    op.d_x = &d_x[0, 0]
    op.partial = &partial[0, 0, 0]
    op.tokens = x.shape[0]
    op.dim = x.shape[1]
    op.rows = row_block(op.tokens)
    with nogil:
        pool_run(layernorm_backward_block, &op, blocks)
        for block in range(blocks):
            add(&d_weight[0], &partial[block, 0, 0], op.dim)
            if d_bias is not None:
                add(&d_bias[0], &partial[block, 1, 0], op.dim)


cdef void rmsnorm_backward_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef const Norm *op = <const Norm *>argument
    cdef ptrdiff_t t, i, dim = op.dim
    cdef const float *weight = op.weight
    cdef float *d_weight = op.partial + task * dim
    cdef const float *x
    cdef const float *d_out
    cdef const float *d_residual
    cdef float *d_x
    cdef float inverse_rms, unused, along_normalized, gradient
    zero(d_weight, dim)
    for t in range(task * op.rows, min((task + 1) * op.rows, op.tokens)):
        x = op.x + t * dim
        d_out = op.d_out + t * dim
        d_x = op.d_x + t * dim
        inverse_rms = op.inverse[t]
        # 1. the parameter gradient; 2. what the row's root mean square takes out of the gradient
        gradient_sums(d_out, x, weight, 0, inverse_rms, dim, d_weight, NULL, &unused, &along_normalized)
        # 3. the gradient of the row
        if op.d_residual == NULL:
            for i in range(dim):
                gradient = d_out[i] * weight[i] - x[i] * inverse_rms * along_normalized
                d_x[i] = gradient * inverse_rms
        else:
            d_residual = op.d_residual + t * dim
            for i in range(dim):
                gradient = d_out[i] * weight[i] - x[i] * inverse_rms * along_normalized
                d_x[i] = gradient * inverse_rms + d_residual[i]


def rmsnorm_backward(const float[:, ::1] d_out, const float[:, ::1] x, const float[::1] weight,
                     const float[::1] inverse_rms, const float[:, ::1] d_residual, float[:, ::1] d_x,
                     float[::1] d_weight, float[:, :, ::1] partial):
    """d_x = d_residual + the gradient; d_weight += ...

    d_out, x, d_residual (or None), d_x: float32 [tokens, dim]; weight, d_weight: float32 [dim];
    inverse_rms: float32 [tokens]; partial: float32 [row_blocks(tokens), 1, dim], scratch.
    """
    cdef Norm op
    cdef ptrdiff_t block, blocks = partial.shape[0]
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    op.d_out = &d_out[0, 0]
    op.x = &x[0, 0]
    op.weight = &weight[0]
    op.inverse = <float *>&inverse_rms[0]
    op.d_residual = &d_residual[0, 0] if d_residual is not None else NULL
    op.d_x = &d_x[0, 0]
    op.partial = &partial[0, 0, 0]
    op.tokens = x.shape[0]
    op.dim = x.shape[1]
    op.rows = row_block(op.tokens)
    with nogil:
        pool_run(rmsnorm_backward_block, &op, blocks)
        for block in range(blocks):
            add(&d_weight[0], &partial[block, 0, 0], op.dim)
