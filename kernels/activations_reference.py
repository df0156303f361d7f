"""The activation functions in NumPy, float32 or float64, as their formulas read. Knows nothing of layers.

Sources: GELU, Hendrycks and Gimpel 2016 (arXiv 1606.08415); SiLU, Elfwing et al. 2017 (arXiv 1702.03118).
"""

import math

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS

SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715


def activate(x, activation):
    """act(x): [...] for an activation number."""
    if activation == ACTIVATIONS["gelu"]:
        return 0.5 * x * (1 + erf(x * SQRT_HALF))
    if activation == ACTIVATIONS["gelu_tanh"]:
        return 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * (x + TANH_CUBIC * x * x * x)))
    if activation == ACTIVATIONS["silu"]:
        return x * sigmoid(x)
    if activation == ACTIVATIONS["relu"]:
        return np.maximum(x, 0)
    return x


def derivative(x, activation):
    """act'(x): [...] for an activation number."""
    if activation == ACTIVATIONS["gelu"]:
        return 0.5 * (1 + erf(x * SQRT_HALF)) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    if activation == ACTIVATIONS["gelu_tanh"]:
        tanh = np.tanh(SQRT_2_OVER_PI * (x + TANH_CUBIC * x * x * x))
        slope = SQRT_2_OVER_PI * (1 + 3 * TANH_CUBIC * x * x)
        return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope
    if activation == ACTIVATIONS["silu"]:
        s = sigmoid(x)
        return s * (1 + x * (1 - s))
    if activation == ACTIVATIONS["relu"]:
        return (x > 0).astype(x.dtype)
    return np.ones_like(x)


def sigmoid(x):
    """1 / (1 + e^-x), written so that no exponential overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def erf(x):
    """The error function. NumPy has none: float64 takes math.erf, float32 the rational approximation that Eigen and
    XLA use (odd polynomial over even polynomial on [-4, 4], beyond which the result is +-1 in float32)."""
    if x.dtype == np.float64:
        return np.vectorize(math.erf, otypes=[np.float64])(x)
    x = np.clip(x, -4, 4)
    square = x * x
    p = np.float32(ERF_NUMERATOR[0])
    for coefficient in ERF_NUMERATOR[1:]:
        p = p * square + np.float32(coefficient)
    q = np.float32(ERF_DENOMINATOR[0])
    for coefficient in ERF_DENOMINATOR[1:]:
        q = q * square + np.float32(coefficient)
    return np.clip(x * p / q, -1, 1)


ERF_NUMERATOR = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
ERF_DENOMINATOR = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip
