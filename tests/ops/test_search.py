"""fm.search: what it takes, memory maps among it, and its exact errors."""

import numpy as np
import pytest

from fastmixer.ops import search as module
from fastmixer.ops.embedding import nearest
from fastmixer.ops.search import cosine_search, search


def test_best_first(rng):
    vectors, queries = rng.standard_normal((50, 8), np.float32), rng.standard_normal((3, 8), np.float32)
    ids, scores = search(vectors, queries, 4)
    assert (ids.dtype, scores.dtype, ids.shape, scores.shape) == (np.int64, np.float32, (3, 4), (3, 4))
    products = queries @ vectors.T
    np.testing.assert_array_equal(ids, np.argsort(-products, axis=1)[:, :4])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :4], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_read_only_map_of_a_file(rng, tmp_path, dtype):
    vectors, queries = (
        rng.standard_normal((500, 12), np.float32).astype(dtype),
        rng.standard_normal((2, 12), np.float32),
    )
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    for found, expected in zip(search(mapped, queries, 5), search(vectors, queries, 5), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_strided_arrays(rng):
    vectors, queries = rng.standard_normal((40, 24), np.float32), rng.standard_normal((24, 3), np.float32)
    found = search(vectors[::2, ::3], queries[::3].T, 4)
    for one, other in zip(found, search(vectors[::2, ::3].copy(), queries[::3].T.copy(), 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_unit_vectors_it_is_nearest(rng):
    table = rng.standard_normal((300, 16), np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    ids, scores = search(table, table[7:8], 6)
    by_cosine, cosines = nearest(table, table[7], 6)
    np.testing.assert_array_equal(ids[0], by_cosine)
    np.testing.assert_allclose(scores[0], cosines, atol=1e-6)


def test_no_queries():
    ids, scores = search(np.ones((3, 2), np.float32), np.empty((0, 2), np.float32), 2)
    assert ids.shape == scores.shape == (0, 2)


def unit(x):
    x = np.asarray(x, np.float64)
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 200, 1 << 24])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cosines_whatever_the_lengths(rng, monkeypatch, dtype, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "ROW_BLOCK", 32)
    vectors = (unit(rng.standard_normal((200, 12))) * rng.choice([1, 1, 0.01, 1000], (200, 1))).astype(dtype)
    vectors[5], vectors[9] = 0, vectors[8]
    queries = rng.standard_normal((3, 12), np.float32)
    products = unit(queries) @ unit(vectors).T
    ids, scores = cosine_search(vectors, queries, 200)
    expected = np.argsort(-products, axis=1, kind="stable")
    atol = 1e-6 if dtype == "float32" else module.OFF_UNIT_HALF  # rows that are of length 1 but for their rounding stay
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=atol)
    np.testing.assert_allclose(np.take_along_axis(products, ids, 1), scores, atol=atol)
    assert all(sorted(row) == list(range(200)) for row in ids.tolist()) and scores.max() <= 1 + atol
    place = ids.argsort(axis=1)
    assert (place[:, 9] == place[:, 8] + 1).all()  # among equals the lower id wins
    for one, whole in zip(cosine_search(vectors, queries, 7), (ids[:, :7], scores[:, :7]), strict=True):
        np.testing.assert_array_equal(one, whole)


def test_lengths_beyond_what_float32_can_square():
    vectors = np.array([[1e-30, 0], [1e30, 1e30], [0, -3e38]], np.float32)
    ids, scores = cosine_search(vectors, np.array([[1e25, 0]], np.float32), 3)
    assert ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(scores, [[1, 0.5**0.5, 0]], rtol=1e-6)


def test_a_tiny_row_is_no_row_of_zeros_whatever_its_neighbours():
    query = np.array([[1, 0]], np.float32)
    for neighbour in ([0.6, 0.8], [3, 4]):
        vectors = np.array([neighbour, [1e-30, 0], [0, 0]], np.float32)
        ids, scores = cosine_search(vectors, query, 3)
        assert ids.tolist() == [[1, 0, 2]]
        np.testing.assert_allclose(scores, [[1, 0.6, 0]], rtol=1e-6)


def test_unit_vectors_are_searched_as_they_lie(rng, monkeypatch):
    for dtype in (np.float32, np.float16):
        vectors, queries = unit(rng.standard_normal((300, 384))).astype(dtype), unit(rng.standard_normal((2, 384)))
        vectors[17] = 0
        assert module._unit(vectors) is vectors and module._unit(queries) is queries
        for one, other in zip(cosine_search(vectors, queries, 9), search(vectors, queries, 9), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cosines_of_what_is_not_finite(rng, value):
    vectors = unit(rng.standard_normal((50, 4)))
    with pytest.raises(ValueError, match=rf"^search: vectors must be finite; vectors\[49, 2\] = {value}$"):
        cosine_search(changed(vectors, (49, 2), value), vectors[:2], 1)
    with pytest.raises(ValueError, match=rf"^search: queries must be finite; queries\[1, 0\] = {value}$"):
        cosine_search(vectors, changed(vectors[:2], (1, 0), value), 1)


VECTORS, QUERIES = np.ones((5, 3), np.float32), np.ones((2, 3), np.float32)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "search: vectors must be a NumPy array, float32 or float16 [rows, dim]; got list", ([[1.0]], QUERIES, 1)),
        (TypeError, "search: vectors must be float32 or float16 [rows, dim]; got int64 (5, 3)", (VECTORS.astype(int), QUERIES, 1)),
        (TypeError, "search: vectors must be float32 or float16 [rows, dim]; got float64 (5, 3)", (VECTORS.astype(float), QUERIES, 1)),
        (ValueError, "search: vectors must be float32 or float16 [rows, dim]; got float32 (3,)", (VECTORS[0], QUERIES, 1)),
        (TypeError, "search: vectors must be float32 or float16 [rows, dim]; got float16 (3,)", (VECTORS[0].astype("float16"), QUERIES, 1)),
        (ValueError, "search: queries must be float32 [queries, dim=3]; got float32 (2, 2)", (VECTORS, QUERIES[:, :2], 1)),
        (ValueError, "search: queries must be float32 [queries, dim=3]; got float32 (2, 2)", (VECTORS.astype("float16"), QUERIES[:, :2], 1)),
        (TypeError, "search: queries must be float32 [queries, dim=3]; got float16 (2, 3)", (VECTORS, QUERIES.astype("float16"), 1)),
        (ValueError, "search: queries must be float32 [queries, dim=3]; got float32 (3,)", (VECTORS, QUERIES[0], 1)),
        (ValueError, "search: vectors must have at least one column; got float32 (5, 0)", (VECTORS[:, :0], QUERIES[:, :0], 1)),
        (ValueError, "search: k must be 1..5, the rows of vectors; got 6", (VECTORS, QUERIES, 6)),
        (ValueError, "search: k must be 1..5, the rows of vectors; got 0", (VECTORS, QUERIES, 0)),
        (TypeError, "search: k must be an integer; got float", (VECTORS, QUERIES, 1.0)),
        (ValueError, "search: vectors must have at least one row; got float32 (0, 3)", (VECTORS[:0], QUERIES, 1)),
        (ValueError, "search: vectors must be finite; vectors[3, 1] = nan", (changed(VECTORS, (3, 1), np.nan), QUERIES, 1)),
        (ValueError, "search: vectors must be finite; vectors[4, 0] = inf", (changed(VECTORS.astype("float16"), (4, 0), np.inf), QUERIES, 1)),
        (ValueError, "search: queries must be finite; queries[1, 2] = -inf", (VECTORS, changed(QUERIES, (1, 2), -np.inf), 1)),
        (ValueError, "search: products must be finite; some are too large for float32", (1e30 * VECTORS, 1e30 * QUERIES, 1)),
    ],
)  # fmt: skip
def test_errors(error, text, arguments):
    with pytest.raises(error) as caught:
        search(*arguments)
    assert str(caught.value) == text
