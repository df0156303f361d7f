"""Every sampler against the float64 reference.

A draw may come out differently where a number lies on an edge to within float32's rounding. So a sampled id must be
among those that the reference gives when the edges are moved by EDGE, and almost always that is one id.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmixer.kernels.sampling import reference
from fastmixer.kernels.threads import set_threads

SIZES = (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 127, 1030)
EDGE = 1e-5  # of a share of probability
NOTHING = -99

relaxed = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(module, logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform):
    """The module's ids for logits: [batch, vocab], which stay as they are."""
    out = np.full(len(logits), NOTHING, np.int64)
    module.sample(logits.copy(), float(temperature), top_k, float(top_p), float(min_p), uniform, out)
    return out


def allowed_ids(logits, *, temperature, top_k, top_p, min_p, uniform):
    """A set of ids for each row: the reference's in float64, with every edge moved up and down."""
    truth = logits.astype(np.float64)
    found = [set() for _ in logits]
    for share, least, edge in product((-EDGE, 0, EDGE), repeat=3):
        moved = {
            "top_p": 1.0 if top_p == 1 else min(max(top_p + share, EDGE / 2), 1.0),
            "min_p": min_p if min_p in (0, 1) else min_p * (1 + least),
            "uniform": np.clip(uniform + edge, 0, np.nextafter(1, 0)),
        }
        for ids, token in zip(found, run(reference, truth, temperature=temperature, top_k=top_k, **moved), strict=True):
            ids.add(int(token))
    return found


@st.composite
def draws(draw):
    batch, vocab = draw(st.integers(0, 5)), draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["normal", "few values", "masked", "huge"]))
    logits = rng.standard_normal((batch, vocab), np.float32) * 3
    if kind == "few values":
        logits = np.round(logits / 3)
    elif kind == "masked":
        logits[rng.random(logits.shape) < 0.5] = -np.inf
        logits[:, rng.integers(vocab)] = 1
    elif kind == "huge":
        logits *= 3e3
    return logits, {
        "temperature": draw(st.sampled_from([0.0, 1e-30, 0.3, 1.0, 5.0])),
        "top_k": draw(st.sampled_from([0, 1, 2, 5, 40, vocab, vocab + 1])),
        "top_p": draw(st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-4])),
        "min_p": draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        "uniform": rng.random(batch),
    }


@relaxed
@given(case=draws())
def test_draws_are_the_references(kernel, case):
    logits, parameters = case
    ids = run(kernel, logits, **parameters)
    for row, (token, allowed) in enumerate(zip(ids, allowed_ids(logits, **parameters), strict=True)):
        assert int(token) in allowed, f"row {row}: {token} is not in {allowed}"
        assert logits[row, token] > -np.inf


@cache
def large_vocabulary_cases():
    """(logits, parameters, allowed ids) on GPT-2's vocabulary; computed once for all implementations."""
    rng = np.random.default_rng(5)
    cases = []
    for top_k, top_p, min_p in [(50, 0.95, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.02), (20000, 0.99, 0.0), (0, 1.0, 0.0)]:
        logits = 3 * rng.standard_normal((2, 50257), np.float32)
        parameters = {"temperature": 0.8, "top_k": top_k, "top_p": top_p, "min_p": min_p, "uniform": rng.random(2)}
        cases.append((logits, parameters, allowed_ids(logits, **parameters)))
    return cases


def test_parity_on_a_large_vocabulary(kernel):
    for logits, parameters, allowed in large_vocabulary_cases():
        ids = run(kernel, logits, **parameters)
        assert all(int(token) in ids_allowed for token, ids_allowed in zip(ids, allowed, strict=True))


def test_greedy_takes_the_lowest_of_the_best(kernel):
    logits = np.zeros((3, 37), np.float32)
    logits[0, [5, 20, 36]] = 2
    logits[1, 36] = 1e-30
    assert run(kernel, logits, temperature=0, uniform=np.zeros(3)).tolist() == [5, 36, 0]


@pytest.mark.parametrize("kept", [1, 3, 4, 17])
def test_top_k_keeps_exactly_k_and_the_lower_of_equals(kernel, kept):
    logits = np.zeros((1000, 17), np.float32)
    logits[:, 1::2] = -0.0  # equal to zero, though its bits differ
    uniform = (np.arange(1000) + 0.5) / 1000
    assert set(run(kernel, logits, top_k=kept, uniform=uniform)) == set(range(kept))
    logits[:, 16] = 1  # the best comes first wherever it stands
    expected = {16, *range(kept - 1)}
    assert set(run(kernel, logits, top_k=kept, uniform=uniform)) == expected


@pytest.mark.parametrize("kept", [1, 5, 12, 200])
def test_top_k_of_many_equals_keeps_the_lower_ids(kernel, kept):
    logits = np.full((400, 700), -np.inf, np.float32)
    logits[:, 64:] = 0  # a block of nothing, then equals in every block, more of them than are kept
    logits[:, 699] = 1
    uniform = (np.arange(400) + 0.5) / 400
    expected = {699, *range(64, 64 + kept - 1)}
    assert set(run(kernel, logits, top_k=kept, uniform=uniform)) == expected
    assert set(run(kernel, logits, top_k=kept, top_p=0.9999, temperature=5.0, uniform=uniform)) <= expected


def test_top_p_keeps_the_fewest_that_reach_the_share(kernel):
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]] * 1000, np.float32))
    uniform = (np.arange(1000) + 0.5) / 1000
    for top_p, kept in [(0.05, {1}), (0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})]:
        assert set(run(kernel, logits, top_p=top_p, uniform=uniform)) == kept
    # of what top-k left: 4/7 and 3/7
    assert set(run(kernel, logits, top_k=2, top_p=0.5, uniform=uniform)) == {1}


def test_top_p_among_equals_keeps_the_lower_ids(kernel):
    logits = np.zeros((1000, 8), np.float32)
    uniform = (np.arange(1000) + 0.5) / 1000
    assert set(run(kernel, logits, top_p=0.5, uniform=uniform)) == {0, 1, 2, 3}


def test_min_p_is_measured_against_the_best(kernel):
    logits = np.log(np.array([[0.1, 0.4, 0.19, 0.31]] * 1000, np.float32))
    uniform = (np.arange(1000) + 0.5) / 1000
    for min_p, kept in [(0.2, {0, 1, 2, 3}), (0.3, {1, 2, 3}), (0.6, {1, 3}), (1.0, {1})]:
        assert set(run(kernel, logits, min_p=min_p, uniform=uniform)) == kept


def test_the_ends_of_the_unit_interval_never_draw_an_excluded_token(kernel):
    logits = np.full((2, 2100), -np.inf, np.float32)
    logits[:, 700:900] = 0
    ends = np.array([0.0, np.nextafter(1, 0)])
    assert run(kernel, logits, uniform=ends).tolist() == [700, 899]


@pytest.mark.parametrize(
    "parameters", [{}, {"temperature": 2.0}, {"top_k": 4}, {"min_p": 0.2, "temperature": 0.7}], ids=str
)
def test_frequencies_follow_the_probabilities(kernel, rng, parameters):
    logits = np.array([0.3, -1.2, 2.0, 0.0, 1.1, -0.4, 0.9, 1.6, -2.0, 0.5], np.float32)
    count = 20000
    ids = run(kernel, np.tile(logits, (count, 1)), uniform=rng.random(count), **parameters)
    weights = np.exp(logits.astype(np.float64) / parameters.get("temperature", 1.0))
    weights[np.argsort(-weights)[parameters.get("top_k") or 10 :]] = 0
    weights[weights < parameters.get("min_p", 0) * weights.max()] = 0
    expected = count * weights / weights.sum()
    observed = np.bincount(ids, minlength=10)
    assert not observed[expected == 0].any()
    possible = expected > 0
    chi_square = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = np.count_nonzero(possible) - 1
    # 99.9 % quantile by Wilson and Hilferty's approximation
    limit = freedom * (1 - 2 / (9 * freedom) + 3.0902 * np.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit, f"{chi_square:.1f} at {freedom} degrees of freedom"


@relaxed
@given(seed=st.integers(0, 2**32), batch=st.integers(0, 4), vocab=st.sampled_from(SIZES), count=st.integers(0, 20))
def test_penalty_is_the_references(kernel, seed, batch, vocab, count):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, vocab), np.float32)
    ids = rng.integers(-1, vocab, (batch, count))  # repeats and pads
    ids.flags.writeable = False
    expected, actual = logits.astype(np.float64), logits.copy()
    reference.penalize_repetition(expected, ids, 1.3)
    kernel.penalize_repetition(actual, ids, 1.3)
    np.testing.assert_allclose(actual, expected, rtol=3e-7)
    untouched = expected == logits
    np.testing.assert_array_equal(actual[untouched], logits[untouched])


def test_threads_and_read_only_numbers_change_nothing(kernel, rng):
    logits, uniform = 3 * rng.standard_normal((9, 3000), np.float32), rng.random(9)
    uniform.flags.writeable = False
    results = []
    for threads in (1, 2, 4):
        set_threads(threads)
        results.append(run(kernel, logits, top_k=300, top_p=0.9, uniform=uniform).tolist())
    assert results[0] == results[1] == results[2]
