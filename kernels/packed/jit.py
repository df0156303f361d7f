"""Packed weights in Numba: the arithmetic of reference.py, block by block. Shapes, layouts and meaning: reference.py.

Weights kept as rows go through kernels/matmul. Knows nothing of models.
"""

import numpy as np

from fastmixer.kernels.bfloat16 import round_bfloat16
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.matmul.jit import linear_forward
from fastmixer.kernels.packed import CHANNEL_GROUP, CHANNEL_KIND
from fastmixer.kernels.packed.reference import pack_weight, packed_rows, packed_rows_of, round_channel, round_rows
from fastmixer.kernels.threads import parallel_for

__all__ = ["pack_weight", "packed_linear", "packed_rows"]

OUTPUTS_A_TASK = 64


def packed_linear(x, packed, bias, out, outliers=0):
    """out [tokens, outputs] = x [tokens, inputs] W^T + bias (or None). outliers: numbers of a row that stay as they are."""
    if "rows" in packed.arrays:
        # 1. rows of numbers: bfloat16 rounds x too, and adds up in float32
        rows = packed_rows_of(packed)
        if packed.kind.startswith("bfloat16"):
            x = round_bfloat16(x)
        linear_forward(x, rows, bias, None, None, None, out, True, 0)
        return
    if packed.kind == CHANNEL_KIND:
        # 2. one scale an output: x in int8, a sum of integers a group
        _add_groups(x, packed, bias, out)
        return
    # 3. blocks: x in int8, a sum of integers a block, then scales; then what is kept as it is
    _add_blocks(x, packed, bias, out, outliers)


def _add_groups(x, packed, bias, out):
    """out [tokens, outputs] = x W^T + bias, of a weight with one scale an output."""
    groups = [round_channel(x[:, at : at + CHANNEL_GROUP], by_step=False) for at in range(0, packed.inputs, CHANNEL_GROUP)]
    numbers = np.concatenate([group[0] for group in groups], axis=1).astype(np.int8)
    x_scales = np.stack([group[1] for group in groups], axis=1)

    def task(index):
        start = index * OUTPUTS_A_TASK
        stop = min(start + OUTPUTS_A_TASK, packed.outputs)
        _channel_columns(numbers, x_scales, packed.arrays["numbers"], packed.arrays["scales"], bias, out, start, stop)

    parallel_for(task, -(-packed.outputs // OUTPUTS_A_TASK))


@compiled
def _channel_columns(x_numbers, x_scales, numbers, scales, bias, out, start, stop):
    """Columns start..stop of out."""
    tokens, inputs = x_numbers.shape
    for column in range(start, stop):
        w = numbers[column]
        for t in range(tokens):
            x, total = x_numbers[t], np.float32(0)
            for group in range(x_scales.shape[1]):
                dot = np.int32(0)
                for i in range(group * CHANNEL_GROUP, min(inputs, (group + 1) * CHANNEL_GROUP)):
                    dot += np.int32(w[i]) * np.int32(x[i])
                total += np.float32(dot) * x_scales[t, group]
            total *= scales[column]
            if bias is not None:
                total += bias[column]
            out[t, column] = total


def _add_blocks(x, packed, bias, out, outliers):
    """out [tokens, outputs] = x W^T + bias, of a weight in blocks."""
    arrays = packed.arrays
    numbers, x_scales, places, values = round_rows(x, outliers)
    rounded = numbers.astype(np.int8), x_scales, x_scales * numbers.sum(axis=2), places, values

    def task(index):
        start = index * OUTPUTS_A_TASK
        stop = min(start + OUTPUTS_A_TASK, packed.outputs)
        _columns(*rounded, arrays["numbers"], arrays["scales"], arrays.get("minima"), bias, out, start, stop)

    parallel_for(task, -(-packed.outputs // OUTPUTS_A_TASK))


@compiled
def _columns(x_numbers, x_scales, x_sums, places, values, numbers, scales, minima, bias, out, start, stop):
    """Columns start..stop of out."""
    tokens, blocks, width = x_numbers.shape
    for column in range(start, stop):
        for t in range(tokens):
            total = np.float32(0)
            for block in range(blocks):
                w, x = numbers[column, block], x_numbers[t, block]
                dot = np.int32(0)
                for i in range(width):
                    dot += np.int32(w[i]) * np.int32(x[i])
                total += np.float32(dot) * (scales[column, block] * x_scales[t, block])
            if minima is not None:
                for block in range(blocks):
                    total += minima[column, block] * x_sums[t, block]
            for k in range(places.shape[1]):
                block, i = places[t, k] // width, places[t, k] % width
                total += np.float32(numbers[column, block, i]) * (scales[column, block] * values[t, k])
                if minima is not None:
                    total += minima[column, block] * values[t, k]
            if bias is not None:
                total += bias[column]
            out[t, column] = total
