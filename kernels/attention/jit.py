"""Attention in Numba: the tiles of native.pyx, as rows that LLVM turns into vectors. Shapes and meaning: reference.py."""

import numpy as np

from fastmixer.kernels.bfloat16 import round_bfloat16
from fastmixer.kernels.jit import compiled
from fastmixer.kernels.jit_exp import exp_float32
from fastmixer.kernels.philox import keep_scale, keep_threshold
from fastmixer.kernels.philox_jit import philox_block
from fastmixer.kernels.threads import parallel_for

QUERY_TILE = 64
KEY_TILE = 64
MINUS_INFINITY = np.float32(-np.inf)
ZERO = np.float32(0)


def attention_forward(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp, rounded=False):
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    tiles = int(-(-(spans[:, 2] - spans[:, 1]).max(initial=0) // QUERY_TILE))
    options = (
        np.float32(scale), int(before), int(after), dropout > 0, np.uint64(seed),
        np.uint64(keep_threshold(dropout)), np.float32(keep_scale(dropout)),
    )  # fmt: skip

    def task(index):
        # the last tiles of a causal sequence are the longest: they go first
        tile, rest = tiles - 1 - index % tiles, index // tiles
        sequence, head = divmod(rest, heads)
        _forward_tile(
            q, k, v, spans, sequence, head, head // group, tile * QUERY_TILE, options, bias, rounded, out, log_sum_exp
        )

    parallel_for(task, len(spans) * heads * tiles)


@compiled
def _forward_tile(q, k, v, spans, sequence, head, kv_head, first, options, bias, rounded, out, log_sum_exp):
    scale, before, after, drop, seed, threshold, keep = options
    b, q_start, q_stop, k_start, k_stop = spans[sequence]
    nq, nk, dim = q_stop - q_start, k_stop - k_start, q.shape[3]
    count = min(QUERY_TILE, nq - first)
    if count <= 0:
        return
    scores = np.empty((QUERY_TILE, KEY_TILE), np.float32)
    key_tile = np.empty((dim, KEY_TILE), np.float32)
    value_tile = np.empty((KEY_TILE, dim), np.float32)
    blend = np.zeros((QUERY_TILE, dim), np.float32)
    largest = np.full(QUERY_TILE, MINUS_INFINITY)
    total = np.zeros(QUERY_TILE, np.float32)
    key = max(0, nk - nq + first - before) // KEY_TILE * KEY_TILE if before >= 0 else 0
    key_end = max(0, min(nk, nk - nq + first + count + after)) if after >= 0 else nk
    while key < key_end:
        keys = min(KEY_TILE, nk - key)
        _load_transposed(k, b, kv_head, k_start + key, keys, key_tile)
        # scores = q k^T
        for i in range(count):
            _blend_row(q[b, head, q_start + first + i], key_tile, scores[i], True)
        _load(v, b, kv_head, k_start + key, keys, value_tile)
        # online softmax: when a row's largest score grows, what was summed so far shrinks
        for i in range(count):
            row = scores[i]
            position = nk - nq + first + i
            end = min(keys, position + after + 1 - key) if after >= 0 else keys
            start = position - before - key if before >= 0 else 0
            _scale(row, scale)
            _add_bias(row, bias, head, key - position, start, end)
            new_largest = max(largest[i], _mask(row, start, end))
            shift = ZERO if new_largest == MINUS_INFINITY else new_largest
            if new_largest > largest[i] and total[i] > 0:
                correction = exp_float32(np.float32(largest[i] - shift))
                total[i] *= correction
                blend[i] *= correction
            largest[i] = new_largest
            total[i] += _exponentials(row, shift)
            if drop:
                _drop_row(row, seed, key, first + i, head, sequence, threshold, keep)
            if rounded:
                _round_row(row)
            # blend += weights v
            _blend_row(row[:keys], value_tile, blend[i], False)
        key += KEY_TILE
    for i in range(count):
        inverse = ZERO if total[i] == 0 else np.float32(1) / total[i]
        for j in range(dim):
            out[b, head, q_start + first + i, j] = blend[i, j] * inverse
        log_sum_exp[b, head, q_start + first + i] = (
            MINUS_INFINITY if total[i] == 0 else largest[i] + np.float32(np.log(total[i]))
        )


def attention_backward(
    d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias,
    rounded=False,
):
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    d_biases = np.zeros((len(spans), *bias.shape), np.float32)  # of each sequence
    options = (
        np.float32(scale), int(before), int(after), dropout > 0, np.uint64(seed),
        np.uint64(keep_threshold(dropout)), np.float32(keep_scale(dropout)),
    )  # fmt: skip

    def task(index):
        sequence, kv_head = divmod(index, kv_heads)
        _backward_head(
            d_out, q, k, v, out, log_sum_exp, spans, sequence, kv_head, group, options, bias, rounded, delta, d_q, d_k, d_v,
            d_biases[sequence],
        )  # fmt: skip

    parallel_for(task, len(spans) * kv_heads)
    d_bias[...] = d_biases.sum(axis=0)


@compiled
def _backward_head(
    d_out, q, k, v, out, log_sum_exp, spans, sequence, kv_head, group, options, bias, rounded, delta, d_q, d_k, d_v, d_bias
):
    scale, before, after, drop, seed, threshold, keep = options
    b, q_start, q_stop, k_start, k_stop = spans[sequence]
    nq, nk, dim = q_stop - q_start, k_stop - k_start, q.shape[3]
    weights = np.empty(KEY_TILE, np.float32)
    d_weights = np.empty(KEY_TILE, np.float32)
    keys_t, values_t = np.empty((dim, KEY_TILE), np.float32), np.empty((dim, KEY_TILE), np.float32)
    key_tile = np.empty((KEY_TILE, dim), np.float32)
    d_keys, d_values = np.empty((KEY_TILE, dim), np.float32), np.empty((KEY_TILE, dim), np.float32)
    d_queries = np.zeros((group, nq, dim), np.float32)
    for member in range(group):
        head = kv_head * group + member
        for i in range(q_start, q_stop):
            delta[b, head, i] = _dot(d_out[b, head, i], out[b, head, i])
    for key in range(0, nk, KEY_TILE):
        keys = min(KEY_TILE, nk - key)
        _load_transposed(k, b, kv_head, k_start + key, keys, keys_t)
        _load_transposed(v, b, kv_head, k_start + key, keys, values_t)
        _load(k, b, kv_head, k_start + key, keys, key_tile)
        d_keys[:] = 0
        d_values[:] = 0
        for member in range(group):
            head = kv_head * group + member
            for i in range(nq):
                position = nk - nq + i
                end = min(keys, position + after + 1 - key) if after >= 0 else keys
                start = position - before - key if before >= 0 else 0
                if end <= 0 or start >= keys:
                    continue
                query, d_row = q[b, head, q_start + i], d_out[b, head, q_start + i]
                lse = log_sum_exp[b, head, q_start + i]
                # weights = exp(scale q k^T + bias - log_sum_exp); d_weights = d_out v^T
                _blend_row(query, keys_t, weights, True)
                _blend_row(d_row, values_t, d_weights, True)
                _scale(weights, scale)
                _add_bias(weights, bias, head, key - position, start, end)
                _mask(weights, start, end)
                _exponentials(weights, ZERO if lse == MINUS_INFINITY else lse)
                # d_scores = weights * (kept * d_weights - delta)
                if drop:
                    _drop_row(d_weights, seed, key, i, head, sequence, threshold, keep)
                _d_scores(d_weights, weights, delta[b, head, q_start + i])
                if drop:
                    _drop_row(weights, seed, key, i, head, sequence, threshold, keep)
                if rounded:
                    _round_row(weights)
                    _round_row(d_weights)
                _add_to_d_bias(d_weights, d_bias, head, key - position, start, end)
                _scale(d_weights, scale)
                # d_values += weights^T d_out; d_keys += d_scores^T q; d_queries += d_scores k
                for j in range(max(0, start), end):
                    _add_scaled(d_values[j], d_row, weights[j])
                    _add_scaled(d_keys[j], query, d_weights[j])
                _blend_row(d_weights[:keys], key_tile, d_queries[member, i], False)
        for i in range(keys):
            for j in range(dim):
                d_k[b, kv_head, k_start + key + i, j] = d_keys[i, j]
                d_v[b, kv_head, k_start + key + i, j] = d_values[i, j]
    for member in range(group):
        for i in range(nq):
            for j in range(dim):
                d_q[b, kv_head * group + member, q_start + i, j] = d_queries[member, i, j]


# ---- in bfloat16: Numba has no bfloat16 product, so what products read is rounded and multiplied in float32 ----


def attention_forward_bfloat16(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp):
    q, k, v = round_bfloat16(q * np.float32(scale)), round_bfloat16(k), round_bfloat16(v)
    attention_forward(q, k, v, spans, 1.0, before, after, bias, dropout, seed, out, log_sum_exp, True)


def attention_backward_bfloat16(
    d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias
):
    q, k, v = round_bfloat16(q * np.float32(scale)), round_bfloat16(k), round_bfloat16(v)
    attention_backward(
        round_bfloat16(d_out), q, k, v, out, log_sum_exp, spans, 1.0, before, after, bias, dropout, seed, delta, d_q, d_k,
        d_v, d_bias, True,
    )  # fmt: skip
    d_q *= np.float32(scale)


# ---- rows ----


@compiled
def _load(x, b, head, start, count, tile):
    """tile [count, dim] = rows of x from start."""
    for i in range(count):
        for j in range(tile.shape[1]):
            tile[i, j] = x[b, head, start + i, j]


@compiled
def _load_transposed(x, b, head, start, count, tile):
    """tile [dim, KEY_TILE] = the same rows transposed, zeros past count."""
    tile[:] = 0
    for i in range(count):
        for j in range(tile.shape[0]):
            tile[j, i] = x[b, head, start + i, j]


@compiled
def _blend_row(factors, rows, out, overwrite):
    """out [n] = (out +) the sum of factors[i] * rows[i, :n]; four rows at a time, so that out is touched less."""
    n, count = len(out), len(factors)
    if overwrite:
        out[:] = 0
    whole = count // 4 * 4
    for i in range(0, whole, 4):
        a, b, c, d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        w, x, y, z = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(n):
            out[j] += a * w[j] + b * x[j] + c * y[j] + d * z[j]
    for i in range(whole, count):
        _add_scaled(out, rows[i], factors[i])


@compiled
def _add_scaled(out, row, factor):
    for j in range(len(out)):
        out[j] += factor * row[j]


@compiled
def _dot(a, b):
    total = ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@compiled
def _scale(row, scale):
    for j in range(KEY_TILE):
        row[j] *= scale


@compiled
def _add_bias(row, bias, head, distance, start, end):
    """row[j] += the bias of distance + j, for the keys start..end-1; nothing where there is no bias."""
    if len(bias):
        center = bias.shape[1] // 2 + distance
        for j in range(max(0, start), end):
            row[j] += bias[head, center + j]


@compiled
def _add_to_d_bias(row, d_bias, head, distance, start, end):
    if len(d_bias):
        center = d_bias.shape[1] // 2 + distance
        for j in range(max(0, start), end):
            d_bias[head, center + j] += row[j]


@compiled
def _mask(row, start, end):
    """-inf outside start..end-1; returns the row's largest."""
    for j in range(0, min(KEY_TILE, start)):
        row[j] = MINUS_INFINITY
    for j in range(max(0, end), KEY_TILE):
        row[j] = MINUS_INFINITY
    largest = MINUS_INFINITY
    for j in range(KEY_TILE):
        largest = max(largest, row[j])
    return largest


@compiled
def _exponentials(row, shift):
    """row = exp(row - shift); returns its sum."""
    total = ZERO
    for j in range(KEY_TILE):
        row[j] = exp_float32(row[j] - shift)
    for j in range(KEY_TILE):
        total += row[j]
    return total


@compiled
def _round_row(row):
    """To the nearest bfloat16, ties to even, as round_bfloat16 does; no weight is NaN unless all its row is."""
    bits = row.view(np.uint32)
    for j in range(len(row)):
        if row[j] == row[j]:
            bits[j] = (bits[j] + np.uint32(0x7FFF) + ((bits[j] >> np.uint32(16)) & np.uint32(1))) & np.uint32(
                0xFFFF0000
            )


@compiled
def _d_scores(d_weights, weights, delta):
    for j in range(KEY_TILE):
        d_weights[j] = weights[j] * (d_weights[j] - delta)


@compiled
def _drop_row(row, seed, key, query, head, sequence, threshold, keep):
    """row * 0 where a weight is dropped, row / (1 - rate) where it is kept."""
    for block in range(KEY_TILE // 4):
        words = philox_block(seed, np.uint64(key // 4 + block), np.uint64(query), np.uint64(head), np.uint64(sequence))
        for word in range(4):
            row[4 * block + word] *= keep if words[word] >= threshold else ZERO
