"""AdamW, SGD and the gradient's norm in Numba: fixed blocks of elements are tasks."""

import numpy as np

from fastmixer.kernels.bfloat16 import panels_over_columns, panels_over_rows
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.optimizer import BLOCK, adamw_factors, blocks
from fastmixer.kernels.threads import parallel_for


def _part(block):
    return slice(block * BLOCK, (block + 1) * BLOCK)


@compiled
def _zero(g):
    for i in range(len(g)):
        g[i] = 0


@compiled
def _adamw_block(p, m, v, g, keep, step_size, root_scale, beta1, rest1, beta2, rest2, epsilon, gradient_scale):
    for i in range(len(p)):
        # 1. clip
        gradient = g[i] * gradient_scale
        # 2. the moments
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        # 3. decay and step
        p[i] = keep * p[i] - step_size * m[i] / (root_scale * np.sqrt(v[i]) + epsilon)


def adamw(
    p, m, v, g, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale, zero_gradient
):  # fmt: skip
    """One AdamW step, in place. p, m, v, g: float [n]; step counts from 1; g is written only if zero_gradient."""
    factors = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    scalars = [p.dtype.type(value) for value in (*factors, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, gradient_scale)]

    def task(block):
        part = _part(block)
        _adamw_block(p[part], m[part], v[part], g[part], *scalars)
        # 4. zero the gradient
        if zero_gradient:
            _zero(g[part])

    parallel_for(task, blocks(len(p)))


def adamw_bfloat16(
    p, m, v, g, over_rows, over_columns, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale,
    zero_gradient,
):  # fmt: skip
    """One AdamW step of a matrix p, m, v, g: float32 [rows, columns], and its rounded copies in panels
    (kernels/bfloat16.py), over_rows: uint32 [ceil(columns / 48), ceil(rows / 2), 48] and over_columns: uint32
    [ceil(rows / 48), ceil(columns / 2), 48]."""
    adamw(
        p.reshape(-1), m.reshape(-1), v.reshape(-1), g.reshape(-1), learning_rate, beta1, beta2, epsilon, weight_decay, step,
        gradient_scale, zero_gradient,
    )  # fmt: skip
    over_rows[...], over_columns[...] = panels_over_rows(p), panels_over_columns(p)


@compiled
def _sgd_block(p, g, rate):
    for i in range(len(p)):
        p[i] -= rate * g[i]


def sgd(p, g, learning_rate, gradient_scale, zero_gradient):
    """p -= learning_rate * gradient_scale * g. p, g: float [n]; g is written only if zero_gradient."""
    rate = p.dtype.type(learning_rate * gradient_scale)

    def task(block):
        part = _part(block)
        _sgd_block(p[part], g[part], rate)
        if zero_gradient:
            _zero(g[part])

    parallel_for(task, blocks(len(p)))


@compiled
def _square_sum(g):
    total = 0.0
    for i in range(len(g)):
        value = np.float64(g[i])
        total += value * value
    return total


def squared_norm(g, partial):
    """The sum of g^2 as a float, summed in float64. g: float [n]; partial: float64 [blocks(n)], scratch."""

    def task(block):
        partial[block] = _square_sum(g[_part(block)])

    parallel_for(task, len(partial))
    return float(sum(partial))


@compiled
def _first_nonfinite(x):
    for i in range(len(x)):
        if not np.isfinite(x[i]):
            return i
    return -1


def first_nonfinite(x, partial):
    """The index of the first NaN or infinity in x: float [n], -1 if none; partial: int64 [blocks(n)], scratch."""

    def task(block):
        partial[block] = _first_nonfinite(x[_part(block)])

    parallel_for(task, len(partial))
    for block, index in enumerate(partial):
        if index >= 0:
            return block * BLOCK + int(index)
    return -1
