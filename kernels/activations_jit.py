"""The activation functions for jit kernels, as activations.h: plain float32 arithmetic that LLVM turns into vectors.

Imported by jit.py modules only. Knows nothing of layers.
"""

import numpy as np
from numba import njit

from fastmixer.kernels.activations_reference import ERF_DENOMINATOR, ERF_NUMERATOR
from fastmixer.kernels.jit_exp import exp_float32

NONE, GELU, GELU_TANH, SILU, RELU = range(5)  # as ACTIVATIONS numbers them

_P6, _P5, _P4, _P3, _P2, _P1, _P0 = (np.float32(c) for c in ERF_NUMERATOR)
_Q4, _Q3, _Q2, _Q1, _Q0 = (np.float32(c) for c in ERF_DENOMINATOR)
_HALF, _ZERO, _ONE, _FOUR = np.float32(0.5), np.float32(0), np.float32(1), np.float32(4)
_SQRT_HALF, _NORMAL = np.float32(0.70710678118654752), np.float32(0.39894228040143268)
_TANH_LINEAR, _TANH_CUBIC, _TANH_SLOPE = np.float32(1.5957691216), np.float32(0.0713548163), np.float32(0.2140644488)

# No "reassoc": the polynomials keep their order. A formula becomes part of the loop that calls it (LLVM alone would
# leave the longer ones as calls, and a loop with a call in it is not made of vectors).
_formula = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy", inline="always")
_row = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


@_formula
def erf(x):
    """Odd polynomial over even polynomial on [-4, 4]: the form and coefficients of Eigen and XLA."""
    x = -_FOUR if x < -_FOUR else x
    x = _FOUR if x > _FOUR else x
    square = x * x
    p = ((((((_P6 * square + _P5) * square + _P4) * square + _P3) * square + _P2) * square + _P1) * square) + _P0
    q = (((_Q4 * square + _Q3) * square + _Q2) * square + _Q1) * square + _Q0
    y = x * p / q
    y = -_ONE if y < -_ONE else y
    return _ONE if y > _ONE else y


@_formula
def sigmoid(x):
    return _ONE / (_ONE + exp_float32(-x))


@_formula
def gelu(x):
    return _HALF * x * (_ONE + erf(x * _SQRT_HALF))


@_formula
def gelu_tanh(x):
    """x * sigmoid(2u) is 0.5 x (1 + tanh(u)) with one exponential and no cancellation."""
    return x * sigmoid(x * (x * x * _TANH_CUBIC + _TANH_LINEAR))


@_formula
def gelu_tanh_derivative(x):
    s = sigmoid(x * (x * x * _TANH_CUBIC + _TANH_LINEAR))
    return x * s * (_ONE - s) * (x * x * _TANH_SLOPE + _TANH_LINEAR) + s


@_formula
def silu(x):
    return x * sigmoid(x)


@_formula
def silu_derivative(x):
    s = sigmoid(x)
    return x * s * (_ONE - s) + s


@_row
def activate(x, activation):
    """x: float32 [n] becomes act(x) in place."""
    if activation == GELU:
        for i in range(x.size):
            x[i] = gelu(x[i])
    elif activation == GELU_TANH:
        for i in range(x.size):
            x[i] = gelu_tanh(x[i])
    elif activation == SILU:
        for i in range(x.size):
            x[i] = silu(x[i])
    elif activation == RELU:
        for i in range(x.size):
            x[i] = _ZERO if x[i] < _ZERO else x[i]


@_row
def derivative(x, slopes, activation):
    """slopes: float32 [n] = act'(x)."""
    if activation == GELU:
        # two loops: LLVM makes vectors of either, not of both in one
        for i in range(x.size):
            slopes[i] = x[i] * _NORMAL * exp_float32(-_HALF * x[i] * x[i])
        for i in range(x.size):
            slopes[i] += _HALF * (_ONE + erf(x[i] * _SQRT_HALF))
    elif activation == GELU_TANH:
        for i in range(x.size):
            slopes[i] = gelu_tanh_derivative(x[i])
    elif activation == SILU:
        for i in range(x.size):
            slopes[i] = silu_derivative(x[i])
    elif activation == RELU:
        for i in range(x.size):
            slopes[i] = _ONE if x[i] > _ZERO else _ZERO
    else:
        for i in range(x.size):
            slopes[i] = _ONE
