"""Embedding in Numba: the loops of native.pyx. Shapes and meaning: reference.py.

Blocks of rows are tasks; a row has one writer, so the number of threads changes nothing.
"""

import numpy as np

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.threads import parallel_for

ROW_BLOCK = 64  # rows a task: some 200 KB at GPT-2's width


def _for_blocks(block, count):
    parallel_for(lambda task: block(task * ROW_BLOCK, min((task + 1) * ROW_BLOCK, count)), -(-count // ROW_BLOCK))


def gather(table, ids, out):
    _for_blocks(lambda start, stop: _gather_block(table, ids, out, start, stop), len(ids))


@compiled
def _gather_block(table, ids, out, start, stop):
    for i in range(start, stop):
        row = ids[i]
        for j in range(table.shape[1]):
            out[i, j] = table[row, j]


@compiled
def group_by_row(ids, num_rows, order, starts, rows):
    # a stable counting sort in digits of 11 bits, least significant first
    n = len(ids)
    other = np.empty(n, np.int64)
    digits, shift = 0, num_rows
    while shift > 0:
        digits += 1
        shift >>= 11
    for i in range(n):
        order[i] = i
    for digit in range(digits):
        counts = np.zeros(2049, np.int64)
        for i in range(n):
            counts[((ids[i] >> (11 * digit)) & 2047) + 1] += 1
        for value in range(2048):
            counts[value + 1] += counts[value]
        for i in range(n):
            value = (ids[order[i]] >> (11 * digit)) & 2047
            other[counts[value]] = order[i]
            counts[value] += 1
        order[:] = other
    # a row begins where the id changes
    touched = 0
    for i in range(n):
        if i == 0 or ids[order[i]] != ids[order[i - 1]]:
            rows[touched] = ids[order[i]]
            starts[touched] = i
            touched += 1
    starts[touched] = n
    return touched


def scatter_gradient(d_out, order, starts, d_rows):
    _for_blocks(lambda start, stop: _scatter_block(d_out, order, starts, d_rows, start, stop), len(d_rows))


@compiled
def _scatter_block(d_out, order, starts, d_rows, start, stop):
    for row in range(start, stop):
        for j in range(d_rows.shape[1]):
            d_rows[row, j] = d_out[order[starts[row]], j]
        for i in range(starts[row] + 1, starts[row + 1]):
            for j in range(d_rows.shape[1]):
                d_rows[row, j] += d_out[order[i], j]


def add_rows(target, rows, values):
    _for_blocks(lambda start, stop: _add_block(target, rows, values, start, stop), len(rows))


@compiled
def _add_block(target, rows, values, start, stop):
    for i in range(start, stop):
        for j in range(target.shape[1]):
            target[rows[i], j] += values[i, j]


def sgd_rows(table, rows, d_rows, learning_rate):
    rate = table.dtype.type(learning_rate)
    _for_blocks(lambda start, stop: _sgd_block(table, rows, d_rows, rate, start, stop), len(rows))


@compiled
def _sgd_block(table, rows, d_rows, learning_rate, start, stop):
    for i in range(start, stop):
        for j in range(table.shape[1]):
            table[rows[i], j] -= learning_rate * d_rows[i, j]


def adagrad_rows(table, accumulator, rows, d_rows, learning_rate, epsilon):
    rate, floor = table.dtype.type(learning_rate), table.dtype.type(epsilon)
    _for_blocks(
        lambda start, stop: _adagrad_block(table, accumulator, rows, d_rows, rate, floor, start, stop), len(rows)
    )


@compiled
def _adagrad_block(table, accumulator, rows, d_rows, learning_rate, epsilon, start, stop):
    dim = table.shape[1]
    for i in range(start, stop):
        total = np.float32(0)
        for j in range(dim):
            total += d_rows[i, j] * d_rows[i, j]
        accumulator[rows[i]] += total / np.float32(dim)
        factor = learning_rate / (np.sqrt(accumulator[rows[i]]) + epsilon)
        for j in range(dim):
            table[rows[i], j] -= factor * d_rows[i, j]


def adamw_rows(table, m, v, rows, d_rows, learning_rate, beta1, beta2, epsilon, weight_decay, step):
    number = table.dtype.type
    constants = (
        number(learning_rate / (1 - beta1**step)), number(beta1), number(1 - beta1), number(beta2), number(1 - beta2),
        number(1 / (1 - beta2**step)), number(epsilon), number(1 - learning_rate * weight_decay),
    )  # fmt: skip
    _for_blocks(lambda start, stop: _adamw_block(table, m, v, rows, d_rows, constants, start, stop), len(rows))


@compiled
def _adamw_block(table, m, v, rows, d_rows, constants, start, stop):
    rate, beta1, rest1, beta2, rest2, correction, epsilon, keep = constants
    for i in range(start, stop):
        row = rows[i]
        for j in range(table.shape[1]):
            d = d_rows[i, j]
            m[row, j] = beta1 * m[row, j] + rest1 * d
            v[row, j] = beta2 * v[row, j] + rest2 * d * d
            table[row, j] = table[row, j] * keep - rate * m[row, j] / (np.sqrt(v[row, j] * correction) + epsilon)
