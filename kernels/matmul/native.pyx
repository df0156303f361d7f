"""Matrix products in Cython: the packed GEMM of gemm.pxi with what each function needs in its epilogue.

Shapes and meaning: reference.py. Knows nothing of layers beyond one linear map.
"""

include "vec.pxi"
include "matmul/gemm.pxi"
include "matmul/linear.pxi"
include "matmul/panels.pxi"


def matmul(const float[:, ::1] a, const float[:, ::1] b, float[:, ::1] out, bint transpose_a, bint transpose_b,
           bint accumulate):
    """out [m, n] = (out +) A B, with a: [m, k] ([k, m] if transpose_a), b: [k, n] ([n, k] if transpose_b)."""
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
                   float[:, ::1] out, bint transpose_weight, int activation, double dropout=0, uint64_t seed=0):
    """out [tokens, out] = dropout(act(x W + bias) * multiplier) + residual; pre_activation receives x W + bias."""
    cdef GemmTask g = linear_task(
        &x[0, 0], &weight[0, 0], transpose_weight, &bias[0] if bias is not None else NULL, activation, &out[0, 0],
        x.shape[0], x.shape[1], out.shape[1],
    )
    g.multiplier = &multiplier[0, 0] if multiplier is not None else NULL
    g.residual = &residual[0, 0] if residual is not None else NULL
    g.pre_activation = &pre_activation[0, 0] if pre_activation is not None else NULL
    drop_out(&g, dropout, seed)
    with nogil:
        gemm(&g)


def linear_backward_input(const float[:, ::1] d_out, const float[:, ::1] weight, const float[:, ::1] pre_activation,
                          const float[:, ::1] multiplier, float[:, ::1] d_x, float[:, ::1] d_multiplier,
                          bint transpose_weight, int activation, bint accumulate):
    """d_x = (d_x +) d_out W^T, and on through x = act(pre_activation) * multiplier where pre_activation is given."""
    cdef GemmTask g = input_gradient_task(
        &d_out[0, 0], &weight[0, 0], transpose_weight, &d_x[0, 0],
        d_x.shape[0], d_x.shape[1], d_out.shape[1], accumulate,
    )
    g.activation = activation
    if pre_activation is not None:
        g.input_pre = &pre_activation[0, 0]
        g.multiplier = &multiplier[0, 0] if multiplier is not None else NULL
        g.d_multiplier = &d_multiplier[0, 0] if d_multiplier is not None else NULL
    with nogil:
        gemm(&g)


def linear_backward_weight(const float[:, ::1] x, const float[:, ::1] d_out, float[:, ::1] d_weight,
                           bint transpose_weight, bint accumulate=True):
    """d_weight = (d_weight +) x^T d_out, or its transpose if transpose_weight."""
    with nogil:
        add_weight_gradient(
            &x[0, 0], &d_out[0, 0], &d_weight[0, 0], transpose_weight, x.shape[0], x.shape[1], d_out.shape[1], accumulate
        )


def linear_backward_bias(const float[:, ::1] d_out, float[::1] d_bias):
    """d_bias [out] += the sum of d_out [tokens, out] over tokens."""
    with nogil:
        add_bias_gradient(&d_out[0, 0], &d_bias[0], d_out.shape[0], d_out.shape[1])


# ---- constant weights, packed once ----

def packed_size(ptrdiff_t inputs, ptrdiff_t outputs):
    """How many floats pack_weight writes for a weight of these sizes."""
    return panels_size(inputs, outputs)


def pack_weight(const float[:, ::1] weight, float[::1] packed, bint transpose_weight):
    """packed: a constant weight as the panels that linear_forward_packed reads."""
    cdef PanelsTask p
    p.weight, p.packed = &weight[0, 0], &packed[0]
    p.k = weight.shape[1] if transpose_weight else weight.shape[0]
    p.n = weight.shape[0] if transpose_weight else weight.shape[1]
    p.k_stride = 1 if transpose_weight else weight.shape[1]
    p.column_stride = weight.shape[1] if transpose_weight else 1
    with nogil:
        pack_panels(&p)


def linear_forward_packed(const float[:, ::1] x, const float[::1] packed, const float[::1] bias,
                          const float[:, ::1] multiplier, const float[:, ::1] residual, float[:, ::1] out,
                          int activation):
    """As linear_forward, over a weight that pack_weight packed."""
    cdef GemmTask g = linear_task(
        &x[0, 0], NULL, False, &bias[0] if bias is not None else NULL, activation, &out[0, 0],
        x.shape[0], x.shape[1], out.shape[1],
    )
    g.packed_b, g.packed_panel = &packed[0], x.shape[1] * TILE_COLUMNS
    g.multiplier = &multiplier[0, 0] if multiplier is not None else NULL
    g.residual = &residual[0, 0] if residual is not None else NULL
    with nogil:
        gemm(&g)


# ---- in bfloat16: x and d_out are rounded here, the weight's copies come rounded ----

cdef inline const float *words(const uint32_t[:, :, ::1] x) noexcept:
    return <const float *>&x[0, 0, 0] if x is not None else NULL


def to_panels(const float[:, ::1] x, uint32_t[:, :, ::1] over_rows, uint32_t[:, :, ::1] over_columns):
    """x: float32 [rows, columns] rounded, in panels of pairs (kernels/bfloat16.py): over_rows: uint32
    [ceil(columns / 48), ceil(rows / 2), 48], over_columns: uint32 [ceil(rows / 48), ceil(columns / 2), 48]."""
    cdef PairsTask p = pairs_task(&x[0, 0], x.shape[1], x.shape[0], x.shape[1])
    p.over_rows, p.over_columns = <float *>words(over_rows), <float *>words(over_columns)
    with nogil:
        make_pairs(&p)


def linear_forward_bfloat16(const float[:, ::1] x, const uint32_t[:, :, ::1] weight, const float[::1] bias,
                            const float[:, ::1] multiplier, const float[:, ::1] residual, float[:, ::1] pre_activation,
                            float[:, ::1] out, int activation, double dropout=0, uint64_t seed=0):
    """As linear_forward, over weight: uint32 [ceil(out / 48), ceil(in / 2), 48], panels over what is summed."""
    cdef ptrdiff_t tokens = x.shape[0], inputs = x.shape[1], outputs = out.shape[1], half = halved(x.shape[1])
    cdef const float *x_data = &x[0, 0]
    cdef float *x_pairs
    cdef GemmTask g = linear_task(NULL, NULL, False, &bias[0] if bias is not None else NULL, activation, &out[0, 0], tokens, half, outputs)
    g.pairs = True
    take_panels(&g, words(weight), half * PANEL_COLUMNS)
    g.multiplier = &multiplier[0, 0] if multiplier is not None else NULL
    g.residual = &residual[0, 0] if residual is not None else NULL
    g.pre_activation = &pre_activation[0, 0] if pre_activation is not None else NULL
    drop_out(&g, dropout, seed)
    with nogil:
        x_pairs = <float *>pool_shared(sizeof(float) * tokens * half)
        make_pairs_along(x_data, tokens, inputs, x_pairs)
        g.a = x_pairs
        gemm(&g)


def linear_backward_bfloat16(const float[:, ::1] d_out, const float[:, ::1] x, const uint32_t[:, :, ::1] weight,
                             const float[:, ::1] pre_activation, const float[:, ::1] multiplier, float[:, ::1] d_x,
                             float[:, ::1] d_multiplier, float[:, ::1] d_weight, bint transpose_weight, int activation,
                             bint accumulate, bint accumulate_weight=True):
    """As linear_backward_weight (unless d_weight is None) and linear_backward_input, over weight: uint32
    [ceil(in / 48), ceil(out / 2), 48], panels over what is summed."""
    cdef ptrdiff_t tokens = d_out.shape[0], outputs = d_out.shape[1], inputs = d_x.shape[1]
    cdef ptrdiff_t half = halved(outputs), half_tokens = halved(tokens)
    cdef float *d_out_along
    cdef PairsTask d_out_pairs = pairs_task(&d_out[0, 0], outputs, tokens, outputs), x_pairs
    cdef GemmTask g = gemm_task(NULL, half, 1, NULL, 1, 1, &d_x[0, 0], tokens, inputs, half, accumulate)
    cdef GemmTask dw
    cdef ptrdiff_t along_words = whole_lines(tokens * half), d_out_words = 0, x_words = 0
    cdef bint wants_weight = d_weight is not None
    if wants_weight:  # x^T d_out, or d_out^T x: tokens are added up two by two
        x_pairs = pairs_task(&x[0, 0], inputs, tokens, inputs)
        d_out_words = whole_lines(half_tokens * outputs) if transpose_weight else panel_words(tokens, outputs)
        x_words = panel_words(tokens, inputs) if transpose_weight else half_tokens * inputs
        dw = gemm_task(
            NULL, 1, outputs if transpose_weight else inputs, NULL, 1, 1, &d_weight[0, 0], d_weight.shape[0], d_weight.shape[1],
            half_tokens, accumulate_weight,
        )
        dw.pairs = True
    g.pairs, g.activation = True, activation
    take_panels(&g, words(weight), half * PANEL_COLUMNS)
    if pre_activation is not None:
        g.input_pre = &pre_activation[0, 0]
        g.multiplier = &multiplier[0, 0] if multiplier is not None else NULL
        g.d_multiplier = &d_multiplier[0, 0] if d_multiplier is not None else NULL
    with nogil:
        d_out_along = <float *>pool_shared(sizeof(float) * (along_words + d_out_words + x_words))
        d_out_pairs.along = d_out_along
        if wants_weight and transpose_weight:
            d_out_pairs.across = d_out_along + along_words
            x_pairs.over_rows = d_out_pairs.across + d_out_words
            dw.a = d_out_pairs.across
            take_panels(&dw, x_pairs.over_rows, half_tokens * PANEL_COLUMNS)
        elif wants_weight:
            d_out_pairs.over_rows = d_out_along + along_words
            x_pairs.across = d_out_pairs.over_rows + d_out_words
            dw.a = x_pairs.across
            take_panels(&dw, d_out_pairs.over_rows, half_tokens * PANEL_COLUMNS)
        make_pairs(&d_out_pairs)
        if wants_weight:
            make_pairs(&x_pairs)
            gemm(&dw)
        g.a = d_out_along
        gemm(&g)
