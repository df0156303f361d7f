"""Attention: every query blends the values of the keys that it sees, weighted by how well they match.

Knows nothing of projections, caches or layers.
"""

from typing import Any, Literal, NamedTuple, overload

import numpy as np

from fastmixer.kernels.select import kernel_module, kernels
from fastmixer.ops.checks import (
    Arrays,
    check_choice,
    check_integer,
    check_number,
    from_list,
    require_all_apart,
    require_apart,
)
from fastmixer.ops.dropout import check_dropout

MAX_HEAD_DIM = 256
PRECISIONS = ("float32", "bfloat16")  # of products, in all that multiplies more than this op too


class _Checked(NamedTuple):
    """Arguments that forward and backward share, checked."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    spans: np.ndarray
    scale: float
    before: int  # how many keys before and after its own position a query sees, -1: all of them
    after: int
    bias: np.ndarray  # float32 [heads, 2 * reach + 1] where reach is the longest distance there is, or [0, 0]
    dropout: float
    seed: int


@overload
def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    causal: bool = ...,
    scale: float | None = ...,
    window: int | None = ...,
    around: int | None = ...,
    bias: np.ndarray | None = ...,
    dropout: float = ...,
    seed: int = ...,
    query_starts: np.ndarray | None = ...,
    key_starts: np.ndarray | None = ...,
    key_counts: np.ndarray | None = ...,
    precision: str = ...,
    out: np.ndarray | None = ...,
    return_saved: Literal[False] = ...,
) -> np.ndarray: ...
@overload
def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    causal: bool = ...,
    scale: float | None = ...,
    window: int | None = ...,
    around: int | None = ...,
    bias: np.ndarray | None = ...,
    dropout: float = ...,
    seed: int = ...,
    query_starts: np.ndarray | None = ...,
    key_starts: np.ndarray | None = ...,
    key_counts: np.ndarray | None = ...,
    precision: str = ...,
    out: np.ndarray | None = ...,
    return_saved: Literal[True],
) -> tuple[np.ndarray, np.ndarray]: ...
def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    around: int | None = None,
    bias: np.ndarray | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    query_starts: np.ndarray | None = None,
    key_starts: np.ndarray | None = None,
    key_counts: np.ndarray | None = None,
    precision: str = "float32",
    out: np.ndarray | None = None,
    return_saved: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """softmax(scale q k^T + bias) v, float32 [batch, heads, queries, head_dim], tile by tile: [queries, keys] never exists.

    q: float32 [batch, heads, queries, head_dim]; k, v: float32 [batch, kv_heads, keys, head_dim], where kv_heads divides
    heads and each kv head serves heads / kv_heads heads side by side. They may be strided if head_dim is contiguous.
    causal: a query sees the keys up to its own position; with more keys than queries the queries are the last ones.
    window: only the last `window` keys up to its position (implies causal). around: only keys at most so far away, before it
    or behind (neither with causal nor window). scale: 1 / sqrt(head_dim) if None.
    bias: float32 [heads, 2 * reach + 1], added to a key's score by its distance from the query, -reach..reach; what is
    further away counts as reach (relative positions; Raffel et al. 2019, arXiv 1910.10683).
    dropout: part of the weights dropped, by `seed` and place, so that attention_backward drops the same ones.
    query_starts, key_starts: int64 [sequences + 1]: many sequences packed one after another in a batch of 1, each of
    which sees itself only (key_starts = query_starts if None). key_counts: int64 [batch]: only so many of each batch
    element's keys are there (a cache that is not full). A query that sees no key gets zeros.
    precision "bfloat16": what the products multiply (q, k, v and the weights) is rounded to bfloat16 on its way; sums and
    softmax stay float32. out shares no memory with q, k, v and bias.
    With return_saved also gives log_sum_exp: float32 [batch, heads, queries], which attention_backward wants.
    Raises TypeError or ValueError. Sources: Vaswani et al. 2017 (arXiv 1706.03762); online softmax, Milakov and
    Gimelshein 2018 (arXiv 1805.02867); tiles, Dao et al. 2022 (arXiv 2205.14135).
    """
    arrays = Arrays("attention")
    check_choice("attention", "precision", precision, PRECISIONS)
    checked = _check(arrays, q, k, v, causal, scale, window, around, bias, dropout, seed, query_starts, key_starts)
    if key_counts is not None:
        _limit_keys(checked, key_counts, packed=query_starts is not None)
    axes = "batch heads queries head_dim"
    if out is None:
        out = np.empty(checked.q.shape, checked.q.dtype)
    out = arrays.check_output("out", out, axes, contiguous=False)
    require_apart("attention", "out", out, q=checked.q, k=checked.k, v=checked.v, bias=bias)
    log_sum_exp = np.empty(out.shape[:3], checked.q.dtype)
    if _leaves_gaps(checked):
        out[...], log_sum_exp[...] = 0, -np.inf
    if out.size:
        kernel = kernels("attention")
        run = kernel.attention_forward if precision == "float32" else kernel.attention_forward_bfloat16
        run(*checked, out, log_sum_exp)
    return (out, log_sum_exp) if return_saved else out


def attention_backward(
    d_out: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    log_sum_exp: np.ndarray,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    around: int | None = None,
    bias: np.ndarray | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    query_starts: np.ndarray | None = None,
    key_starts: np.ndarray | None = None,
    precision: str = "float32",
    d_q: np.ndarray | None = None,
    d_k: np.ndarray | None = None,
    d_v: np.ndarray | None = None,
    d_bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(d_q, d_k, d_v) of attention, float32 with the shapes of q, k, v, from d_out and what forward saved.

    The weights are computed again, tile by tile. Options must be those of the forward call. d_bias: float32 of bias' shape,
    to which its gradient is added. What is written shares no memory with anything else. Raises as attention.
    """
    arrays = Arrays("attention_backward", "attention")
    check_choice("attention_backward", "precision", precision, PRECISIONS)
    checked = _check(arrays, q, k, v, causal, scale, window, around, bias, dropout, seed, query_starts, key_starts)
    axes, kv_axes = "batch heads queries head_dim", "batch kv_heads keys head_dim"
    d_out = arrays.check("d_out", d_out, axes, contiguous=False)
    out = arrays.check("out", out, axes, contiguous=False)
    log_sum_exp = arrays.check("log_sum_exp", log_sum_exp, "batch heads queries")
    gradients = []
    for name, value, like, names in (
        ("d_q", d_q, checked.q, axes), ("d_k", d_k, checked.k, kv_axes), ("d_v", d_v, checked.v, kv_axes)
    ):  # fmt: skip
        value = np.empty(like.shape, like.dtype) if value is None else value
        gradients.append(arrays.check_output(name, value, names, contiguous=False))
    if d_bias is not None:
        if bias is None:
            raise ValueError("attention_backward: d_bias is the gradient of bias, which must be given; got None")
        d_bias = arrays.check_output("d_bias", d_bias, "heads distances")
    require_all_apart(
        "attention_backward", {"d_q": gradients[0], "d_k": gradients[1], "d_v": gradients[2], "d_bias": d_bias},
        {
            "d_out": d_out, "q": checked.q, "k": checked.k, "v": checked.v, "out": out, "log_sum_exp": log_sum_exp,
            "bias": bias,
        },
    )  # fmt: skip
    if checked.q.size == 0 or checked.k.size == 0 or _leaves_gaps(checked):
        for gradient in gradients:
            gradient[...] = 0
    if checked.q.size or checked.k.size:
        delta, d_distances = np.empty(log_sum_exp.shape, log_sum_exp.dtype), np.zeros_like(checked.bias)
        kernel = kernels("attention")
        run = kernel.attention_backward if precision == "float32" else kernel.attention_backward_bfloat16
        run(d_out, *checked[:3], out, log_sum_exp, *checked[3:], delta, *gradients, d_distances)
        if d_bias is not None:
            places = _bias_places(d_distances.shape[1] // 2, d_bias.shape[1])
            np.add.at(d_bias.T, places, d_distances.T)
    return gradients[0], gradients[1], gradients[2]


def attention_weights(
    q: np.ndarray, k: np.ndarray, *, causal: bool = False, scale: float | None = None, window: int | None = None
) -> np.ndarray:
    """The weights themselves, float32 [batch, heads, queries, keys], rows summing to 1: to look at, not to compute with.

    q: float32 [batch, heads, queries, head_dim]; k: float32 [batch, kv_heads, keys, head_dim]. They are got by letting
    attention blend the rows of an identity matrix, in NumPy.
    """
    arrays = Arrays("attention_weights", "attention")
    checked = _check(arrays, q, k, k, causal, scale, window, None, None, 0.0, 0, None, None)
    batch, heads, queries, _ = checked.q.shape
    keys = checked.k.shape[2]
    identity = np.broadcast_to(np.eye(keys, dtype=checked.q.dtype), (batch, checked.k.shape[1], keys, keys))
    weights = np.empty((batch, heads, queries, keys), checked.q.dtype)
    log_sum_exp = np.empty((batch, heads, queries), checked.q.dtype)
    kernel_module("attention", "reference").attention_forward(*checked._replace(v=identity), weights, log_sum_exp)
    return weights


def _check(
    arrays: Arrays, q: Any, k: Any, v: Any, causal: bool, scale: Any, window: Any, around: Any, bias: Any, dropout: Any,
    seed: Any, query_starts: Any, key_starts: Any,
) -> _Checked:  # fmt: skip
    op = arrays.op
    q = arrays.check("q", q, "batch heads queries head_dim", contiguous=False)
    k = arrays.check("k", k, "batch kv_heads keys head_dim", contiguous=False)
    v = arrays.check("v", v, "batch kv_heads keys head_dim", contiguous=False)
    heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{op}: kv_heads must divide heads; got {kv_heads} kv_heads for {heads} heads")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"{op}: head_dim must be 1..{MAX_HEAD_DIM}; got {head_dim}")
    if scale is None:
        scale = head_dim**-0.5
    check_number(op, "scale", scale)
    dropout, seed = check_dropout(op, dropout, seed)
    before, after = -1, 0 if causal else -1
    # those as wide as all there is hide no more than wider ones, and fit the kernels' integers
    widest = q.shape[2] + k.shape[2]
    if window is not None:
        before, after = min(check_integer(op, "window", window, at_least=1) - 1, widest), 0
    if around is not None:
        if after == 0:
            raise ValueError(f"{op}: around must be None with causal or window, which hide what is behind; got {around!r}")
        before = after = min(check_integer(op, "around", around, at_least=0), widest)
    spans = _spans(op, q.shape, k.shape, query_starts, key_starts)
    by_distance = _check_bias(arrays, bias, spans, q.dtype)
    return _Checked(q, k, v, spans, float(scale), before, after, by_distance, dropout, seed)


def _check_bias(arrays: Arrays, bias: Any, spans: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """[heads, 2 * reach + 1] for every distance that occurs among the spans; [0, 0] without a bias."""
    if bias is None:
        return np.empty((0, 0), dtype)
    bias = arrays.check("bias", bias, "heads distances")
    if bias.shape[1] % 2 == 0:
        raise ValueError(f"{arrays.op}: bias must have an odd number of distances, -reach..reach; got {bias.shape[1]}")
    lengths = spans[:, [2, 4]] - spans[:, [1, 3]]  # of queries and of keys
    return np.ascontiguousarray(bias[:, _bias_places(max(lengths.max(initial=1) - 1, 0), bias.shape[1])])


def _bias_places(longest: int, distances: int) -> np.ndarray:
    """int64 [2 * longest + 1]: which of the distances, -reach..reach, each of -longest..longest counts as."""
    reach = distances // 2
    return np.clip(np.arange(-longest, longest + 1), -reach, reach) + reach


def _spans(op: str, q_shape: tuple, k_shape: tuple, query_starts: Any, key_starts: Any) -> np.ndarray:
    """int64 [sequences, 5]: (batch index, query start, query stop, key start, key stop) of each sequence."""
    batch, _, queries, _ = q_shape
    keys = k_shape[2]
    if query_starts is None:
        if key_starts is not None:
            raise ValueError(f"{op}: key_starts needs query_starts; got None")
        whole = np.zeros((batch, 5), np.int64)
        whole[:, 0], whole[:, 2], whole[:, 4] = np.arange(batch), queries, keys
        return whole
    if batch != 1:
        raise ValueError(f"{op}: packed sequences (query_starts) need a batch of 1; got {batch}")
    if key_starts is None:
        key_starts = query_starts
    query_starts = _check_starts(op, "query_starts", query_starts, queries)
    key_starts = _check_starts(op, "key_starts", key_starts, keys)
    if len(query_starts) != len(key_starts):
        raise ValueError(
            f"{op}: query_starts and key_starts must have one length; got {len(query_starts)} and {len(key_starts)}"
        )
    columns = [np.zeros(len(query_starts) - 1), query_starts[:-1], query_starts[1:], key_starts[:-1], key_starts[1:]]
    return np.stack(columns, axis=1).astype(np.int64)


def _limit_keys(checked: _Checked, key_counts: Any, packed: bool) -> None:
    """Each batch element's span ends after its own number of keys."""
    counts = np.asarray(from_list("attention", "key_counts", key_counts))
    batch, keys = checked.q.shape[0], checked.k.shape[2]
    if packed:
        raise ValueError("attention: key_counts is for batches, key_starts for packed sequences; got both")
    if counts.dtype.kind not in "iu" or counts.shape != (batch,):
        raise TypeError(
            f"attention: key_counts must be integer [batch={batch}]; got {counts.dtype.name} {counts.shape}"
        )
    if ((counts < 0) | (counts > keys)).any():
        raise ValueError(f"attention: key_counts must be 0..{keys}; got {counts.tolist()}")
    checked.spans[:, 4] = counts


def _check_starts(op: str, name: str, starts: Any, total: int) -> np.ndarray:
    starts = np.asarray(from_list(op, name, starts))
    if starts.dtype.kind not in "iu" or starts.ndim != 1 or len(starts) == 0:
        raise TypeError(f"{op}: {name} must be integer [sequences + 1]; got {starts.dtype.name} {starts.shape}")
    starts = starts.astype(np.int64)  # first: differences of small or unsigned integers wrap around
    if starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise ValueError(f"{op}: {name} must rise from 0 to {total}; got {starts.tolist()}")
    return starts


def _leaves_gaps(checked: _Checked) -> bool:
    """True if some query has no key at all to look at, so that no kernel task may ever write its row."""
    return bool((checked.spans[:, 4] == checked.spans[:, 3]).any())
