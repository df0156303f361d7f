"""Drawing the next token from logits in Numba. Instead of sorting, top-k and top-p find the value at which enough
tokens (or enough probability) have been passed, in three histograms over the bits of the numbers.

Rows are independent: a row is a task.
"""

import numpy as np

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.jit_exp import exp_float32
from fastmixer.kernels.threads import parallel_for

BINS = 2048
DRAW_BLOCK = 1024  # weights that are summed before the draw looks into them one by one


def sample(logits, temperature, top_k, top_p, min_p, uniform, out):
    """One token id per row of logits: [batch, vocab] (overwritten: scratch); the rules stand in reference.py."""

    def task(row):
        _sample_row(logits[row], temperature, top_k, top_p, min_p, uniform, out, row)

    parallel_for(task, len(logits))


def penalize_repetition(logits, ids, penalty):
    """Divide positive and multiply negative logits of the ids that occurred by penalty, once each, in place."""

    def task(row):
        _penalize_row(logits[row], ids[row], np.float32(penalty))

    parallel_for(task, len(logits))


@compiled
def _rank_bits(value):
    """An integer that orders as the float32 value does; -0 and 0 are equal."""
    bits = np.int64(np.float32(value).view(np.int32))
    if bits == -0x80000000:
        bits = np.int64(0)
    # negative numbers: all bits but the sign flipped; then shifted up so that none is below 0. No branch: signs of
    # logits cannot be guessed
    return (bits ^ ((bits >> 63) & 0x7FFFFFFF)) + 0x80000000


@compiled
def _ranked_value(bits):
    """The value whose rank bits are these. Beyond the infinities it is NaN, than which nothing is larger or smaller."""
    plain = bits - 0x80000000
    return np.int32(plain ^ ((plain >> 63) & 0x7FFFFFFF)).view(np.float32)


@compiled
def _keep_best(values, ids, count, needed, by_weight):
    """Keep the fewest largest values that reach `needed` (their number, or their sum if by_weight), and their ids, in
    the order they stand in; returns how many. Among equals the first stay.
    """
    histogram = np.empty(BINS)
    threshold, passed = 0, 0.0  # the leading bits of the last value kept; what the values above them bring
    # 11, 11 and 10 bits more of the threshold at a time
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        lowest = _ranked_value(threshold << (shift + width))
        highest = _ranked_value(((threshold + 1) << (shift + width)) - 1)
        histogram[:] = 0
        for i in range(count):
            if values[i] < lowest or values[i] > highest:
                continue  # the quick way past most of them
            bits = _rank_bits(values[i]) >> shift
            if bits >> width == threshold:
                histogram[bits & ((1 << width) - 1)] += values[i] if by_weight else 1.0
        last = (1 << width) - 1
        while last > 0 and passed + histogram[last] < needed:
            passed += histogram[last]
            last -= 1
        threshold = threshold << width | last
    # all above it stay, and of those equal to it the ones that are still needed
    lowest = _ranked_value(threshold)
    kept = 0
    for i in range(count):
        if values[i] < lowest:
            continue
        if values[i] == lowest:
            if passed >= needed:
                continue
            passed += values[i] if by_weight else 1.0
        values[kept], ids[kept] = values[i], ids[i]
        kept += 1
    return kept


@compiled
def _sum_weights(weights, start, stop):
    total = 0.0
    for i in range(start, stop):
        total += weights[i]
    return total


@compiled
def _sum_blocks(weights, count):
    total = 0.0
    for start in range(0, count, DRAW_BLOCK):
        total += _sum_weights(weights, start, min(start + DRAW_BLOCK, count))
    return total


@compiled
def _draw(weights, count, uniform):
    """The position at which the summed weights pass uniform times their total; never one of weight 0."""
    wanted, reached, last = uniform * _sum_blocks(weights, count), 0.0, 0
    for start in range(0, count, DRAW_BLOCK):
        stop = min(start + DRAW_BLOCK, count)
        block = _sum_weights(weights, start, stop)
        if block == 0:
            continue
        last = stop
        if reached + block <= wanted:
            reached += block
            continue
        for i in range(start, stop):
            reached += weights[i]
            if reached > wanted:
                return i
        break
    # rounding left the sum just short of what was wanted: the last that can be drawn
    while weights[last - 1] == 0:
        last -= 1
    return last - 1


@compiled
def _sample_row(logits, temperature, top_k, top_p, min_p, uniform, out, row):
    vocab = logits.size
    largest, best = logits[0], 0
    for i in range(1, vocab):
        if logits[i] > largest:
            largest, best = logits[i], i
    if temperature == 0:
        out[row] = best
        return
    count, ids = vocab, np.arange(vocab)  # the tokens that are left
    # top-k
    if 0 < top_k < vocab:
        count = _keep_best(logits, ids, count, np.float64(top_k), False)
    # temperature; the best token weighs 1
    weights, warmth = logits, np.float32(temperature)
    for i in range(count):
        weights[i] = exp_float32((logits[i] - largest) / warmth)
    # top-p: a token stays while those before it have not reached the share
    if top_p < 1:
        count = _keep_best(weights, ids, count, top_p * _sum_blocks(weights, count), True)
    # min-p
    least = np.float32(min_p)
    for i in range(count):
        weights[i] = np.float32(0) if weights[i] < least else weights[i]
    # draw
    out[row] = ids[_draw(weights, count, uniform[row])]


@compiled
def _penalize_row(logits, ids, penalty):
    # all are read before any is written, so that an id that occurred twice is changed once
    penalized = np.empty(ids.size, np.float32)
    for j in range(ids.size):
        if ids[j] >= 0:
            value = logits[ids[j]]
            penalized[j] = value * penalty if value < 0 else value / penalty
    for j in range(ids.size):
        if ids[j] >= 0:
            logits[ids[j]] = penalized[j]
