"""Top-k search: every implementation against the float64 reference; exactly, where products are whole numbers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_float64

from fastmixer.kernels.search import reference
from fastmixer.kernels.threads import set_threads

SIZES = (1, 7, 8, 15, 16, 17, 31, 32, 33, 127)
ROWS = (*SIZES, 129, 1000, 5000)  # the last is cut into parts

relaxed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(module, vectors, queries, k):
    """(ids, scores, whether all was finite) of the module; float16 vectors go in as their bits."""
    ids, scores = np.full((len(queries), k), -7, np.int64), np.full((len(queries), k), np.nan, queries.dtype)
    if vectors.dtype == np.float16:
        all_finite = module.search_half(vectors.view(np.uint16), queries, ids, scores)
    else:
        all_finite = module.search(vectors, queries, ids, scores)
    return ids, scores, all_finite


def whole_numbers(rng, *shape):
    """Small ones: their products are exact in float32, and many are equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@relaxed
@given(
    rows=st.sampled_from(ROWS), dim=st.sampled_from((*SIZES, 400)), queries=st.sampled_from((0, 1, 2, 3, 16, 33, 47, 200)),
    k=st.sampled_from((1, 2, 10, 100, 10_000)), dtype=st.sampled_from((np.float32, np.float16)), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_equal_scores_are_in_the_order_of_ids(kernel, rows, dim, queries, k, dtype, seed):
    rng = np.random.default_rng(seed)
    vectors, wanted = whole_numbers(rng, rows, dim), whole_numbers(rng, queries, dim)
    k = min(k, rows)
    stored = vectors.astype(dtype)
    stored.flags.writeable = wanted.flags.writeable = False
    ids, scores, all_finite = run(kernel, stored, wanted, k)
    products = wanted.astype(np.float64) @ vectors.T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, order, axis=1))
    assert all_finite is True


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("queries", [1, 2, 5, 17, 40, 250])
def test_scores_and_what_they_belong_to(kernel, rng, queries, dtype):
    vectors = rng.standard_normal((3000, 130), np.float32).astype(dtype)
    wanted = rng.standard_normal((queries, 130), np.float32)
    ids, scores, _ = run(kernel, vectors, wanted, 20)
    _, plain, _ = run(reference, vectors, wanted, 20)
    wide = vectors.astype(np.float64)
    _, truth, _ = run(reference, wide, wanted.astype(np.float64), 20)
    assert_close_to_float64(scores, plain, truth, terms=130, name="scores")
    of_ids = np.einsum("qkd,qd->qk", wide[ids], wanted.astype(np.float64))
    assert_close_to_float64(scores, plain, of_ids, terms=130, name="scores of ids")
    assert all(len(set(row)) == 20 for row in ids.tolist())


@pytest.mark.parametrize("queries", [1, 60])
def test_the_best_are_found_wherever_they_stand(kernel, rng, queries):
    vectors = rng.standard_normal((5001, 24), np.float32)
    wanted = rng.standard_normal((queries, 24), np.float32)
    places = [0, 1, 128, 1023, 1024, 2500, 4999, 5000]
    for query in range(queries):
        vectors[places[query % 8]] = 100 * wanted[query]
    ids, _, _ = run(kernel, vectors, wanted[-8:], 1)
    first = (queries - len(wanted[-8:])) % 8
    assert ids[:, 0].tolist() == [places[(first + i) % 8] for i in range(len(ids))]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("queries", [1, 5, 50])
def test_what_is_not_finite_is_told(kernel, rng, queries, dtype, bad):
    vectors = rng.standard_normal((3000, 20), np.float32).astype(dtype)
    wanted = rng.standard_normal((queries, 20), np.float32)
    for row in (0, 1700, 2999):
        spoilt = vectors.copy()
        spoilt[row, 19] = bad
        assert run(kernel, spoilt, wanted, 3)[2] is False


def test_half_precision_numbers_of_every_size(kernel, rng):
    """All finite float16, the smallest ones too, each against one query that gives its value back."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    vectors = bits[np.isfinite(bits.view(np.float16))].view(np.float16).reshape(-1, 1)
    ids, scores, _ = run(kernel, vectors, np.ones((1, 1), np.float32), len(vectors))
    np.testing.assert_array_equal(scores[0], np.sort(vectors[:, 0])[::-1].astype(np.float32))
    np.testing.assert_array_equal(vectors[ids[0], 0].astype(np.float32), scores[0])


@pytest.mark.parametrize("queries", [1, 2, 3, 50])
@pytest.mark.parametrize("dim", [1, 15, 33, 64, 130])
def test_float16_comes_out_as_its_numbers_in_float32(kernel, rng, dim, queries):
    vectors = rng.standard_normal((1500, dim), np.float32).astype(np.float16)
    wanted = rng.standard_normal((queries, dim), np.float32)
    ids, scores, _ = run(kernel, vectors, wanted, 9)
    plain_ids, plain_scores, _ = run(kernel, vectors.astype(np.float32), wanted, 9)
    np.testing.assert_array_equal(ids, plain_ids)
    np.testing.assert_array_equal(scores, plain_scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("queries", [1, 45, 300])
def test_threads_change_nothing(kernel, rng, queries, dtype):
    vectors = rng.standard_normal((6000, 50), np.float32).astype(dtype)
    wanted = rng.standard_normal((queries, 50), np.float32)
    results = []
    for threads in (1, 2, 4):
        set_threads(threads)
        results.append(run(kernel, vectors, wanted, 7))
    for ids, scores, _ in results[1:]:
        np.testing.assert_array_equal(ids, results[0][0])
        np.testing.assert_array_equal(scores, results[0][1])
