"""The faces of attention: the softmax formula, gradients by differences, packed and short sequences, memory."""

import subprocess
import sys

import numpy as np
import pytest
from attention_arrays import BATCH, HEAD_DIM, HEADS, KEYS, KV_HEADS, QUERIES, make
from tolerances import assert_gradient_matches, central_differences

from fastmixer.kernels.select import implementations, use_kernels
from fastmixer.ops.attention import attention, attention_backward, attention_weights

LONG = 8192
MOST_MEGABYTES = 64  # a [LONG, LONG] array of float32 would take 256


@pytest.fixture
def arrays(rng):
    return make(rng)


def visible(queries, keys, causal=False, window=None, around=None):
    """bool [queries, keys]: which keys a query sees; the queries are the last ones."""
    position = np.arange(queries)[:, None] + keys - queries
    key = np.arange(keys)[None, :]
    seen = np.ones((queries, keys), bool)
    if causal or window is not None:
        seen &= key <= position
    if window is not None:
        seen &= key > position - min(window, keys)
    if around is not None:
        seen &= np.abs(key - position) <= min(around, queries + keys)
    return seen


def by_distance(bias, queries, keys):
    """bias: [heads, 2 reach + 1] as [heads, queries, keys]."""
    reach = bias.shape[1] // 2
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None] - keys + queries
    return bias[:, np.clip(distance, -reach, reach) + reach]


def weights_by_formula(q, k, seen, scale=None, bias=0.0):
    """softmax(scale q k^T + bias) over what is seen, float64 [batch, heads, queries, keys]; zeros where nothing is."""
    group = q.shape[1] // k.shape[1]
    q, k = q.astype(np.float64), np.repeat(k.astype(np.float64), group, axis=1)
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) * (1 / np.sqrt(q.shape[3]) if scale is None else scale)
    scores += bias
    exponentials = np.where(seen, np.exp(scores), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / np.where(total == 0, 1, total)


def by_formula(q, k, v, seen, scale=None, bias=0.0):
    """float64 [batch, heads, queries, head_dim]."""
    values = np.repeat(v.astype(np.float64), q.shape[1] // v.shape[1], axis=1)
    return weights_by_formula(q, k, seen, scale, bias) @ values


def close(actual, wanted):
    return actual.shape == wanted.shape and np.allclose(actual, wanted, rtol=0, atol=2e-6)


# ---- results ----


@pytest.mark.parametrize("window", [None, 1, 3, 100, 2**70])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_by_its_formula(arrays, causal, window, scale):
    q, k, v, _ = arrays
    out = attention(q, k, v, causal=causal, window=window, scale=scale)
    assert out.dtype == np.float32
    assert close(out, by_formula(q, k, v, visible(QUERIES, KEYS, causal, window), scale))


@pytest.mark.parametrize("around", [0, 2, 100, 2**70])
def test_sight_to_either_side_by_the_formula(arrays, around):
    q, k, v, _ = arrays
    out = attention(q, k, v, around=around)
    assert close(out, by_formula(q, k, v, visible(QUERIES, KEYS, around=around)))


@pytest.mark.parametrize("reach", [0, 2, 50])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"around": 3, "scale": 0.7}], ids=str)
def test_biases_by_the_formula(rng, arrays, reach, options):
    q, k, v, _ = arrays
    bias = rng.standard_normal((HEADS, 2 * reach + 1), np.float32)
    scale, sight = options.get("scale"), {name: options[name] for name in options if name != "scale"}
    wanted = by_formula(q, k, v, visible(QUERIES, KEYS, **sight), scale, by_distance(bias, QUERIES, KEYS))
    assert close(attention(q, k, v, bias=bias, **options), wanted)


def test_more_queries_than_keys(rng):
    q, k, v, d_out = make(rng, queries=9, keys=4)
    out, log_sum_exp = attention(q, k, v, causal=True, return_saved=True)
    assert close(out, by_formula(q, k, v, visible(9, 4, causal=True)))
    assert not out[:, :, :5].any() and (log_sum_exp[:, :, :5] == -np.inf).all()
    d_q, _, _ = attention_backward(d_out, q, k, v, out, log_sum_exp, causal=True)
    assert np.isfinite(d_q).all() and not d_q[:, :, :5].any()


def test_log_sum_exp_is_that_of_the_scores(arrays):
    q, k, v, _ = arrays
    _, log_sum_exp = attention(q, k, v, return_saved=True)
    scores = np.einsum("bhqd,bhkd->bhqk", q, np.repeat(k, HEADS // KV_HEADS, axis=1)) / HEAD_DIM**0.5
    assert close(log_sum_exp, np.log(np.exp(scores.astype(np.float64)).sum(axis=-1)))


def test_weights_by_their_formula(arrays):
    q, k, _, _ = arrays
    weights = attention_weights(q, k, causal=True, window=4)
    assert close(weights, weights_by_formula(q, k, visible(QUERIES, KEYS, window=4)))
    assert np.allclose(weights.sum(axis=-1), 1, atol=1e-6) and (weights >= 0).all()
    blind = attention_weights(q, k[:, :, :3], causal=True)
    assert not blind[:, :, : QUERIES - 3].any()
    assert np.allclose(blind[:, :, QUERIES - 3 :].sum(axis=-1), 1, atol=1e-6)


# ---- packed sequences and caches ----

QUERY_STARTS, KEY_STARTS = np.array([0, 3, 3, 8, 10]), np.array([0, 5, 7, 7, 11])


def seen_packed(query_starts, key_starts, causal):
    seen = np.zeros((query_starts[-1], key_starts[-1]), bool)
    for i in range(len(query_starts) - 1):
        rows, columns = slice(*query_starts[i : i + 2]), slice(*key_starts[i : i + 2])
        seen[rows, columns] = visible(*seen[rows, columns].shape, causal)
    return seen


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_by_the_formula(rng, causal):
    q, k, v, d_out = make(rng, queries=10, keys=11, batch=1)
    options = {"causal": causal, "query_starts": QUERY_STARTS, "key_starts": KEY_STARTS}
    out, log_sum_exp = attention(q, k, v, **options, return_saved=True)
    assert close(out, by_formula(q, k, v, seen_packed(QUERY_STARTS, KEY_STARTS, causal)))
    assert (log_sum_exp[:, :, 3:8] == -np.inf).all()  # five queries and no key
    gradients = attention_backward(d_out, q, k, v, out, log_sum_exp, **options)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[0][:, :, 3:8].any()
    assert not gradients[1][:, :, 5:7].any() and not gradients[2][:, :, 5:7].any()  # two keys and no query


def test_key_starts_are_query_starts_if_not_given(rng):
    q, k, v, _ = make(rng, queries=10, keys=10, batch=1)
    starts = QUERY_STARTS.astype(np.int32)
    out = attention(q, k, v, causal=True, query_starts=starts)
    assert close(out, by_formula(q, k, v, seen_packed(QUERY_STARTS, QUERY_STARTS, causal=True)))
    assert np.array_equal(out, attention(q, k, v, causal=True, query_starts=starts, key_starts=starts))
    assert np.array_equal(attention(q, k, v, query_starts=[0, 10]), attention(q, k, v))


@pytest.mark.parametrize("counts", [[9, 4], [0, 9], np.array([1, 8], np.uint8)])
def test_key_counts_end_each_batch_element_by_itself(arrays, counts):
    q, k, v, _ = (array[:, :, -2:] if i in (0, 3) else array for i, array in enumerate(arrays))
    out, log_sum_exp = attention(q, k, v, causal=True, key_counts=counts, return_saved=True)
    for b, count in enumerate(counts):
        one, short_k, short_v = q[b : b + 1], k[b : b + 1, :, :count], v[b : b + 1, :, :count]
        assert close(out[b : b + 1], by_formula(one, short_k, short_v, visible(2, int(count), causal=True)))
        assert np.isfinite(log_sum_exp[b]).all() == (count >= 2)


# ---- gradients ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "scale": 0.9},
        {"window": 3},
        {"causal": True, "dropout": 0.4, "seed": 2**60 + 1},
        {"query_starts": np.array([0, 2, 2, 5]), "key_starts": np.array([0, 1, 3, 7]), "causal": True},
    ],
    ids=["all", "causal", "window", "dropout", "packed"],
)
def test_gradients_by_central_differences(rng, options):
    q, k, v, d_out = make(rng, queries=5, keys=7, batch=1 if "query_starts" in options else 2, dtype=np.float64)

    def objective():
        return float((attention(q, k, v, **options) * d_out).sum())

    with use_kernels("reference"):
        out, log_sum_exp = attention(q, k, v, **options, return_saved=True)
        assert out.dtype == np.float64
        found = attention_backward(d_out, q, k, v, out, log_sum_exp, **options)
        for name, gradient, x in zip(("d_q", "d_k", "d_v"), found, (q, k, v), strict=True):
            assert_gradient_matches(gradient, central_differences(objective, x), name=name)


@pytest.mark.parametrize("reach", [2, 9])
@pytest.mark.parametrize(
    "options",
    [{}, {"around": 2}, {"causal": True, "dropout": 0.4, "seed": 3}, {"query_starts": [0, 1, 1, 5], "key_starts": [0, 3, 3, 7]}],
    ids=["all", "around", "causal with dropout", "packed"],
)
def test_gradients_with_a_bias_by_central_differences(rng, options, reach):
    q, k, v, d_out = make(rng, queries=5, keys=7, batch=1, dtype=np.float64)
    bias = rng.standard_normal((HEADS, 2 * reach + 1))

    def objective():
        return float((attention(q, k, v, bias=bias, **options) * d_out).sum())

    with use_kernels("reference"):
        out, log_sum_exp = attention(q, k, v, bias=bias, **options, return_saved=True)
        d_bias = np.full_like(bias, 2)  # it is added to
        found = attention_backward(d_out, q, k, v, out, log_sum_exp, bias=bias, d_bias=d_bias, **options)
        gradients = (*found, d_bias - 2)
        for name, gradient, x in zip(("d_q", "d_k", "d_v", "d_bias"), gradients, (q, k, v, bias), strict=True):
            assert_gradient_matches(gradient, central_differences(objective, x), name=name)


def test_backward_overwrites_what_it_is_given(arrays):
    q, k, v, d_out = arrays
    out, log_sum_exp = attention(q, k, v, causal=True, return_saved=True)
    wanted = attention_backward(d_out, q, k, v, out, log_sum_exp, causal=True)
    given = {name: np.full_like(x, np.nan) for name, x in (("d_q", q), ("d_k", k), ("d_v", v))}
    found = attention_backward(d_out, q, k, v, out, log_sum_exp, causal=True, **given)
    for gradient, array, other in zip(found, given.values(), wanted, strict=True):
        assert gradient is array and np.array_equal(gradient, other)


def test_dropout_keeps_the_expectation(rng):
    q, k, v, _ = make(rng, batch=1)
    plain = attention(q, k, v)
    assert np.array_equal(attention(q, k, v, dropout=0.0, seed=9), plain)
    draws = np.stack([attention(q, k, v, dropout=0.3, seed=seed) for seed in range(400)])
    error = np.abs(draws.mean(axis=0) - plain) / (draws.std(axis=0) / len(draws) ** 0.5)
    assert error.max() < 5 and error.mean() < 1


# ---- how arrays come ----


def test_strided_and_read_only_inputs(arrays):
    q, k, v, d_out = arrays
    wanted, saved = attention(q, k, v, return_saved=True)
    time_first = [np.ascontiguousarray(array.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for array in arrays]
    last_strided = [np.repeat(array, 2, axis=3)[..., ::2] for array in arrays]
    for views in (time_first, last_strided):
        for view in views:
            view.flags.writeable = False
        out = attention(*views[:3])
        assert close(out, wanted)
        found = attention_backward(views[3], *views[:3], out, saved)
        for gradient, other in zip(found, attention_backward(d_out, q, k, v, wanted, saved), strict=True):
            assert close(gradient, other)


def test_out_is_written_where_it_lies(arrays):
    q, k, v, _ = arrays
    whole = np.full((BATCH, QUERIES, HEADS, HEAD_DIM), np.nan, np.float32)
    out = whole.transpose(0, 2, 1, 3)
    assert attention(q, k, v, out=out) is out
    assert np.array_equal(out, attention(q, k, v)) and np.isfinite(whole).all()


@pytest.mark.parametrize("implementation", implementations("attention"))
@pytest.mark.parametrize("batch, queries, keys", [(0, 3, 3), (2, 0, 3), (2, 3, 0), (2, 0, 0)])
def test_empty_arrays(rng, implementation, batch, queries, keys):
    q, k, v, d_out = make(rng, queries, keys, batch)
    with use_kernels(implementation):
        out, log_sum_exp = attention(q, k, v, causal=True, return_saved=True)
        d_q, d_k, d_v = attention_backward(d_out, q, k, v, out, log_sum_exp, causal=True)
    assert out.shape == d_q.shape == q.shape and d_k.shape == d_v.shape == k.shape
    assert not any(array.any() for array in (out, d_q, d_k, d_v)) and (log_sum_exp == -np.inf).all()


# ---- memory ----

MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from fastmixer.kernels.select import use_kernels
from fastmixer.ops.attention import attention, attention_backward

def peak():
    # in kilobytes; Linux's ru_maxrss would begin with the peak of the process that started this one
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)

def both(time):
    q, k, v, d_out = (np.ones((1, 1, time, 16), np.float32) for _ in range(4))
    out, log_sum_exp = attention(q, k, v, return_saved=True)
    attention_backward(d_out, q, k, v, out, log_sum_exp)

def one_array(time):
    np.ones((time, time), np.float32)

def measure(work, time):
    work(8)  # compiles, imports, starts threads
    before = peak()
    work(time)
    print(peak() - before)

if sys.argv[1] == "one array":
    measure(one_array, int(sys.argv[2]))
else:
    with use_kernels(sys.argv[1]):
        measure(both, int(sys.argv[2]))
"""


def megabytes_of(work):
    """How far the peak memory of a new process rises by this work at length LONG."""
    command = [sys.executable, "-c", MEASURE, work, str(LONG)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    print(f"{work}: {int(found.stdout) / 1024:.0f} MB")
    return int(found.stdout) / 1024


@pytest.mark.parametrize("implementation", [name for name in implementations("attention") if name != "reference"])
def test_long_sequences_take_little_memory(implementation):
    assert megabytes_of(implementation) < MOST_MEGABYTES


def test_the_measure_of_memory_sees_a_full_array():
    assert megabytes_of("one array") > 0.9 * LONG * LONG * 4 / 2**20
