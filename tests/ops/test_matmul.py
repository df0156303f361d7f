"""The faces of matmul and the linear layer: leading axes, strided and read-only inputs, clear errors."""

import math

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.kernels.select import use_kernels
from fastmixer.ops.dropout import dropout
from fastmixer.ops.matmul import linear, linear_backward, matmul


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def test_matmul_by_its_formula(rng):
    a, b = normal(rng, 5, 7), normal(rng, 7, 3)
    assert np.allclose(matmul(a, b), a @ b, atol=1e-5)
    assert np.allclose(matmul(a.T.copy(), b, transpose_a=True), a @ b, atol=1e-5)
    assert np.allclose(fm.matmul(a, b.T.copy(), transpose_b=True), a @ b, atol=1e-5)
    out = np.ones((5, 3), np.float32)
    assert matmul(a, b, out=out, accumulate=True) is out
    assert np.allclose(out, 1 + a @ b, atol=1e-5)


def test_linear_by_its_formula(rng):
    x, weight, bias = normal(rng, 2, 3, 7), normal(rng, 7, 4), normal(rng, 4)
    multiplier, residual = normal(rng, 2, 3, 4), normal(rng, 2, 3, 4)
    pre_activation = np.empty((2, 3, 4), np.float32)
    out = linear(
        x, weight, bias, activation="gelu", multiplier=multiplier, residual=residual, pre_activation=pre_activation
    )
    pre = x @ weight + bias
    gelu = 0.5 * pre * (1 + np.vectorize(math.erf)(pre / math.sqrt(2)))
    assert np.allclose(pre_activation, pre, atol=1e-5)
    assert np.allclose(out, gelu * multiplier + residual, atol=1e-5)
    transposed = linear(x, weight.T.copy(), bias, transpose_weight=True)
    assert np.allclose(transposed, pre, atol=1e-5)
    assert linear(x[0, 0], weight).shape == (4,)
    dropped = linear(x, weight, bias, residual=residual, dropout=0.5, seed=9)
    np.testing.assert_array_equal(dropped, dropout(linear(x, weight, bias), 0.5, 9, residual=residual))


def test_linear_backward_by_its_formula(rng):
    x, weight, d_out = normal(rng, 2, 3, 7), normal(rng, 7, 4), normal(rng, 2, 3, 4)
    d_weight, d_bias = np.ones((7, 4), np.float32), np.ones(4, np.float32)
    d_x = linear_backward(d_out, x, weight, d_weight, d_bias)
    assert np.allclose(d_x, d_out @ weight.T, atol=1e-5)
    assert np.allclose(d_weight, 1 + x.reshape(6, 7).T @ d_out.reshape(6, 4), atol=1e-5)
    assert np.allclose(d_bias, 1 + d_out.sum((0, 1)), atol=1e-5)
    again = linear_backward(d_out, x, weight, None, d_x=d_x.copy(), accumulate=True)
    assert np.allclose(again, 2 * d_x, atol=1e-5)
    d_weight = np.zeros((4, 7), np.float32)
    other = linear_backward(d_out, x, weight.T.copy(), d_weight, transpose_weight=True)
    assert np.allclose(other, d_x, atol=1e-5)
    assert np.allclose(d_weight.T, x.reshape(6, 7).T @ d_out.reshape(6, 4), atol=1e-5)


def test_backward_through_a_gate(rng):
    pre, multiplier, weight, d_out = normal(rng, 6, 7), normal(rng, 6, 7), normal(rng, 7, 4), normal(rng, 6, 4)
    x, d_multiplier = np.maximum(pre, 0) * multiplier, np.empty_like(pre)
    d_pre = linear_backward(
        d_out, x, weight, None, pre_activation=pre, multiplier=multiplier, activation="relu", d_multiplier=d_multiplier
    )
    d_h = d_out @ weight.T
    assert np.allclose(d_pre, d_h * multiplier * (pre > 0), atol=1e-5)
    assert np.allclose(d_multiplier, d_h * np.maximum(pre, 0), atol=1e-5)


def test_d_x_may_take_the_memory_of_x(rng):
    x, weight, d_out = normal(rng, 6, 7), normal(rng, 7, 4), normal(rng, 6, 4)
    d_weight, expected_weight = np.zeros((7, 4), np.float32), np.zeros((7, 4), np.float32)
    expected = linear_backward(d_out, x, weight, expected_weight)
    assert np.array_equal(linear_backward(d_out, x, weight, d_weight, d_x=x), expected)
    assert np.array_equal(d_weight, expected_weight)


def test_strided_and_read_only_inputs(rng):
    x, weight, bias = normal(rng, 20, 14)[::2, ::2], normal(rng, 4, 7).T, normal(rng, 8)[::-2]
    x.flags.writeable = False
    assert np.allclose(linear(x, weight, bias), x @ weight + bias, atol=1e-5)
    assert np.allclose(matmul(x, weight), x @ weight, atol=1e-5)


@pytest.mark.parametrize("m, n, k", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_empty(m, n, k):
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    assert np.array_equal(matmul(a, b), np.zeros((m, n)))
    d_weight = np.zeros_like(b)
    assert linear_backward(np.ones((m, n), np.float32), a, b, d_weight).shape == (m, k)


def test_float64_on_the_reference(rng):
    a = rng.standard_normal((3, 3))
    with use_kernels("reference"):
        assert matmul(a, a).dtype == np.float64


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda a, b: matmul(a.astype(np.float64), b), TypeError, "matmul: a must be float32 [m, k]; got float64 (5, 7)"),
        (lambda a, b: matmul(a, a), ValueError, "matmul: b must be float32 [k=7, n]; got float32 (5, 7)"),
        (lambda a, b: matmul([[1.0]], b), TypeError, "matmul: a must be a NumPy array, float32 [m, k]; got list"),
        (
            lambda a, b: matmul(a, b, accumulate=True), ValueError,
            "matmul: accumulate adds to out, which must be given; got None",
        ),
        (
            lambda a, b: matmul(a, a, transpose_b=True, out=np.empty((5, 4), np.float32)), ValueError,
            "matmul: out must be float32 [m=5, n=5]; got float32 (5, 4)",
        ),
        (
            lambda a, b: matmul(a[:, :5], a[:, :5], out=a[:, :5]), ValueError,
            "matmul: out is written in place and must be C-contiguous; got strides (28, 4)",
        ),
        (
            lambda a, b: matmul(b.T @ b, b.T @ b, out=np.zeros((3, 3))), TypeError,
            "matmul: out must be float32 [m=3, n=3]; got float64 (3, 3)",
        ),
        (
            lambda a, b: linear(a, b, np.ones(4, np.float32)), ValueError,
            "linear: bias must be float32 [out=3]; got float32 (4,)",
        ),
        (
            lambda a, b: linear(a, b, activation="swish"), ValueError,
            "linear: activation must be one of 'none', 'gelu', 'gelu_tanh', 'silu', 'relu'; got 'swish'",
        ),
        (lambda a, b: linear(a, b, dropout=1), ValueError, "linear: dropout must be >= 0 and < 1; got 1"),
        (lambda a, b: linear(a, b, seed=-1), ValueError, "linear: seed must be in [0, 2^64); got -1"),
        (
            lambda a, b: linear(a, b, transpose_weight=True), ValueError,
            "linear: weight must be float32 [out, in=7]; got float32 (7, 3)",
        ),
        (
            lambda a, b: linear_backward(np.ones((5, 3), np.float32), a, b, None, activation="relu"), ValueError,
            "linear_backward: activation, multiplier and d_multiplier say how x was made and need pre_activation; "
            "got None",
        ),
        (
            lambda a, b: linear_backward(np.ones((4, 3), np.float32), a, b, None), ValueError,
            "linear_backward: d_out must be float32 [axis_0=5, out]; got float32 (4, 3)",
        ),
        (
            lambda a, b: linear_backward(np.ones((5, 3), np.float32), a, b, None, accumulate=True), ValueError,
            "linear_backward: accumulate adds to d_x, which must be given; got None",
        ),
    ],
)  # fmt: skip
def test_errors(rng, call, error, text):
    with pytest.raises(error) as caught:
        call(normal(rng, 5, 7), normal(rng, 7, 3))
    assert str(caught.value) == text


def test_out_shares_no_memory_with_what_is_read(rng):
    square = normal(rng, 4, 4)
    with pytest.raises(ValueError, match="matmul: out is written while b is read and must not share memory with it"):
        matmul(square.copy(), square, out=square)
    with pytest.raises(ValueError, match="linear: out is written while residual is read"):
        linear(square.copy(), square.copy(), residual=square, out=square)
    with pytest.raises(ValueError, match="linear_backward: d_x is written while d_out is read"):
        linear_backward(square, square.copy(), square.copy(), None, d_x=square)
