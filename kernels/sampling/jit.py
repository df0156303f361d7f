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
    bits = np.int64(np.float32(value).view(np.uint32))
    if bits == 0x80000000:
        bits = 0
    return 0xFFFFFFFF - bits if bits >= 0x80000000 else bits + 0x80000000


@compiled
def _keep_best(values, needed, by_weight, dropped):
    """Keep the fewest largest values that reach `needed` (their number, or their sum if by_weight); the others become
    `dropped`. Among equals the lower index stays.
    """
    histogram = np.empty(BINS)
    threshold, passed = 0, 0.0  # the leading bits of the last value kept; what the values above them bring
    for shift, bins in ((21, 2048), (10, 2048), (0, 1024)):
        histogram[:bins] = 0
        for i in range(values.size):
            if values[i] != dropped:
                bits = _rank_bits(values[i]) >> shift
                if bits // bins == threshold:
                    histogram[bits % bins] += values[i] if by_weight else 1.0
        last = bins - 1
        while last > 0 and passed + histogram[last] < needed:
            passed += histogram[last]
            last -= 1
        threshold = threshold * bins + last
    for i in range(values.size):
        if values[i] != dropped:
            bits = _rank_bits(values[i])
            if bits < threshold or (bits == threshold and passed >= needed):
                values[i] = dropped
            elif bits == threshold:
                passed += values[i] if by_weight else 1.0


@compiled
def _sum_weights(weights, start, stop):
    total = 0.0
    for i in range(start, stop):
        total += weights[i]
    return total


@compiled
def _draw(weights, total, uniform):
    """The id at which the summed weights pass uniform * total; never one of weight 0."""
    wanted, reached, last = uniform * total, 0.0, 0
    for start in range(0, weights.size, DRAW_BLOCK):
        stop = min(start + DRAW_BLOCK, weights.size)
        block = _sum_weights(weights, start, stop)
        if block == 0:
            continue
        if reached + block <= wanted:
            reached += block
            last = stop
            continue
        for i in range(start, stop):
            reached += weights[i]
            if reached > wanted:
                return i
        last = stop
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
    # top-k
    if 0 < top_k < vocab:
        _keep_best(logits, np.float64(top_k), False, -np.float32(np.inf))
    # temperature; the best token weighs 1
    weights, warmth = logits, np.float32(temperature)
    for i in range(vocab):
        weights[i] = exp_float32((logits[i] - largest) / warmth)
    # top-p: a token stays while those before it have not reached the share
    if top_p < 1:
        total = 0.0
        for start in range(0, vocab, DRAW_BLOCK):
            total += _sum_weights(weights, start, min(start + DRAW_BLOCK, vocab))
        _keep_best(weights, top_p * total, True, np.float32(0))
    # min-p
    total, least = 0.0, np.float32(min_p)
    for start in range(0, vocab, DRAW_BLOCK):
        stop = min(start + DRAW_BLOCK, vocab)
        for i in range(start, stop):
            weights[i] = np.float32(0) if weights[i] < least else weights[i]
        total += _sum_weights(weights, start, stop)
    # draw
    out[row] = _draw(weights, total, uniform[row])


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
