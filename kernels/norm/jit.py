"""LayerNorm and RMSNorm in Numba: blocks of rows are tasks; what is summed over rows goes through `partial`."""

import numpy as np

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.norm import row_block
from fastmixer.kernels.threads import parallel_for


def _row_slices(tokens):
    """The rows of each task."""
    rows = row_block(tokens)
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


@compiled
def _add_partial(partial, d_weight, d_bias):
    blocks, _, dim = partial.shape
    for block in range(blocks):
        for i in range(dim):
            d_weight[i] += partial[block, 0, i]
        if d_bias is not None:
            for i in range(dim):
                d_bias[i] += partial[block, 1, i]


@compiled
def _layernorm_forward_block(x, weight, bias, epsilon, out, mean, inverse_std):
    real = x.dtype.type
    tokens, dim = x.shape
    for t in range(tokens):
        x_row, out_row = x[t], out[t]
        # 1. the row's mean and inverse standard deviation
        total = real(0)
        for i in range(dim):
            total += x_row[i]
        row_mean = total / real(dim)
        total = real(0)
        for i in range(dim):
            centred = x_row[i] - row_mean
            total += centred * centred
        row_inverse_std = real(1) / np.sqrt(total / real(dim) + epsilon)
        mean[t] = row_mean
        inverse_std[t] = row_inverse_std
        # 2. normalize, scale and shift
        for i in range(dim):
            value = (x_row[i] - row_mean) * row_inverse_std * weight[i]
            out_row[i] = value if bias is None else value + bias[i]


def layernorm_forward(x, weight, bias, epsilon, out, mean, inverse_std):
    """out = (x - mean) * inverse_std * weight + bias, each row of x by its own mean and variance.

    x, out: float [tokens, dim]; weight, bias (or None): float [dim]; mean, inverse_std: float [tokens].
    """
    blocks = _row_slices(len(x))
    small = x.dtype.type(epsilon)

    def task(block):
        rows = blocks[block]
        _layernorm_forward_block(x[rows], weight, bias, small, out[rows], mean[rows], inverse_std[rows])

    parallel_for(task, len(blocks))


@compiled
def _layernorm_backward_block(d_out, x, weight, mean, inverse_std, d_residual, d_x, partial):
    real = x.dtype.type
    tokens, dim = x.shape
    d_weight, d_bias = partial[0], partial[1]
    partial[:] = real(0)
    for t in range(tokens):
        d_out_row, x_row, d_x_row = d_out[t], x[t], d_x[t]
        row_mean, row_inverse_std = mean[t], inverse_std[t]
        along_mean = along_normalized = real(0)
        for i in range(dim):
            # 1. the parameter gradients
            normalized = (x_row[i] - row_mean) * row_inverse_std
            d_weight[i] += d_out_row[i] * normalized
            d_bias[i] += d_out_row[i]
            # 2. what the row's mean and variance take out of the gradient
            d_normalized = d_out_row[i] * weight[i]
            along_mean += d_normalized
            along_normalized += d_normalized * normalized
        along_mean /= real(dim)
        along_normalized /= real(dim)
        # 3. the gradient of the row
        for i in range(dim):
            normalized = (x_row[i] - row_mean) * row_inverse_std
            gradient = d_out_row[i] * weight[i] - along_mean - normalized * along_normalized
            gradient *= row_inverse_std
            d_x_row[i] = gradient if d_residual is None else gradient + d_residual[t, i]


def layernorm_backward(d_out, x, weight, mean, inverse_std, d_residual, d_x, d_weight, d_bias, partial):
    """d_x = d_residual + the gradient; d_weight += ...; d_bias += ...

    d_out, x, d_residual (or None), d_x: float [tokens, dim]; weight, d_weight, d_bias (or None): float [dim];
    mean, inverse_std: float [tokens]; partial: float [row_blocks(tokens), 2, dim], scratch.
    """
    blocks = _row_slices(len(x))

    def task(block):
        rows = blocks[block]
        residual = None if d_residual is None else d_residual[rows]
        _layernorm_backward_block(
            d_out[rows], x[rows], weight, mean[rows], inverse_std[rows], residual, d_x[rows], partial[block]
        )

    parallel_for(task, len(blocks))
    _add_partial(partial, d_weight, d_bias)


@compiled
def _rmsnorm_forward_block(x, weight, epsilon, out, inverse_rms):
    real = x.dtype.type
    tokens, dim = x.shape
    for t in range(tokens):
        x_row, out_row = x[t], out[t]
        # 1. the row's inverse root mean square
        total = real(0)
        for i in range(dim):
            total += x_row[i] * x_row[i]
        row_inverse_rms = real(1) / np.sqrt(total / real(dim) + epsilon)
        inverse_rms[t] = row_inverse_rms
        # 2. normalize and scale
        for i in range(dim):
            out_row[i] = x_row[i] * row_inverse_rms * weight[i]


def rmsnorm_forward(x, weight, epsilon, out, inverse_rms):
    """out = x * inverse_rms * weight, each row of x by its own root mean square.

    x, out: float [tokens, dim]; weight: float [dim]; inverse_rms: float [tokens].
    """
    blocks = _row_slices(len(x))
    small = x.dtype.type(epsilon)

    def task(block):
        rows = blocks[block]
        _rmsnorm_forward_block(x[rows], weight, small, out[rows], inverse_rms[rows])

    parallel_for(task, len(blocks))


@compiled
def _rmsnorm_backward_block(d_out, x, weight, inverse_rms, d_residual, d_x, partial):
    real = x.dtype.type
    tokens, dim = x.shape
    d_weight = partial[0]
    partial[:] = real(0)
    for t in range(tokens):
        d_out_row, x_row, d_x_row = d_out[t], x[t], d_x[t]
        row_inverse_rms = inverse_rms[t]
        along_normalized = real(0)
        for i in range(dim):
            # 1. the parameter gradient
            normalized = x_row[i] * row_inverse_rms
            d_weight[i] += d_out_row[i] * normalized
            # 2. what the row's root mean square takes out of the gradient
            along_normalized += d_out_row[i] * weight[i] * normalized
        along_normalized /= real(dim)
        # 3. the gradient of the row
        for i in range(dim):
            normalized = x_row[i] * row_inverse_rms
            gradient = d_out_row[i] * weight[i] - normalized * along_normalized
            gradient *= row_inverse_rms
            d_x_row[i] = gradient if d_residual is None else gradient + d_residual[t, i]


def rmsnorm_backward(d_out, x, weight, inverse_rms, d_residual, d_x, d_weight, partial):
    """d_x = d_residual + the gradient; d_weight += ...

    d_out, x, d_residual (or None), d_x: float [tokens, dim]; weight, d_weight: float [dim];
    inverse_rms: float [tokens]; partial: float [row_blocks(tokens), 1, dim], scratch.
    """
    blocks = _row_slices(len(x))

    def task(block):
        rows = blocks[block]
        residual = None if d_residual is None else d_residual[rows]
        _rmsnorm_backward_block(d_out[rows], x[rows], weight, inverse_rms[rows], residual, d_x[rows], partial[block])

    parallel_for(task, len(blocks))
    _add_partial(partial, d_weight, None)
