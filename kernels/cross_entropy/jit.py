"""Output head and softmax cross-entropy in Numba: the loops of native.pyx; the matrix products are kernels/matmul's.

Rows are independent: a block of rows is one task, so the number of threads changes nothing.
"""

import numpy as np

from fastmixer.kernels.bfloat16 import from_panels, round_bfloat16
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.jit_exp import exp_float32
from fastmixer.kernels.matmul.jit import matmul
from fastmixer.kernels.threads import parallel_for

TASK_FLOATS = 16384  # logits a task: small vocabularies take many rows at a time
SUM_BLOCK = 1024  # columns summed in float32 before they join the row's float64 total


def head_loss(x, weight, targets, ignore_index, scale, logits, losses, d_x, d_weight, accumulate=True):
    """The loss of every token against its target, and the gradients of scale * sum(losses); shapes: reference.py."""
    tokens, chunk = len(x), len(logits)
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        x_chunk, chunk_logits = x[start:stop], logits[: stop - start]
        # logits = x W^T, for these tokens only
        matmul(x_chunk, weight, chunk_logits, False, True, False)
        # losses; d_logits takes the place of the logits
        d_logits = None if d_x is None and d_weight is None else chunk_logits
        cross_entropy_rows(chunk_logits, targets[start:stop], ignore_index, scale, losses[start:stop], d_logits)
        # d_x = d_logits W; d_W = (d_W +) d_logits^T x
        if d_x is not None:
            matmul(d_logits, weight, d_x[start:stop], False, False, False)
        if d_weight is not None:
            matmul(d_logits, x_chunk, d_weight, True, False, accumulate or start > 0)


def head_loss_bfloat16(
    x, over_columns, over_rows, targets, ignore_index, scale, logits, losses, d_x, d_weight, accumulate=True
):  # fmt: skip
    """As head_loss with products in bfloat16: numbers are rounded, and multiplied in float32; shapes: reference.py."""
    tokens, chunk = len(x), len(logits)
    weight = np.ascontiguousarray(from_panels(over_columns, x.shape[1], logits.shape[1]).T)
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        x_chunk, chunk_logits = round_bfloat16(x[start:stop]), logits[: stop - start]
        # logits = x W^T, for these tokens only
        matmul(x_chunk, weight, chunk_logits, False, True, False)
        # losses; d_logits takes the place of the logits
        d_logits = None if d_x is None and d_weight is None else chunk_logits
        cross_entropy_rows(chunk_logits, targets[start:stop], ignore_index, scale, losses[start:stop], d_logits)
        # d_x = d_logits W; d_W = (d_W +) d_logits^T x
        if d_logits is not None:
            d_logits = round_bfloat16(d_logits)
        if d_x is not None:
            matmul(d_logits, weight, d_x[start:stop], False, False, False)
        if d_weight is not None:
            matmul(d_logits, x_chunk, d_weight, True, False, accumulate or start > 0)


def cross_entropy_rows(logits, targets, ignore_index, scale, losses, d_logits):
    """The loss of every row, and d_logits = scale * (softmax(logits) - onehot(target)); shapes as in reference.py."""
    rows, vocab = logits.shape
    task_rows = max(1, TASK_FLOATS // max(1, vocab))

    def task(index):
        start, stop = index * task_rows, min((index + 1) * task_rows, rows)
        if d_logits is None:
            _loss_block(logits, targets, ignore_index, losses, start, stop)
        else:
            _gradient_block(d_logits, targets, ignore_index, scale, losses, start, stop)

    # in place: LLVM makes vectors of a loop only where it knows that input and output do not overlap by halves
    if d_logits is not None and d_logits is not logits:
        d_logits[...] = logits
    parallel_for(task, -(-rows // task_rows))


def softmax_rows(logits, out):
    """out = softmax of every row of logits: [rows, vocab]; out may be logits itself."""
    rows, vocab = logits.shape
    task_rows = max(1, TASK_FLOATS // max(1, vocab))

    def task(index):
        _softmax_block(out, index * task_rows, min((index + 1) * task_rows, rows))

    if out is not logits:
        out[...] = logits
    parallel_for(task, -(-rows // task_rows))


@compiled
def _row_largest(row):
    largest = -np.float32(np.inf)
    for i in range(row.size):
        largest = row[i] if row[i] > largest else largest
    return largest


@compiled
def _row_exponentials(row, largest):
    """row = exp(row - largest); returns its sum."""
    total = 0.0
    for block in range(0, row.size, SUM_BLOCK):
        partial, columns = np.float32(0), row[block : block + SUM_BLOCK]
        for i in range(columns.size):  # from 0: a start that might be negative keeps LLVM from making vectors
            columns[i] = exp_float32(columns[i] - largest)
            partial += columns[i]
        total += partial
    return total


@compiled
def _row_total(row, largest):
    """The sum of exp(row - largest)."""
    total = 0.0
    for block in range(0, row.size, SUM_BLOCK):
        partial, columns = np.float32(0), row[block : block + SUM_BLOCK]
        for i in range(columns.size):
            partial += exp_float32(columns[i] - largest)
        total += partial
    return total


@compiled
def _loss_block(logits, targets, ignore_index, losses, start, stop):
    for row in range(start, stop):
        target = targets[row]
        if target == ignore_index:
            losses[row] = 0
            continue
        largest = _row_largest(logits[row])
        total = _row_total(logits[row], largest)
        losses[row] = np.log(total) - np.float64(logits[row, target] - largest)


@compiled
def _gradient_block(d_logits, targets, ignore_index, scale, losses, start, stop):
    """d_logits: float32 [rows, vocab] holds the logits and becomes their gradient."""
    for row in range(start, stop):
        target, d_row = targets[row], d_logits[row]
        if target == ignore_index:
            losses[row] = 0
            d_row[:] = 0
            continue
        # the row's maximum is taken away: exp neither overflows nor vanishes, and the loss keeps its digits
        largest = _row_largest(d_row)
        target_shifted = d_row[target] - largest
        total = _row_exponentials(d_row, largest)
        losses[row] = np.log(total) - np.float64(target_shifted)
        factor = np.float32(scale / total)
        for i in range(d_row.size):
            d_row[i] *= factor
        d_row[target] -= np.float32(scale)


@compiled
def _softmax_block(out, start, stop):
    """out: float32 [rows, vocab] holds the logits and becomes their softmax."""
    for row in range(start, stop):
        out_row = out[row]
        total = _row_exponentials(out_row, _row_largest(out_row))
        factor = np.float32(1.0 / total)
        for i in range(out_row.size):
            out_row[i] *= factor
