"""Attention in NumPy, float32 or float64: the truth that jit.py and native.pyx are held to.

All heads of a span at once, QUERY_BLOCK queries at a time, so that the weights in memory stay few. Knows nothing of
models. Sources: Vaswani et al. 2017 (arXiv 1706.03762); backward from log-sum-exp, Dao et al. 2022 (arXiv 2205.14135).
"""

import numpy as np

from fastmixer.kernels.bfloat16 import round_bfloat16
from fastmixer.kernels.philox import attention_words, keep_scale, keep_threshold

QUERY_BLOCK = 128


def _as_it_is(x):
    return x


def attention_forward(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp, rounded=_as_it_is):
    """out [batch, heads, queries, head_dim] = softmax(scale q k^T + bias) v, log_sum_exp [batch, heads, queries] of scores.

    q: [batch, heads, queries, head_dim], k, v: [batch, kv_heads, keys, head_dim], strided; head h reads kv head
    h // (heads / kv_heads). spans: int64 [sequences, 5], each (batch index, query start, stop, key start, stop): its
    queries see its keys only. With nk keys for nq queries, query i stands at key position nk - nq + i and sees keys from
    `before` before it to `after` after it (-1: all of that side). A query that sees no key gets zeros and -inf.
    bias: [heads, 2 reach + 1], added to the score of a key by its distance from the query, -reach..reach, which no distance
    exceeds; or [0, 0].
    dropout: weights (sequence, head, query, key) are dropped by Philox with this seed. rounded: what products read.
    """
    for sequence, (b, q_start, q_stop, k_start, k_stop) in enumerate(spans):
        keys, values = rounded(k[b, :, k_start:k_stop]), rounded(v[b, :, k_start:k_stop])
        for start, stop in _query_blocks(q_start, q_stop):
            queries = rounded(_scaled(_grouped(q[b, :, start:stop], k.shape[1]), scale))
            scores = _scores(queries, keys, before, after, bias, start - q_start, q_stop - q_start)
            # softmax: the row's maximum is subtracted, so that no exponential overflows
            largest = scores.max(axis=-1, initial=-np.inf, keepdims=True)
            largest[largest == -np.inf] = 0
            weights = np.exp(scores - largest)
            total = weights.sum(axis=-1, keepdims=True)
            with np.errstate(divide="ignore"):
                log_sum_exp[b, :, start:stop] = (np.log(total) + largest).reshape(q.shape[1], stop - start)
            if dropout > 0:
                weights *= _kept(weights, sequence, start - q_start, dropout, seed)
            blend = rounded(weights) @ values[:, None] / np.where(total == 0, 1, total)
            out[b, :, start:stop] = blend.reshape(q.shape[1], stop - start, -1)


def attention_backward(
    d_out,
    q,
    k,
    v,
    out,
    log_sum_exp,
    spans,
    scale,
    before,
    after,
    bias,
    dropout,
    seed,
    delta,
    d_q,
    d_k,
    d_v,
    d_bias,
    rounded=_as_it_is,
):
    """d_q, d_k, d_v, d_bias (overwritten, shapes of q, k, v, bias) from d_out; weights are computed again from log_sum_exp.

    delta [batch, heads, queries] is scratch: the sum of d_out * out over head_dim. rounded: what products read.
    """
    d_q[...], d_k[...], d_v[...], d_bias[...] = 0, 0, 0, 0
    for sequence, (b, q_start, q_stop, k_start, k_stop) in enumerate(spans):
        keys, values = rounded(k[b, :, k_start:k_stop]), rounded(v[b, :, k_start:k_stop])
        for start, stop in _query_blocks(q_start, q_stop):
            queries = rounded(_scaled(_grouped(q[b, :, start:stop], k.shape[1]), scale))
            d_outs = rounded(_grouped(d_out[b, :, start:stop], k.shape[1]))
            outs = _grouped(out[b, :, start:stop], k.shape[1])
            delta[b, :, start:stop] = np.einsum("kgqd,kgqd->kgq", d_outs, outs).reshape(q.shape[1], stop - start)
            deltas = _grouped(delta[b, :, start:stop], k.shape[1])[..., None]
            # weights = exp(scores - log_sum_exp)
            scores = _scores(queries, keys, before, after, bias, start - q_start, q_stop - q_start)
            lse = _grouped(log_sum_exp[b, :, start:stop], k.shape[1])[..., None]
            weights = np.exp(scores - np.where(lse == -np.inf, 0, lse))
            # through the values and the dropped weights
            d_weights = d_outs @ values[:, None].swapaxes(-1, -2)
            kept = _kept(weights, sequence, start - q_start, dropout, seed) if dropout > 0 else 1
            d_v[b, :, k_start:k_stop] += (rounded(weights * kept).swapaxes(-1, -2) @ d_outs).sum(axis=1)
            # through softmax and scores
            d_scores = rounded(weights * (d_weights * kept - deltas))
            d_q[b, :, start:stop] = (d_scores @ keys[:, None] * scale).reshape(q.shape[1], stop - start, -1)
            d_k[b, :, k_start:k_stop] += (d_scores.swapaxes(-1, -2) @ queries).sum(axis=1)
            if len(d_bias):
                place = _distances(start - q_start, stop - start, q_stop - q_start, k_stop - k_start) + d_bias.shape[1] // 2
                for d_row, d_score in zip(d_bias, d_scores.reshape(q.shape[1], -1), strict=True):
                    d_row += np.bincount(place.reshape(-1), d_score, len(d_row)).astype(d_row.dtype)


# ---- in bfloat16: what the products read is rounded; sums and softmax are not ----


def attention_forward_bfloat16(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp):
    attention_forward(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp, _rounded)


def attention_backward_bfloat16(
    d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias
):
    attention_backward(
        d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias,
        _rounded,
    )  # fmt: skip


def _rounded(x):
    return round_bfloat16(x.astype(np.float32)).astype(x.dtype)


# ---- parts ----


def _query_blocks(start, stop):
    for block in range(start, stop, QUERY_BLOCK):
        yield block, min(block + QUERY_BLOCK, stop)


def _grouped(x, kv_heads):
    """[heads, ...] as [kv_heads, heads / kv_heads, ...]."""
    return x.reshape(kv_heads, x.shape[0] // kv_heads, *x.shape[1:])


def _scaled(queries, scale):
    return queries * queries.dtype.type(scale)


def _distances(first_query, count, num_queries, num_keys):
    """How far each key is behind each of `count` queries, negative before it: int64 [count, keys]."""
    position = np.arange(first_query, first_query + count) + num_keys - num_queries
    return np.arange(num_keys)[None, :] - position[:, None]


def _scores(queries, keys, before, after, bias, first_query, num_queries):
    """q k^T + bias [kv_heads, group, block, keys], -inf where the query does not see the key."""
    scores = queries @ keys[:, None].swapaxes(-1, -2)
    distances = _distances(first_query, queries.shape[2], num_queries, keys.shape[1])
    if len(bias):
        scores += _grouped(bias[:, distances + bias.shape[1] // 2], len(keys))
    if before >= 0:
        scores[..., distances < -before] = -np.inf
    if after >= 0:
        scores[..., distances > after] = -np.inf
    return scores


def _kept(weights, sequence, first_query, dropout, seed):
    """0 where a weight is dropped, 1 / (1 - dropout) where it is kept; [kv_heads, group, block, keys]."""
    kv_heads, group, block, num_keys = weights.shape
    words = [
        attention_words(seed, sequence, head, first_query, first_query + block, 0, num_keys)
        for head in range(kv_heads * group)
    ]
    kept = np.stack(words) >= keep_threshold(dropout)
    return (kept * keep_scale(dropout)).astype(weights.dtype).reshape(weights.shape)
