"""Positions in Numba: the loops of native.pyx. Shapes and meaning: reference.py."""

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.threads import parallel_for

TOKEN_BLOCK = 32  # tokens a task


def rotate(x, cos, sin, positions, inverse, out):
    batch, _, time, _ = x.shape
    blocks = -(-time // TOKEN_BLOCK)
    sign = cos.dtype.type(-1 if inverse else 1)

    def task(index):
        b, block = divmod(index, blocks)
        start = block * TOKEN_BLOCK
        _rotate_block(x, cos, sin, positions, sign, out, b, start, min(start + TOKEN_BLOCK, time))

    parallel_for(task, batch * blocks)


@compiled
def _rotate_block(x, cos, sin, positions, sign, out, b, start, stop):
    half = x.shape[3] // 2
    for t in range(start, stop):
        position = positions[b, t]
        for head in range(x.shape[1]):
            for i in range(half):
                c, s = cos[position, i], sign * sin[position, i]
                first, second = x[b, head, t, i], x[b, head, t, half + i]
                out[b, head, t, i] = first * c - second * s
                out[b, head, t, half + i] = second * c + first * s


def add_positions(x, table, positions):
    tokens = len(x)

    def task(index):
        _add_block(x, table, positions, index * TOKEN_BLOCK, min((index + 1) * TOKEN_BLOCK, tokens))

    parallel_for(task, -(-tokens // TOKEN_BLOCK))


@compiled
def _add_block(x, table, positions, start, stop):
    for t in range(start, stop):
        for j in range(x.shape[1]):
            x[t, j] += table[positions[t], j]
