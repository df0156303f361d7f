"""Matrix products in Numba: the packed GEMM of gemm.pxi, with the same blocks, the same panels and the same epilogues.

Arrays reach the compiled code as addresses in a GemmTask, so that it is compiled once for all of them, read-only or
not. Shapes and meaning: reference.py. Knows nothing of layers beyond one linear map.
"""

from typing import NamedTuple

import numpy as np
from numba import carray

from fastmixer.kernels.activations_jit import activate, derivative
from fastmixer.kernels.bfloat16 import from_panels, panels_over_columns, panels_over_rows, round_bfloat16
from fastmixer.kernels.dropout.jit import dropout_forward
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.matmul.jit_tile import (
    TILE_COLUMNS,
    TILE_ROWS,
    WIDTH,
    float_pointer,
    prefetch,
    tile_multiply,
    transpose_square,
)
from fastmixer.kernels.threads import parallel_for

K_BLOCK = 256  # a panel of B [256, 48] is 48 KB: it streams from L2 while 8 rows of A stay in L1
ROW_BLOCK = 512  # rows that a packed panel of B serves
MIN_TASKS = 16  # a task costs some microseconds of Python
MAX_PANELS = 16  # panels of B a task
BIAS_COLUMNS = 256  # columns a task of the bias gradient
LINE = 16  # floats a cache line
FLOAT_BYTES = 4


class GemmTask(NamedTuple):
    """One product. Addresses are integers, 0 where an array is absent; strides are in floats."""

    a: int
    a_row: int
    a_k: int
    b: int
    b_k: int
    b_column: int
    packed_b: int
    out: int
    m: int
    n: int
    k: int
    accumulate: int
    row_block: int
    column_panels: int
    column_tasks: int
    # epilogue, forward: out = act(sum + bias) * multiplier + residual; pre_activation = sum + bias
    activation: int
    bias: int
    multiplier: int
    residual: int
    pre_activation: int
    # epilogue, backward: out = sum * multiplier * act'(input_pre), d_multiplier = sum * act(input_pre)
    input_pre: int
    d_multiplier: int
    plain: int  # no epilogue at all


def _address(array):
    return 0 if array is None or array.size == 0 else array.__array_interface__["data"][0]


def _gemm(
    a, a_strides, b, b_strides, out, k, accumulate, packed_b=None, activation=0, bias=None, multiplier=None,
    residual=None, pre_activation=None, input_pre=None, d_multiplier=None,
):  # fmt: skip
    """out [m, n] = (out +) A [m, k] B [k, n] and the epilogue; a_strides of (row, k), b_strides of (k, column)."""
    m, n = out.shape
    if m == 0 or n == 0:
        return
    # Even row blocks; a few panels a task, fewer where that leaves too few tasks. Depends on the shape only.
    panels = -(-n // TILE_COLUMNS)
    row_blocks = -(-m // ROW_BLOCK)
    row_block = -(-m // row_blocks // TILE_ROWS) * TILE_ROWS
    row_blocks = -(-m // row_block)
    column_panels = max(1, min(MAX_PANELS, panels * row_blocks // MIN_TASKS))
    column_tasks = -(-panels // column_panels)
    extras = (bias, multiplier, residual, pre_activation, input_pre, d_multiplier)
    plain = activation == 0 and all(extra is None for extra in extras)
    g = GemmTask(
        _address(a), *a_strides, _address(b), *b_strides, _address(packed_b), _address(out), m, n, k, int(accumulate),
        row_block, column_panels, column_tasks, int(activation), *map(_address, extras), int(plain),
    )  # fmt: skip
    parallel_for(lambda task: _gemm_block(g, task), row_blocks * column_tasks)


@compiled
def _gemm_block(g, task):
    """One block of out: for each block of k, each panel of B is packed and then meets every row."""
    row_start = task // g.column_tasks * g.row_block
    rows = min(g.row_block, g.m - row_start)
    first_panel = task % g.column_tasks * g.column_panels
    panels = (g.n + TILE_COLUMNS - 1) // TILE_COLUMNS
    last_panel = min(panels, first_panel + g.column_panels)
    tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    panel_buffer = np.empty(K_BLOCK * TILE_COLUMNS, np.float32)
    tile = np.zeros((TILE_ROWS, TILE_COLUMNS), np.float32)
    values, slopes = np.empty(TILE_COLUMNS, np.float32), np.empty(TILE_COLUMNS, np.float32)
    k_start = 0
    while k_start < g.k or k_start == 0:
        depth = min(K_BLOCK, g.k - k_start)
        load, last = g.accumulate != 0 or k_start > 0, k_start + depth == g.k
        for panel in range(first_panel, last_panel):
            column = panel * TILE_COLUMNS
            columns = min(TILE_COLUMNS, g.n - column)
            panel_address = panel_buffer.ctypes.data
            if g.packed_b != 0:
                panel_address = g.packed_b + (k_start * panels + panel * depth) * TILE_COLUMNS * FLOAT_BYTES
            else:
                _pack_panel(
                    g.b + (k_start * g.b_k + column * g.b_column) * FLOAT_BYTES, g.b_k, g.b_column, depth, columns,
                    panel_address,
                )  # fmt: skip
            for i in range(tiles):
                row = row_start + i * TILE_ROWS
                if g.packed_b == 0:
                    if panel + 1 < last_panel:
                        _prefetch_slice(g, k_start, column + TILE_COLUMNS, i, tiles)
                    elif not last:
                        _prefetch_slice(g, k_start + K_BLOCK, first_panel * TILE_COLUMNS, i, tiles)
                # Rows past the end repeat the last one: computed, never stored.
                tile_rows = min(TILE_ROWS, row_start + rows - row)
                if depth > 0:
                    tile_multiply(
                        g.a + (row * g.a_row + k_start * g.a_k) * FLOAT_BYTES, g.a_row, g.a_k, tile_rows,
                        panel_address, depth, tile.ctypes.data,
                    )  # fmt: skip
                if tile_rows == TILE_ROWS and columns == TILE_COLUMNS and (g.plain or not last):
                    _store_tile(g, tile, row, column, load)
                    continue
                for r in range(tile_rows):
                    _store_row(g, tile[r], row + r, column, columns, load, last, values, slopes)
        k_start += K_BLOCK


@compiled
def _row(address, width, row, column, columns):
    """columns floats of one row of a C-contiguous array [..., width] at this address."""
    return carray(float_pointer(address + (row * width + column) * FLOAT_BYTES), (columns,))


@compiled
def _store_tile(g, tile, row, column, load):
    """A whole tile that needs no epilogue: constant bounds, so that LLVM unrolls."""
    for r in range(TILE_ROWS):
        out = carray(float_pointer(g.out + ((row + r) * g.n + column) * FLOAT_BYTES), (TILE_COLUMNS,))
        if load:
            for i in range(TILE_COLUMNS):
                out[i] += tile[r, i]
        else:
            for i in range(TILE_COLUMNS):
                out[i] = tile[r, i]


@compiled
def _store_row(g, sums, row, column, columns, load, last, values, slopes):
    """columns sums of one row of out, through the epilogue if these are the last of k; values, slopes: scratch."""
    out = _row(g.out, g.n, row, column, columns)
    if not load:
        for i in range(columns):
            out[i] = sums[i]
    else:
        for i in range(columns):
            out[i] += sums[i]
    if not last:
        return
    if g.input_pre != 0:
        pre = _row(g.input_pre, g.n, row, column, columns)
        if g.d_multiplier != 0:
            d_multiplier = _row(g.d_multiplier, g.n, row, column, columns)
            values[:columns] = pre
            activate(values[:columns], g.activation)
            for i in range(columns):
                d_multiplier[i] = out[i] * values[i]
        derivative(pre, slopes[:columns], g.activation)
        for i in range(columns):
            out[i] *= slopes[i]
        if g.multiplier != 0:
            multiplier = _row(g.multiplier, g.n, row, column, columns)
            for i in range(columns):
                out[i] *= multiplier[i]
        return
    if g.bias != 0:
        bias = _row(g.bias, g.n, 0, column, columns)
        for i in range(columns):
            out[i] += bias[i]
    if g.pre_activation != 0:
        pre_activation = _row(g.pre_activation, g.n, row, column, columns)
        for i in range(columns):
            pre_activation[i] = out[i]
    activate(out, g.activation)
    if g.multiplier != 0:
        multiplier = _row(g.multiplier, g.n, row, column, columns)
        for i in range(columns):
            out[i] *= multiplier[i]
    if g.residual != 0:
        residual = _row(g.residual, g.n, row, column, columns)
        for i in range(columns):
            out[i] += residual[i]


# ---- packing ----


@compiled
def _prefetch_slice(g, k_start, column, part, parts):
    """Ask for one of `parts` of the block of B that is packed next, while this one is multiplied."""
    depth, columns = min(K_BLOCK, g.k - k_start), min(TILE_COLUMNS, g.n - column)
    along_columns = g.b_column == 1
    runs, length = (depth, columns) if along_columns else (columns, depth)
    stride = g.b_k if along_columns else g.b_column
    start = g.b + (k_start * g.b_k + column * g.b_column) * FLOAT_BYTES
    for run in range(runs * part // parts, runs * (part + 1) // parts):
        for at in range(0, length, LINE):
            prefetch(start + (run * stride + at) * FLOAT_BYTES)


@compiled
def _pack_panel(b_address, b_k, b_column, depth, columns, panel_address):
    """panel [depth, TILE_COLUMNS] = a block of B; columns past the end are zero."""
    panel = carray(float_pointer(panel_address), (depth, TILE_COLUMNS))
    if columns < TILE_COLUMNS:
        panel[:] = 0
    if b_column == 1:
        for k in range(depth):
            b = carray(float_pointer(b_address + k * b_k * FLOAT_BYTES), (columns,))
            for column in range(columns):
                panel[k, column] = b[column]
        return
    # B is transposed: k runs along memory (b_k is 1), so squares are turned in registers.
    column = 0
    while column < columns:
        k = 0
        if column + WIDTH <= columns:
            while k + WIDTH <= depth:
                transpose_square(
                    b_address + (column * b_column + k) * FLOAT_BYTES, b_column,
                    panel_address + (k * TILE_COLUMNS + column) * FLOAT_BYTES, TILE_COLUMNS,
                )  # fmt: skip
                k += WIDTH
        for j in range(column, min(column + WIDTH, columns)):
            b = carray(float_pointer(b_address + j * b_column * FLOAT_BYTES), (depth,))
            for rest in range(k, depth):
                panel[rest, j] = b[rest]
        column += WIDTH


# ---- the functions ----


def matmul(a, b, out, transpose_a, transpose_b, accumulate):
    """out [m, n] = (out +) A B, with a: [m, k] ([k, m] if transpose_a), b: [k, n] ([n, k] if transpose_b)."""
    a_strides = (1, a.shape[1]) if transpose_a else (a.shape[1], 1)
    b_strides = (1, b.shape[1]) if transpose_b else (b.shape[1], 1)
    _gemm(a, a_strides, b, b_strides, out, a.shape[0] if transpose_a else a.shape[1], accumulate)


def linear_forward(
    x, weight, bias, multiplier, residual, pre_activation, out, transpose_weight, activation, dropout=0.0, seed=0
):  # fmt: skip
    """out [tokens, out] = dropout(act(x W + bias) * multiplier) + residual; pre_activation receives x W + bias."""
    inputs, outputs = x.shape[1], out.shape[1]
    _gemm(
        x, (inputs, 1), weight, (1, inputs) if transpose_weight else (outputs, 1), out, inputs, False,
        activation=activation, bias=bias, multiplier=multiplier, residual=residual if dropout == 0 else None,
        pre_activation=pre_activation,
    )  # fmt: skip
    if dropout > 0:  # a pass of its own here, with the same words
        flat_residual = None if residual is None else residual.reshape(-1)
        dropout_forward(out.reshape(-1), dropout, seed, flat_residual, out.reshape(-1))


def linear_backward_input(
    d_out, weight, pre_activation, multiplier, d_x, d_multiplier, transpose_weight, activation, accumulate
):
    """d_x = (d_x +) d_out W^T, and on through x = act(pre_activation) * multiplier where pre_activation is given."""
    inputs, outputs = d_x.shape[1], d_out.shape[1]
    # a weight stored [out, in] is W^T already
    weight_strides = (inputs, 1) if transpose_weight else (1, outputs)
    if pre_activation is None:
        activation, multiplier, d_multiplier = 0, None, None
    _gemm(
        d_out, (outputs, 1), weight, weight_strides, d_x, outputs, accumulate, activation=activation,
        multiplier=multiplier, input_pre=pre_activation, d_multiplier=d_multiplier,
    )  # fmt: skip


def linear_backward_weight(x, d_out, d_weight, transpose_weight, accumulate=True):
    """d_weight = (d_weight +) x^T d_out, or its transpose if transpose_weight."""
    if transpose_weight:
        matmul(d_out, x, d_weight, True, False, accumulate)
    else:
        matmul(x, d_out, d_weight, True, False, accumulate)


@compiled
def _bias_block(d_out, d_bias, start, stop):
    sums = np.zeros(stop - start, np.float32)
    for row in range(d_out.shape[0]):
        values = d_out[row, start:stop]
        for column in range(sums.size):
            sums[column] += values[column]
    for column in range(sums.size):
        d_bias[start + column] += sums[column]


def linear_backward_bias(d_out, d_bias):
    """d_bias [out] += the sum of d_out [tokens, out] over tokens."""
    columns = d_bias.size

    def task(index):
        _bias_block(d_out, d_bias, index * BIAS_COLUMNS, min((index + 1) * BIAS_COLUMNS, columns))

    parallel_for(task, -(-columns // BIAS_COLUMNS))


# ---- constant weights, packed once ----


def packed_size(inputs, outputs):
    """How many floats pack_weight writes for a weight of these sizes."""
    return inputs * -(-outputs // TILE_COLUMNS) * TILE_COLUMNS


@compiled
def _pack_weight_panel(weight_address, k_stride, column_stride, packed_address, k, n, panel):
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    column = panel * TILE_COLUMNS
    for k_start in range(0, k, K_BLOCK):
        depth = min(K_BLOCK, k - k_start)
        _pack_panel(
            weight_address + (k_start * k_stride + column * column_stride) * FLOAT_BYTES, k_stride, column_stride,
            depth, min(TILE_COLUMNS, n - column),
            packed_address + (k_start * panels + panel * depth) * TILE_COLUMNS * FLOAT_BYTES,
        )  # fmt: skip


def pack_weight(weight, packed, transpose_weight):
    """packed: a constant weight as the panels that linear_forward_packed reads."""
    n, k = weight.shape if transpose_weight else weight.shape[::-1]
    strides = (1, k) if transpose_weight else (n, 1)
    addresses = _address(weight), _address(packed)
    if k == 0:
        return
    parallel_for(
        lambda panel: _pack_weight_panel(addresses[0], *strides, addresses[1], k, n, panel), -(-n // TILE_COLUMNS)
    )


def linear_forward_packed(x, packed, bias, multiplier, residual, out, activation):
    """As linear_forward, over a weight that pack_weight packed."""
    _gemm(
        x, (x.shape[1], 1), None, (0, 1), out, x.shape[1], False, packed_b=packed, activation=activation, bias=bias,
        multiplier=multiplier, residual=residual,
    )  # fmt: skip


# ---- in bfloat16: Numba has no bfloat16 product, so numbers are rounded and multiplied in float32 ----


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
        round_bfloat16(x), weight, bias, multiplier, residual, pre_activation, out, False, activation, dropout, seed
    )  # fmt: skip


def linear_backward_bfloat16(
    d_out, x, weight, pre_activation, multiplier, d_x, d_multiplier, d_weight, transpose_weight, activation, accumulate,
    accumulate_weight=True,
):  # fmt: skip
    """As linear_backward_weight (unless d_weight is None) and linear_backward_input, over weight: uint32
    [ceil(in / 48), ceil(out / 2), 48], panels over what is summed."""
    d_out, weight = round_bfloat16(d_out), from_panels(weight, d_out.shape[1], d_x.shape[1])
    if d_weight is not None:
        # tokens are added up two by two
        linear_backward_weight(round_bfloat16(x), d_out, d_weight, transpose_weight, accumulate_weight)
    linear_backward_input(
        d_out, weight, pre_activation, multiplier, d_x, d_multiplier, True, activation, accumulate
    )  # fmt: skip
