"""Attention: every implementation against the float64 reference, over masks, packed sequences, dropout and layouts."""

from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import BFLOAT16_BLEND, BFLOAT16_GRADIENT, FEW_ULP, assert_close_to_float64

from fastmixer.kernels import threads
from fastmixer.kernels.attention import reference
from fastmixer.kernels.bfloat16 import round_bfloat16
from fastmixer.kernels.philox import attention_words, keep_scale, keep_threshold
from fastmixer.kernels.select import kernel_module

ULP = float(np.finfo(np.float32).eps)
HEAD_DIMS = [1, 5, 16, 33, 64, 80]
LENGTHS = [1, 7, 65, 130]  # within a tile of 64 and past one and two of them
GUARD = 3  # columns of a fused array that belong to nobody


class Case(NamedTuple):
    """Sizes and options of one call, as the face has them; starts are those of packed sequences."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    queries: int = 7
    keys: int = 7
    head_dim: int = 16
    causal: bool = False
    window: int = 0
    around: int | None = None
    biased: bool = False
    dropout: float = 0.0
    seed: int = 0
    query_starts: tuple[int, ...] | None = None
    key_starts: tuple[int, ...] | None = None
    magnitude: float = 1.0  # of the logits, about


# Sequences (queries, keys): (0, 3) (5, 0) (0, 0) (65, 65) (0, 4) (60, 130) (40, 8); so some queries see nothing.
PACKED = Case(
    heads=4, kv_heads=2, queries=170, keys=210, head_dim=20,
    query_starts=(0, 0, 5, 5, 70, 70, 130, 170), key_starts=(0, 3, 3, 3, 68, 72, 202, 210),
)  # fmt: skip


def inputs(case, dtype=np.float32):
    """q, d_out: [batch, heads, queries, head_dim]; k, v: [batch, kv_heads, keys, head_dim]; the same ones each time."""
    rng = np.random.default_rng(case.queries * 1000 + case.keys * 10 + case.head_dim)
    q_shape = (case.batch, case.heads, case.queries, case.head_dim)
    k_shape = (case.batch, case.kv_heads, case.keys, case.head_dim)
    q, k, v, d_out = (rng.standard_normal(shape, np.float32) for shape in (q_shape, k_shape, k_shape, q_shape))
    root = np.float32(case.magnitude**0.5)
    return [array.astype(dtype) for array in (q * root, k * root, v, d_out)]


def spans_of(case):
    """int64 [sequences, 5]: batch index, query start, query stop, key start, key stop."""
    if case.query_starts is None:
        rows = [(b, 0, case.queries, 0, case.keys) for b in range(case.batch)]
    else:
        q_starts, k_starts = case.query_starts, case.key_starts
        rows = [(0, *row) for row in zip(q_starts, q_starts[1:], k_starts, k_starts[1:], strict=False)]
    return np.array(rows, np.int64).reshape(-1, 5)


def sight_of(case):
    """(before, after): how many keys to either side a query sees, -1: all."""
    if case.around is not None:
        return case.around, case.around
    return (case.window - 1 if case.window else -1), (0 if case.causal or case.window else -1)


def bias_of(case, dtype):
    """[heads, 2 * reach + 1] of every distance there is, or [0, 0]."""
    if not case.biased:
        return np.empty((0, 0), dtype)
    longest = max(1, case.queries, case.keys)
    return np.random.default_rng(4).standard_normal((case.heads, 2 * longest - 1), np.float32).astype(dtype)


def options_of(case, dtype):
    """What stands between v and the results."""
    return spans_of(case), case.head_dim**-0.5, *sight_of(case), bias_of(case, dtype), case.dropout, case.seed


def poisoned(like):
    return np.full(like.shape, np.nan, like.dtype)


def run(kernel, case, q, k, v, d_out):
    """Everything that forward and backward give, by name, in new arrays full of NaN."""
    results = [poisoned(q), np.full(q.shape[:3], np.nan, q.dtype), poisoned(q), poisoned(k), poisoned(v)]
    return run_into(kernel, case, q, k, v, d_out, *results)


def run_into(kernel, case, q, k, v, d_out, out, log_sum_exp, d_q, d_k, d_v):
    options, d_bias = options_of(case, q.dtype), poisoned(bias_of(case, q.dtype))
    delta = np.full(log_sum_exp.shape, np.nan, q.dtype)
    kernel.attention_forward(q, k, v, *options, out, log_sum_exp)
    if not (q.size and k.size):
        d_q[...], d_k[...], d_v[...], d_bias[...] = 0, 0, 0, 0  # as the op does where no query meets any key
    kernel.attention_backward(d_out, q, k, v, out, log_sum_exp, *options, delta, d_q, d_k, d_v, d_bias)
    return {"out": out, "log_sum_exp": log_sum_exp, "d_q": d_q, "d_k": d_k, "d_v": d_v, "d_bias": d_bias}


@cache
def expected(case):
    """The reference's results in float32 and in float64."""
    return run(reference, case, *inputs(case)), run(reference, case, *inputs(case, np.float64))


def cancelling_terms(case, truth):
    """Where a query sees one key only, d_q, d_k and d_bias are differences of two equal terms: the magnitude of those."""
    if case.keys != 1 and case.window != 1 and case.around != 0:
        return {}
    q, k, _, d_out = inputs(case, np.float64)
    delta = np.abs((d_out * truth["out"]).sum(axis=-1)).max(initial=0)
    scaled = delta * case.head_dim**-0.5
    return {"d_q": scaled * np.abs(k).max(initial=0), "d_k": scaled * np.abs(q).max(initial=0), "d_bias": delta}


def assert_equals_reference(found, case):
    plain, truth = expected(case)
    terms = cancelling_terms(case, truth)
    for name in truth:
        assert_close_to_float64(
            found[name], plain[name], truth[name],
            gradient=name.startswith("d_"), terms=terms.get(name, 0.0), name=f"{name} of {case}",
        )  # fmt: skip


def check(kernel, case):
    found = run(kernel, case, *inputs(case))
    assert_equals_reference(found, case)
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_equals_the_reference(kernel, head_dim, causal):
    for queries in LENGTHS:
        for keys in LENGTHS:
            check(kernel, Case(queries=queries, keys=keys, head_dim=head_dim, causal=causal))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads(kernel, kv_heads, causal):
    check(kernel, Case(batch=2, heads=4, kv_heads=kv_heads, queries=70, keys=70, causal=causal))
    check(kernel, Case(batch=2, heads=4, kv_heads=kv_heads, queries=9, keys=67, head_dim=5, causal=causal))


@pytest.mark.parametrize("window", [1, 3, 64, 1000])
def test_windows(kernel, window):
    for queries, keys in [(7, 7), (130, 130), (65, 200), (130, 65), (1, 65)]:
        check(kernel, Case(queries=queries, keys=keys, window=window, causal=True))


@pytest.mark.parametrize("around", [0, 1, 3, 63, 64, 1000])
def test_sight_to_either_side(kernel, around):
    for queries, keys in [(7, 7), (130, 130), (65, 200), (130, 65), (1, 65)]:
        check(kernel, Case(queries=queries, keys=keys, around=around))


def test_sight_to_either_side_past_the_ends_hides_nothing(kernel):
    whole = Case(queries=70, keys=70)
    found, wide = (run(kernel, case, *inputs(case)) for case in (whole, whole._replace(around=69)))
    for name in found:
        assert np.array_equal(found[name], wide[name]), name


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": 3}, {"around": 3}, {"around": 64, "dropout": 0.2}, {"head_dim": 5, "kv_heads": 4}],
    ids=str,
)
def test_biases_by_distance(kernel, options):
    for queries, keys in [(1, 1), (7, 7), (130, 130), (65, 200), (130, 65)]:
        check(kernel, Case(**{"heads": 4, "kv_heads": 2, "queries": queries, "keys": keys, "biased": True, **options}))


def test_no_bias_is_a_bias_of_zero(kernel):
    case = Case(heads=4, kv_heads=2, queries=70, keys=90, causal=True)
    q, k, v, _ = inputs(case)
    spans, scale, before, after, none, *rest = options_of(case, np.float32)
    found = []
    for bias in (none, np.zeros((4, 179), np.float32)):
        out, log_sum_exp = poisoned(q), np.full(q.shape[:3], np.nan, np.float32)
        kernel.attention_forward(q, k, v, spans, scale, before, after, bias, *rest, out, log_sum_exp)
        found.append((out, log_sum_exp))
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_a_window_past_the_start_hides_nothing(kernel):
    causal = Case(queries=70, keys=70, causal=True)
    found, wide = (run(kernel, case, *inputs(case)) for case in (causal, causal._replace(window=71)))
    for name in found:
        assert np.array_equal(found[name], wide[name]), name


def test_a_window_of_one_gives_the_query_its_own_value(kernel):
    case = Case(heads=2, kv_heads=2, queries=70, keys=90, window=1, causal=True)
    q, k, v, d_out = inputs(case)
    found = run(kernel, case, q, k, v, d_out)
    assert np.abs(found["out"] - v[:, :, 20:]).max() <= FEW_ULP * ULP * np.abs(v).max()
    assert np.abs(found["d_v"][:, :, 20:] - d_out).max() <= FEW_ULP * ULP * np.abs(d_out).max()
    assert not found["d_v"][:, :, :20].any() and not found["d_k"][:, :, :20].any()


def test_fewer_queries_than_keys_stand_at_the_end(kernel):
    case = Case(queries=130, keys=130, causal=True)
    q, k, v, d_out = inputs(case)
    last = run(kernel, case._replace(queries=7), q[:, :, -7:].copy(), k, v, d_out[:, :, -7:].copy())
    plain, truth = expected(case)
    for name in ("out", "log_sum_exp", "d_q"):
        gradient = name == "d_q"
        wanted = plain[name][:, :, -7:], truth[name][:, :, -7:]
        assert_close_to_float64(last[name], *wanted, gradient=gradient, name=name)


def test_queries_that_see_no_key(kernel):
    case = Case(batch=2, heads=4, kv_heads=2, queries=130, keys=33, causal=True)
    found = check(kernel, case)
    blind = slice(0, 130 - 33)
    assert not found["out"][:, :, blind].any() and not found["d_q"][:, :, blind].any()
    assert (found["log_sum_exp"][:, :, blind] == -np.inf).all()
    assert np.isfinite(found["log_sum_exp"][:, :, 130 - 33 :]).all()
    assert all(np.isfinite(found[name]).all() for name in ("out", "d_q", "d_k", "d_v"))


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"keys": 0}, {"queries": 0}, {"keys": 0, "queries": 0}])
def test_nothing_to_do(kernel, sizes):
    case = Case(**sizes)
    found = check(kernel, case)
    assert not any(found[name].any() for name in ("out", "d_q", "d_k", "d_v", "d_bias"))
    assert (found["log_sum_exp"] == -np.inf).all()


# ---- packed sequences ----


@pytest.mark.parametrize(
    "options",
    [
        {}, {"causal": True}, {"causal": True, "window": 3}, {"dropout": 0.3}, {"around": 2}, {"biased": True},
        {"biased": True, "around": 30, "dropout": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_packed_sequences(kernel, options):
    check(kernel, PACKED._replace(**options))


def test_packed_sequences_do_not_see_each_other(kernel):
    packed = PACKED._replace(causal=True)
    arrays = inputs(packed)
    found = run(kernel, packed, *arrays)
    for _, q_start, q_stop, k_start, k_stop in spans_of(packed):
        rows, columns = slice(q_start, q_stop), slice(k_start, k_stop)
        alone = Case(1, 4, 2, q_stop - q_start, k_stop - k_start, 20, causal=True)
        cuts = (rows, columns, columns, rows)
        own = run(kernel, alone, *(array[:, :, cut].copy() for array, cut in zip(arrays, cuts, strict=True)))
        for name, cut in zip(("out", "log_sum_exp", "d_q", "d_k", "d_v"), (rows, rows, rows, columns, columns), strict=True):
            whole = found[name][:, :, cut]
            same = np.isclose(whole, own[name], rtol=0, atol=FEW_ULP * ULP * np.abs(arrays[0]).max())
            assert same.all(), f"{name} of queries {q_start}..{q_stop}"


def test_keys_past_the_end_of_a_span_are_not_read(kernel):
    case = Case(batch=2, queries=3, keys=130, causal=True)
    q, k, v, _ = inputs(case)
    counts = [70, 3]
    out, log_sum_exp = poisoned(q), np.full(q.shape[:3], np.nan, np.float32)
    spans = np.array([(b, 0, 3, 0, count) for b, count in enumerate(counts)], np.int64)
    hidden_k, hidden_v = k.copy(), v.copy()
    for b, count in enumerate(counts):
        hidden_k[b, :, count:], hidden_v[b, :, count:] = np.nan, np.nan
    kernel.attention_forward(q, hidden_k, hidden_v, spans, 0.25, -1, 0, bias_of(case, np.float32), 0.0, 0, out, log_sum_exp)
    for b, count in enumerate(counts):
        short = Case(queries=3, keys=count, causal=True)
        arrays = [q[b : b + 1], k[b : b + 1, :, :count].copy(), v[b : b + 1, :, :count].copy(), q[b : b + 1]]
        plain = run(reference, short, *arrays)
        truth = run(reference, short, *(array.astype(np.float64) for array in arrays))
        assert_close_to_float64(out[b : b + 1], plain["out"], truth["out"])
        assert_close_to_float64(log_sum_exp[b : b + 1], plain["log_sum_exp"], truth["log_sum_exp"])


# ---- large logits ----


@pytest.mark.parametrize("causal", [False, True])
def test_logits_of_ten_thousand(kernel, causal):
    found = check(kernel, Case(heads=4, kv_heads=2, queries=65, keys=130, causal=causal, magnitude=1e4))
    assert all(np.isfinite(array).all() for array in found.values())
    assert np.abs(found["log_sum_exp"]).max() > 1e4


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_equal_large_logits_give_the_mean(kernel, logit):
    case = Case(heads=1, queries=5, keys=70, head_dim=16)
    q, k, v, d_out = inputs(case)
    q[...], k[...] = 50.0, logit / 200  # 16 products of 50 * logit / 200, times 1 / 4
    found = run(kernel, case, q, k, v, d_out)
    assert np.allclose(found["out"], v.mean(axis=2, keepdims=True), atol=FEW_ULP * ULP)
    assert np.allclose(found["log_sum_exp"], logit + np.log(70), rtol=ULP)
    assert all(np.isfinite(array).all() for array in found.values())


# ---- dropout ----


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_dropout_equals_the_reference(kernel, causal, seed):
    case = Case(2, 4, 2, queries=70, keys=131, head_dim=9, causal=causal, dropout=0.2, seed=seed)
    check(kernel, case)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_the_same_weights_everywhere(kernel, rate):
    # with zero queries all weights are 1 / size; values, then d_out, of the identity show each weight by itself
    size, heads, seed = 130, 3, 2**40 + 3
    case = Case(2, heads, heads, size, size, size, dropout=rate, seed=seed)
    q, k, _, _ = inputs(case)
    identity = np.ascontiguousarray(np.broadcast_to(np.eye(size, dtype=np.float32), q.shape))
    found = run(kernel, case, np.zeros_like(q), k, identity, identity)
    words = [[attention_words(seed, b, head, 0, size, 0, size) for head in range(heads)] for b in range(2)]
    kept = np.array(words) >= keep_threshold(rate)
    weights = kept * (keep_scale(rate) / size)
    assert np.array_equal(found["out"] != 0, kept)
    assert np.array_equal(found["d_v"].swapaxes(2, 3) != 0, kept)
    assert np.allclose(found["out"], weights, rtol=1e-6, atol=0)
    assert np.allclose(found["d_v"].swapaxes(2, 3), weights, rtol=1e-6, atol=0)
    deviation = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs((~kept).mean() - rate) < 4 * deviation
    assert np.abs((~kept).mean(axis=(0, 1, 2)) - rate).max() < 5 * deviation * size**0.5  # of each key


def test_seeds_drop_different_weights(kernel):
    case = Case(queries=65, keys=65, dropout=0.5)
    first, same, other = (
        run(kernel, case._replace(seed=seed), *inputs(case)) for seed in (2**33, 2**33, 2**33 + 2**32)
    )
    assert np.array_equal(first["out"], same["out"]) and np.array_equal(first["d_q"], same["d_q"])
    assert not np.allclose(first["out"], other["out"])


# ---- how arrays lie in memory ----


def fused(case, arrays):
    """q, k, v as views of one array [batch, time, (heads + 2 kv_heads) * head_dim + GUARD], the guard NaN; and it."""
    q, k, v = arrays
    heads = [q.shape[1], k.shape[1], v.shape[1]]
    whole = np.full((case.batch, case.queries, sum(heads) * case.head_dim + GUARD), np.nan, np.float32)
    views, start = [], 0
    for array, count in zip(arrays, heads, strict=True):
        columns = whole[:, :, start : start + count * case.head_dim]
        view = columns.reshape(case.batch, case.queries, count, case.head_dim).transpose(0, 2, 1, 3)
        assert np.shares_memory(view, whole)
        view[...] = array
        views.append(view)
        start += count * case.head_dim
    return *views, whole


@pytest.mark.parametrize("head_dim", [5, 32, 33])
def test_strided_views_of_fused_arrays(kernel, head_dim):
    case = Case(2, 4, 2, queries=67, keys=67, head_dim=head_dim, causal=True)
    q, k, v, d_out = inputs(case)
    *views, _ = fused(case, (q, k, v))
    *gradients, d_whole = fused(case, (poisoned(q), poisoned(k), poisoned(v)))
    strided_d_out = np.ascontiguousarray(d_out.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    whole = np.full((2, 67, 4 * head_dim + GUARD), np.nan, np.float32)
    out = whole[:, :, : 4 * head_dim].reshape(2, 67, 4, head_dim).transpose(0, 2, 1, 3)
    log_sum_exp = np.full(q.shape[:3], np.nan, np.float32)
    found = run_into(kernel, case, *views, strided_d_out, out, log_sum_exp, *gradients)
    assert_equals_reference(found, case)
    for array in (whole, d_whole):
        assert np.isfinite(array[:, :, :-GUARD]).all() and np.isnan(array[:, :, -GUARD:]).all()


def test_read_only_inputs(kernel):
    case = Case(2, 4, 2, queries=9, keys=70, causal=True, dropout=0.1, seed=5)
    arrays = inputs(case)
    for array in arrays:
        array.flags.writeable = False
    assert_equals_reference(run(kernel, case, *arrays), case)


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 4, 2, queries=130, keys=130, causal=True, dropout=0.1, seed=3),
        Case(1, 1, 1, queries=300, keys=700, head_dim=5),
        PACKED._replace(causal=True),
        PACKED._replace(biased=True, around=20),
        Case(1, 1, 1, queries=300, keys=700, head_dim=5, biased=True),
    ],
)
def test_threads_do_not_show_in_the_bits(kernel, case):
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        results.append(run(kernel, case, *inputs(case)))
    for other in results[1:]:
        for name in other:
            assert np.array_equal(results[0][name], other[name]), name
    assert_equals_reference(results[0], case)


# ---- products in bfloat16 ----


def in_bfloat16(kernel):
    return SimpleNamespace(
        attention_forward=kernel.attention_forward_bfloat16, attention_backward=kernel.attention_backward_bfloat16
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(queries=130, keys=130, head_dim=64, causal=True),
        Case(queries=130, keys=131, head_dim=33, causal=True),
        Case(batch=2, heads=4, kv_heads=2, queries=7, keys=65, head_dim=5),
        Case(queries=131, keys=200, head_dim=80, window=3, causal=True),
        Case(queries=130, keys=65, head_dim=1, window=64, causal=True),
        Case(queries=65, keys=129, head_dim=16, dropout=0.2, seed=3),
        PACKED._replace(causal=True, dropout=0.3),
        PACKED._replace(biased=True, around=20),
        Case(batch=2, heads=4, kv_heads=2, queries=130, keys=131, head_dim=16, biased=True, dropout=0.2),
    ],
)
def test_bfloat16_equals_the_reference(kernel, case):
    """Gradients of the reference's own forward, as its few roundings that fall otherwise would weigh more than the rest."""
    exact, plain = inputs(case, np.float64), inputs(case)
    truth = run(in_bfloat16(reference), case, *exact)
    saved = [truth[name].astype(np.float32) for name in ("out", "log_sum_exp")]
    found = run(in_bfloat16(kernel), case, *plain)
    gradients = [poisoned(array) for array in (*plain[:3], bias_of(case, np.float32))]
    delta = np.full(saved[1].shape, np.nan, np.float32)
    kernel.attention_backward_bfloat16(
        plain[3], *plain[:3], *saved, *options_of(case, np.float32), delta, *gradients
    )
    found.update(zip(("d_q", "d_k", "d_v", "d_bias"), gradients, strict=True))
    for name in truth:
        seen = np.isfinite(truth[name])
        assert np.array_equal(found[name][~seen], truth[name][~seen].astype(np.float32)), name
        error = np.linalg.norm(found[name][seen] - truth[name][seen])
        share = BFLOAT16_BLEND if name == "out" else BFLOAT16_GRADIENT
        assert error <= share * np.linalg.norm(truth[name][seen]), f"{name} of {case}"


def test_bfloat16_rounds_what_the_products_read(kernel):
    case = Case(heads=2, kv_heads=2, queries=70, keys=70, window=1, causal=True)
    q, k, v, d_out = inputs(case)
    found = run(in_bfloat16(kernel), case, q, k, v, d_out)
    assert np.array_equal(found["out"], round_bfloat16(v)) and np.array_equal(found["d_v"], round_bfloat16(d_out))
    scores = (round_bfloat16(q * np.float32(0.25)).astype(np.float64) * round_bfloat16(k)).sum(axis=-1)
    np.testing.assert_allclose(found["log_sum_exp"], scores, rtol=0, atol=FEW_ULP * ULP * np.abs(scores).max())


def test_bfloat16_has_the_same_bits_on_any_number_of_threads(kernel):
    case = PACKED._replace(causal=True, dropout=0.1)
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        results.append(run(in_bfloat16(kernel), case, *inputs(case)))
    for other in results[1:]:
        assert all(np.array_equal(results[0][name], other[name]) for name in other)


@st.composite
def cases(draw):
    kv_heads, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    window = draw(st.sampled_from([0, 0, 1, 5, 63, 64, 65, 200]))
    causal = window > 0 or draw(st.booleans())
    return Case(
        draw(st.integers(1, 2)), kv_heads * group, kv_heads, draw(st.integers(1, 140)), draw(st.integers(1, 200)),
        draw(st.integers(1, 96)), causal, window, None if causal else draw(st.sampled_from([None, 0, 4, 64])),
        draw(st.booleans()), draw(st.sampled_from([0.0, 0.25])), draw(st.integers(0, 2**64 - 1)),
    )  # fmt: skip


@settings(deadline=None, max_examples=25, derandomize=True)
@given(case=cases())
def test_any_sizes_and_options(implementation, case):
    check(kernel_module("attention", implementation), case)
