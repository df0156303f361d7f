"""Feedforward in Cython: the packed GEMM with the bend, the gate and the residual in its epilogues.

Shapes and meaning: reference.py. Knows nothing of attention or norms around it.
"""

include "vec.pxi"
include "matmul/gemm.pxi"
include "matmul/linear.pxi"


cdef inline const float *vector(const float[::1] x) noexcept:
    return &x[0] if x is not None else NULL


cdef inline float *target(float[::1] x) noexcept:
    return &x[0] if x is not None else NULL


cdef inline const float *matrix(const float[:, ::1] x) noexcept:
    return &x[0, 0] if x is not None else NULL


cdef inline float *target_matrix(float[:, ::1] x) noexcept:
    return &x[0, 0] if x is not None else NULL


cdef struct Sizes:
    ptrdiff_t tokens, dim, hidden


def feedforward_forward(
    const float[:, ::1] x, const float[:, ::1] w_gate, const float[::1] b_gate, const float[:, ::1] w_up,
    const float[::1] b_up, const float[:, ::1] w_down, const float[::1] b_down, const float[:, ::1] residual,
    int activation, float[:, ::1] gate_pre, float[:, ::1] up, float[:, ::1] hidden, float[:, ::1] out,
    double dropout=0, uint64_t seed=0,
):
    """hidden = act(x w_up + b_up), or act(x w_gate + b_gate) * (x w_up + b_up);
    out = dropout(hidden w_down + b_down) + residual."""
    cdef Sizes s
    s.tokens, s.dim, s.hidden = x.shape[0], x.shape[1], w_up.shape[1]
    cdef bint gated = w_gate is not None
    # 1. up, and the bend
    cdef GemmTask first = linear_task(
        matrix(x), matrix(w_up), False, vector(b_up), 0 if gated else activation,
        target_matrix(up) if gated else target_matrix(hidden), s.tokens, s.dim, s.hidden,
    )
    if not gated:
        first.pre_activation = target_matrix(up)
    cdef GemmTask gate = linear_task(
        matrix(x), matrix(w_gate), False, vector(b_gate), activation, target_matrix(hidden),
        s.tokens, s.dim, s.hidden,
    )
    gate.multiplier, gate.pre_activation = target_matrix(up), target_matrix(gate_pre)
    # 2. down
    cdef GemmTask down = linear_task(
        matrix(hidden), matrix(w_down), False, vector(b_down), 0, target_matrix(out), s.tokens, s.hidden, s.dim,
    )
    down.residual = matrix(residual)
    drop_out(&down, dropout, seed)
    with nogil:
        gemm(&first)
        if gated:
            gemm(&gate)
        gemm(&down)


def feedforward_backward(
    const float[:, ::1] d_out, const float[:, ::1] x, const float[:, ::1] w_gate, const float[:, ::1] w_up,
    const float[:, ::1] w_down, int activation, const float[:, ::1] gate_pre, const float[:, ::1] up,
    const float[:, ::1] hidden, float[:, ::1] d_gate_pre, float[:, ::1] d_up, float[:, ::1] d_x,
    float[:, ::1] d_w_gate, float[::1] d_b_gate, float[:, ::1] d_w_up, float[::1] d_b_up, float[:, ::1] d_w_down,
    float[::1] d_b_down, bint accumulate_weights=True,
):
    """d_x, d_up, d_gate_pre are overwritten, the parameters' gradients (each may be None) are added to, those of weights
    only with accumulate_weights."""
    cdef Sizes s
    s.tokens, s.dim, s.hidden = x.shape[0], x.shape[1], w_up.shape[1]
    cdef bint gated = w_gate is not None
    # 2. down, and the bend
    cdef GemmTask down = input_gradient_task(
        matrix(d_out), matrix(w_down), False, target_matrix(d_gate_pre) if gated else target_matrix(d_up),
        s.tokens, s.hidden, s.dim, False,
    )
    down.activation = activation
    down.input_pre = matrix(gate_pre) if gated else matrix(up)
    if gated:
        down.multiplier, down.d_multiplier = matrix(up), target_matrix(d_up)
    # 1. up
    cdef GemmTask first = input_gradient_task(
        matrix(d_up), matrix(w_up), False, target_matrix(d_x), s.tokens, s.dim, s.hidden, False
    )
    cdef GemmTask gate = input_gradient_task(
        matrix(d_gate_pre), matrix(w_gate), False, target_matrix(d_x), s.tokens, s.dim, s.hidden, True
    )
    cdef const float *x_data = matrix(x)
    cdef float *d_w_down_data = target_matrix(d_w_down)
    cdef float *d_b_down_data = target(d_b_down)
    cdef float *d_w_up_data = target_matrix(d_w_up)
    cdef float *d_b_up_data = target(d_b_up)
    cdef float *d_w_gate_data = target_matrix(d_w_gate)
    cdef float *d_b_gate_data = target(d_b_gate)
    cdef const float *hidden_data = matrix(hidden)
    with nogil:
        add_gradients(hidden_data, down.a, d_w_down_data, d_b_down_data, s.tokens, s.hidden, s.dim, accumulate_weights)
        gemm(&down)
        add_gradients(x_data, first.a, d_w_up_data, d_b_up_data, s.tokens, s.dim, s.hidden, accumulate_weights)
        gemm(&first)
        if gated:
            add_gradients(x_data, gate.a, d_w_gate_data, d_b_gate_data, s.tokens, s.dim, s.hidden, accumulate_weights)
            gemm(&gate)


cdef int add_gradients(
    const float *x, const float *d_out, float *d_weight, float *d_bias, ptrdiff_t tokens, ptrdiff_t inputs,
    ptrdiff_t outputs, bint accumulate,
) except -1 nogil:
    if d_weight != NULL:
        add_weight_gradient(x, d_out, d_weight, False, tokens, inputs, outputs, accumulate)
    if d_bias != NULL:
        add_bias_gradient(d_out, d_bias, tokens, outputs)
    return 0
