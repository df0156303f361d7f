"""Matrix products in NumPy (its BLAS), float32 or float64: the truth that jit.py and native.pyx are held to.

Knows nothing of layers beyond one linear map. Source of the gradients: the product rule.
"""

import numpy as np

from fastmixer.kernels.activations_reference import activate, derivative
from fastmixer.kernels.bfloat16 import from_panels, panels_over_columns, panels_over_rows, round_bfloat16
from fastmixer.kernels.dropout.reference import dropout_forward


def matmul(a, b, out, transpose_a, transpose_b, accumulate):
    """out [m, n] = (out +) A B, with a: [m, k] ([k, m] if transpose_a), b: [k, n] ([n, k] if transpose_b)."""
    a = a.T if transpose_a else a
    b = b.T if transpose_b else b
    if accumulate:
        out += a @ b
    else:
        np.matmul(a, b, out=out)


def linear_forward(
    x, weight, bias, multiplier, residual, pre_activation, out, transpose_weight, activation, dropout=0.0, seed=0
):  # fmt: skip
    """out [tokens, out] = dropout(act(x W + bias) * multiplier) + residual, with x: [tokens, in], weight: [in, out]
    ([out, in] if transpose_weight), bias: [out]; pre_activation [tokens, out] receives x W + bias. None leaves a part
    out. dropout: the rate, drawn by seed as kernels/dropout does."""
    matmul(x, weight, out, False, transpose_weight, False)
    if bias is not None:
        out += bias
    if pre_activation is not None:
        pre_activation[...] = out
    if activation:
        out[...] = activate(out, activation)
    if multiplier is not None:
        out *= multiplier
    if dropout > 0:
        dropout_forward(out.reshape(-1), dropout, seed, None, out.reshape(-1))
    if residual is not None:
        out += residual


def linear_backward_input(
    d_out, weight, pre_activation, multiplier, d_x, d_multiplier, transpose_weight, activation, accumulate
):
    """d_x [tokens, in] = (d_x +) d_out W^T; where x was act(pre_activation) * multiplier, on through that:
    d_x = d_h * multiplier * act'(pre_activation), d_multiplier = d_h * act(pre_activation), with d_h = d_out W^T."""
    matmul(d_out, weight, d_x, False, not transpose_weight, accumulate)
    if pre_activation is not None:
        if d_multiplier is not None:
            d_multiplier[...] = d_x * activate(pre_activation, activation)
        d_x *= derivative(pre_activation, activation)
        if multiplier is not None:
            d_x *= multiplier


def linear_backward_weight(x, d_out, d_weight, transpose_weight, accumulate=True):
    """d_weight = (d_weight +) x^T d_out [in, out], or its transpose [out, in] if transpose_weight."""
    product = d_out.T @ x if transpose_weight else x.T @ d_out
    d_weight[...] = d_weight + product if accumulate else product


def linear_backward_bias(d_out, d_bias):
    """d_bias [out] += the sum of d_out [tokens, out] over tokens."""
    d_bias += d_out.sum(axis=0)


def packed_size(inputs, outputs):
    """How many floats pack_weight writes for a weight of these sizes."""
    return inputs * outputs


def pack_weight(weight, packed, transpose_weight):
    """packed: a constant weight in the layout that this implementation's linear_forward_packed reads."""
    packed[...] = (weight.T if transpose_weight else weight).ravel()


def linear_forward_packed(x, packed, bias, multiplier, residual, out, activation):
    """As linear_forward, over a weight that pack_weight packed."""
    weight = packed.reshape(x.shape[1], out.shape[1])
    linear_forward(x, weight, bias, multiplier, residual, None, out, False, activation)


# ---- in bfloat16: x and d_out are rounded here, the weight's copies come rounded ----


def to_panels(x, over_rows, over_columns):
    """x: float32 [rows, columns] rounded, in panels of pairs (kernels/bfloat16.py): over_rows: uint32
    [ceil(columns / 48), ceil(rows / 2), 48], over_columns: uint32 [ceil(rows / 48), ceil(columns / 2), 48]."""
    over_rows[...], over_columns[...] = panels_over_rows(x), panels_over_columns(x)


def linear_forward_bfloat16(
    x, weight, bias, multiplier, residual, pre_activation, out, activation, dropout=0.0, seed=0
):  # fmt: skip
    """As linear_forward, over weight: uint32 [ceil(out / 48), ceil(in / 2), 48], panels over what is summed."""
    weight = from_panels(weight, x.shape[1], out.shape[1])
    linear_forward(
        _rounded(x), weight.astype(x.dtype), bias, multiplier, residual, pre_activation, out, False, activation, dropout,
        seed,
    )  # fmt: skip


def linear_backward_bfloat16(
    d_out, x, weight, pre_activation, multiplier, d_x, d_multiplier, d_weight, transpose_weight, activation, accumulate,
    accumulate_weight=True,
):  # fmt: skip
    """As linear_backward_weight (unless d_weight is None) and linear_backward_input, over weight: uint32
    [ceil(in / 48), ceil(out / 2), 48], panels over what is summed."""
    d_out, weight = _rounded(d_out), from_panels(weight, d_out.shape[1], d_x.shape[1])
    if d_weight is not None:
        # tokens are added up two by two
        linear_backward_weight(_rounded(x), d_out, d_weight, transpose_weight, accumulate_weight)
    linear_backward_input(
        d_out, weight.astype(d_out.dtype), pre_activation, multiplier, d_x, d_multiplier, True, activation, accumulate
    )  # fmt: skip


def _rounded(x):
    return round_bfloat16(x).astype(x.dtype)
