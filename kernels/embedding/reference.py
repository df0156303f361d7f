"""Embedding in NumPy, float32 or float64: the truth that jit.py and native.pyx are held to.

Knows nothing of tokens. Sources of the updates: AdaGrad, Duchi et al. 2011, with one accumulator a row; AdamW,
Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

import numpy as np


def gather(table, ids, out):
    """out [n, dim] = table [rows, dim] at ids [n]."""
    np.take(table, ids, axis=0, out=out, mode="clip")


def group_by_row(ids, num_rows, order, starts, rows):
    """order [n]: positions sorted by id, equal ids in their order; rows [n]: the ids that occur, ascending; starts [n + 1]:
    where each row's positions begin in order, and their end. Returns how many rows occur."""
    order[...] = np.argsort(ids, kind="stable")
    touched, first = np.unique(ids[order], return_index=True)
    rows[: len(touched)] = touched
    starts[: len(touched)] = first
    starts[len(touched)] = len(ids)
    return len(touched)


def scatter_gradient(d_out, order, starts, d_rows):
    """d_rows [touched, dim]: row r is the sum of d_out [n, dim] at order[starts[r]:starts[r + 1]], in that order."""
    for row in range(len(d_rows)):
        d_rows[row] = 0
        for position in order[starts[row] : starts[row + 1]]:
            d_rows[row] += d_out[position]


def add_rows(target, rows, values):
    """target [rows, dim] += values [touched, dim] at rows [touched], which are distinct."""
    target[rows] += values


def sgd_rows(table, rows, d_rows, learning_rate):
    """table -= learning_rate * d_rows, at rows only."""
    table[rows] -= table.dtype.type(learning_rate) * d_rows


def adagrad_rows(table, accumulator, rows, d_rows, learning_rate, epsilon):
    """Rowwise AdaGrad, at rows only: accumulator [rows] += mean of d^2; table -= learning_rate * d / (sqrt + epsilon)."""
    accumulator[rows] += np.mean(d_rows * d_rows, axis=1)
    table[rows] -= learning_rate * d_rows / (np.sqrt(accumulator[rows]) + epsilon)[:, None]


def adamw_rows(table, m, v, rows, d_rows, learning_rate, beta1, beta2, epsilon, weight_decay, step):
    """AdamW at rows only; m, v: [rows, dim]. Rows that did not occur keep their moments, and do not decay."""
    p = table[rows]
    m_rows = beta1 * m[rows] + (1 - beta1) * d_rows
    v_rows = beta2 * v[rows] + (1 - beta2) * d_rows * d_rows
    p -= learning_rate * weight_decay * p
    p -= learning_rate / (1 - beta1**step) * m_rows / (np.sqrt(v_rows / (1 - beta2**step)) + epsilon)
    table[rows], m[rows], v[rows] = p, m_rows, v_rows
