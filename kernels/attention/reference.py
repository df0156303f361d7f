"""Attention in NumPy, float32 or float64: the truth that jit.py and native.pyx are held to.

All heads of a span at once, QUERY_BLOCK queries at a time, so that the weights in memory stay few. Knows nothing of
models. Sources: Vaswani et al. 2017 (arXiv 1706.03762); backward from log-sum-exp, Dao et al. 2022 (arXiv 2205.14135).
"""

import numpy as np

from fastmixer.kernels.philox import attention_words, keep_scale, keep_threshold

QUERY_BLOCK = 128


def attention_forward(q, k, v, spans, scale, causal, window, dropout, seed, out, log_sum_exp):
    """out [batch, heads, queries, head_dim] = softmax(scale q k^T) v, log_sum_exp [batch, heads, queries] of the scores.

    q: [batch, heads, queries, head_dim], k, v: [batch, kv_heads, keys, head_dim], strided; head h reads kv head
    h // (heads / kv_heads). spans: int64 [sequences, 5], each (batch index, query start, stop, key start, stop): its
    queries see its keys only. With nk keys for nq queries, query i stands at key position nk - nq + i; causal: it sees
    keys up to there; window w > 0: only the last w up to there. A query that sees no key gets zeros and -inf.
    dropout: weights (sequence, head, query, key) are dropped by Philox with this seed.
    """
    for sequence, (b, q_start, q_stop, k_start, k_stop) in enumerate(spans):
        keys, values = k[b, :, k_start:k_stop], v[b, :, k_start:k_stop]
        for start, stop in _query_blocks(q_start, q_stop):
            queries = _grouped(q[b, :, start:stop], k.shape[1])
            scores = _scores(queries, keys, scale, causal, window, start - q_start, q_stop - q_start)
            # softmax: the row's maximum is subtracted, so that no exponential overflows
            largest = scores.max(axis=-1, initial=-np.inf, keepdims=True)
            largest[largest == -np.inf] = 0
            weights = np.exp(scores - largest)
            total = weights.sum(axis=-1, keepdims=True)
            with np.errstate(divide="ignore"):
                log_sum_exp[b, :, start:stop] = (np.log(total) + largest).reshape(q.shape[1], stop - start)
            weights /= np.where(total == 0, 1, total)
            if dropout > 0:
                weights *= _kept(weights, sequence, start - q_start, dropout, seed)
            out[b, :, start:stop] = (weights @ values[:, None]).reshape(q.shape[1], stop - start, -1)


def attention_backward(
    d_out, q, k, v, out, log_sum_exp, spans, scale, causal, window, dropout, seed, delta, d_q, d_k, d_v
):
    """d_q, d_k, d_v (overwritten, shapes of q, k, v) from d_out; weights are computed again from log_sum_exp.

    delta [batch, heads, queries] is scratch: the sum of d_out * out over head_dim.
    """
    d_q[...], d_k[...], d_v[...] = 0, 0, 0
    for sequence, (b, q_start, q_stop, k_start, k_stop) in enumerate(spans):
        keys, values = k[b, :, k_start:k_stop], v[b, :, k_start:k_stop]
        for start, stop in _query_blocks(q_start, q_stop):
            queries = _grouped(q[b, :, start:stop], k.shape[1])
            d_outs = _grouped(d_out[b, :, start:stop], k.shape[1])
            delta[b, :, start:stop] = np.einsum("hqd,hqd->hq", d_out[b, :, start:stop], out[b, :, start:stop])
            deltas = _grouped(delta[b, :, start:stop], k.shape[1])[..., None]
            # weights = exp(scores - log_sum_exp)
            scores = _scores(queries, keys, scale, causal, window, start - q_start, q_stop - q_start)
            lse = _grouped(log_sum_exp[b, :, start:stop], k.shape[1])[..., None]
            weights = np.exp(scores - np.where(lse == -np.inf, 0, lse))
            # through the values and the dropped weights
            d_weights = d_outs @ values[:, None].swapaxes(-1, -2)
            kept = _kept(weights, sequence, start - q_start, dropout, seed) if dropout > 0 else 1
            d_v[b, :, k_start:k_stop] += ((weights * kept).swapaxes(-1, -2) @ d_outs).sum(axis=1)
            # through softmax and scores
            d_scores = weights * (d_weights * kept - deltas) * scale
            d_q[b, :, start:stop] = (d_scores @ keys[:, None]).reshape(q.shape[1], stop - start, -1)
            d_k[b, :, k_start:k_stop] += (d_scores.swapaxes(-1, -2) @ queries).sum(axis=1)


def _query_blocks(start, stop):
    for block in range(start, stop, QUERY_BLOCK):
        yield block, min(block + QUERY_BLOCK, stop)


def _grouped(x, kv_heads):
    """[heads, ...] as [kv_heads, heads / kv_heads, ...]."""
    return x.reshape(kv_heads, x.shape[0] // kv_heads, *x.shape[1:])


def _scores(queries, keys, scale, causal, window, first_query, num_queries):
    """scale q k^T [kv_heads, group, block, keys], -inf where the query does not see the key."""
    scores = queries @ keys[:, None].swapaxes(-1, -2)
    scores *= scale
    if causal or window:
        num_keys = keys.shape[1]
        position = np.arange(first_query, first_query + queries.shape[2])[:, None] + num_keys - num_queries
        key = np.arange(num_keys)[None, :]
        hidden = key > position
        if window:
            hidden |= key <= position - window
        scores[..., hidden] = -np.inf
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
