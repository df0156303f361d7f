"""The face of embedding: what it returns, what it refuses and in which words."""

import re

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.kernels import select


@pytest.fixture
def table(rng):
    return rng.standard_normal((10, 4), dtype=np.float32)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_embedding_takes_ids_of_any_shape(table, rng, shape):
    ids = rng.integers(0, 10, shape)
    np.testing.assert_array_equal(fm.embedding(table, np.asarray(ids)), table[ids])


def test_embedding_takes_strided_and_read_only_input(table):
    ids = np.arange(20)[::2] % 10
    ids.flags.writeable = False
    table.flags.writeable = False
    np.testing.assert_array_equal(fm.embedding(table[:, ::2], ids), table[ids][:, ::2])


def test_backward_returns_only_rows_that_occurred(rng):
    ids = np.array([[7, 2, 7], [2, 2, 9]])
    d_out = rng.standard_normal((2, 3, 5), dtype=np.float32)
    gradient = fm.embedding_backward(d_out, ids, 10)
    np.testing.assert_array_equal(gradient.rows, [2, 7, 9])
    expected = np.zeros((10, 5))
    np.add.at(expected, ids, d_out.astype(np.float64))
    np.testing.assert_allclose(gradient.to_dense(), expected, atol=1e-6)
    dense = np.ones((10, 5), np.float32)
    gradient.add_to(dense)
    np.testing.assert_allclose(dense, expected + 1, atol=1e-6)


def test_backward_of_no_ids_is_empty():
    gradient = fm.embedding_backward(np.empty((0, 5), np.float32), np.empty(0, np.int64), 10)
    assert gradient.rows.shape == (0,) and gradient.values.shape == (0, 5)
    assert not gradient.to_dense().any()


def test_every_row_update_learns(rng):
    """Rows move toward a target; rows that never occur stay as they are."""
    ids = np.array([1, 3, 3])
    target = rng.standard_normal((3, 4), dtype=np.float32)

    def distance(update):
        table = np.zeros((5, 4), np.float32)
        for step in range(1, 200):
            update(table, fm.embedding_backward(table[ids] - target, ids, 5), step)
        assert not table[[0, 2, 4]].any()
        best = np.stack([target[0], target[1:].mean(axis=0)])
        return np.abs(table[[1, 3]] - best).max()

    state = {"a": np.zeros(5, np.float32), "m": np.zeros((5, 4), np.float32), "v": np.zeros((5, 4), np.float32)}
    assert distance(lambda t, g, step: fm.update_rows_sgd(t, g, 0.1)) < 1e-3
    assert distance(lambda t, g, step: fm.update_rows_adagrad(t, state["a"], g, 0.3)) < 1e-2
    assert distance(lambda t, g, step: fm.update_rows_adamw(t, state["m"], state["v"], g, 0.05, step=step)) < 0.1


def test_float64_is_for_the_reference_only(table):
    wide = table.astype(np.float64)
    with select.use_kernels("reference"):
        assert fm.embedding(wide, np.array([1])).dtype == np.float64
    with select.use_kernels("jit"), pytest.raises(TypeError, match="table must be float32"):
        fm.embedding(wide, np.array([1]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda t: fm.embedding(t, np.array([[1, 2], [3, 12]])), IndexError, "embedding: ids[1, 1] = 12 is out of range; expected 0..9"),
        (lambda t: fm.embedding(t, np.array([-1])), IndexError, "embedding: ids[0] = -1 is out of range; expected 0..9"),
        (lambda t: fm.embedding(t, np.array([1.0])), TypeError, "embedding: ids must be integer; got float64 (1,)"),
        (lambda t: fm.embedding(t[0], np.array([1])), ValueError, "embedding: table must be float32 [rows, dim]; got float32 (4,)"),
        (lambda t: fm.embedding(t.tolist(), np.array([1])), TypeError, "embedding: table must be a NumPy array, float32 [rows, dim]; got list"),
        (lambda t: fm.embedding(t, np.array([1]), out=np.empty((2, 4), np.float32)), ValueError, "embedding: out must be float32 [axis_0=1, dim=4]; got float32 (2, 4)"),
        (lambda t: fm.embedding_backward(t, np.arange(9), 20), ValueError, "embedding_backward: d_out must be float32 [axis_0=9, dim]; got float32 (10, 4)"),
        (lambda t: fm.nearest(t, t[0], 0), ValueError, "nearest: k must be 1..10, the rows of the table; got 0"),
        (lambda t: fm.nearest(t, t[0], 11), ValueError, "nearest: k must be 1..10, the rows of the table; got 11"),
        (lambda t: fm.nearest(t, 0 * t[0], 1), ValueError, "nearest: vector is zero, which has no direction"),
        (lambda t: fm.nearest(t, t[0, :3], 1), ValueError, "nearest: vector must be float32 [dim=4]; got float32 (3,)"),
        (lambda t: fm.nearest(t, t[0], 2.5), TypeError, "nearest: k must be an integer; got float"),
        (lambda t: fm.embedding(t, [[1, 2], [3]]), ValueError, "embedding: ids must be lists of one length; got different lengths"),
        (lambda t: fm.embedding_backward(t, [[1, 2], [3]], 20), ValueError, "embedding_backward: ids must be lists of one length; got different lengths"),
        (lambda t: fm.embedding_backward(t, np.arange(10), 20.0), TypeError, "embedding_backward: num_rows must be an integer; got float"),
        (lambda t: fm.embedding_backward([[1.0], [1.0, 2.0]], [1], 20), TypeError, "embedding_backward: d_out must be a NumPy array, float32 [axis_0, dim]; got list"),
        (lambda t: fm.cosine_similarity([[1.0], [1.0, 2.0]], t[0]), TypeError, "cosine_similarity: a must be a NumPy array, float32 [dim]; got list"),
        (lambda t: fm.update_rows_adamw(t, 0 * t, 0 * t, fm.SparseRows(np.array([1]), t[:1].copy(), 10), 0.1, step=1.5), TypeError, "update_rows_adamw: step must be an integer; got float"),
        (lambda t: fm.cosine_similarity(t[0], 0 * t[0]), ValueError, "cosine_similarity: b holds a zero vector, which has no direction"),
    ],
)  # fmt: skip
def test_bad_input(table, call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(table)


# What reads SparseRows, and how it calls them: (op, the argument's name with a point, call).
READERS = [
    ("SparseRows.to_dense", "", lambda t, sparse: sparse.to_dense()),
    ("SparseRows.add_to", "", lambda t, sparse: sparse.add_to(t)),
    ("SparseRows.merged", "", lambda t, sparse: sparse.merged(fm.SparseRows(np.array([1]), t[:1], 10))),
    ("SparseRows.merged", "other.", lambda t, sparse: fm.SparseRows(np.array([1]), t[:1], 10).merged(sparse)),
    ("update_rows_sgd", "sparse.", lambda t, sparse: fm.update_rows_sgd(t, sparse, 0.1)),
    ("update_rows_adagrad", "sparse.", lambda t, sparse: fm.update_rows_adagrad(t, np.zeros(10, np.float32), sparse, 0.1)),
    ("update_rows_adamw", "sparse.", lambda t, sparse: fm.update_rows_adamw(t, 0 * t, 0 * t, sparse, 0.1, step=1)),
]
ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(("op", "prefix", "call"), READERS, ids=[op + prefix for op, prefix, _ in READERS])
@pytest.mark.parametrize(
    ("sparse", "error", "text"),
    [
        (fm.SparseRows(np.array([1, 10**9]), ONES, 10), IndexError, "rows[1] = 1000000000 is out of range; expected 0..9"),
        (fm.SparseRows(np.array([-1, 3]), ONES, 10), IndexError, "rows[0] = -1 is out of range; expected 0..9"),
        (fm.SparseRows(np.array([3, 3]), ONES, 10), ValueError, "rows must be ascending and distinct; got rows[0] = 3 and rows[1] = 3"),
        (fm.SparseRows(np.array([0, 4, 2]), ONES, 10), ValueError, "rows must be ascending and distinct; got rows[1] = 4 and rows[2] = 2"),
        (fm.SparseRows(np.array([1.0, 2.0]), ONES, 10), TypeError, "rows must be integer [touched]; got float64 (2,)"),
        (fm.SparseRows(np.array([[1, 2]]), ONES, 10), ValueError, "rows must be integer [touched]; got int64 (1, 2)"),
        (fm.SparseRows([[1], [1, 2]], ONES, 10), ValueError, "rows must be lists of one length; got different lengths"),
        (fm.SparseRows(np.array([0, 1, 2]), ONES, 10), ValueError, "values must be float32 [touched=3, dim]; got float32 (2, 4)"),
        (fm.SparseRows(np.array([0, 1]), ONES[0], 10), ValueError, "values must be float32 [touched=2, dim]; got float32 (4,)"),
        (fm.SparseRows(np.array([0, 1]), ONES.astype(np.float64), 10), TypeError, "values must be float32 [touched=2, dim]; got float64 (2, 4)"),
        (fm.SparseRows(np.array([0, 1]), ONES.tolist(), 10), TypeError, "values must be a NumPy array, float32 [touched, dim]; got list"),
        (fm.SparseRows(np.array([0, 1]), ONES, 10.0), TypeError, "num_rows must be an integer; got float"),
    ],
)  # fmt: skip
def test_sparse_rows_are_checked_by_all_that_read_them(table, op, prefix, call, sparse, error, text):
    before = table.copy()
    with select.use_kernels("jit"), pytest.raises(error, match=f"^{re.escape(f'{op}: {prefix}{text}')}$"):
        call(table, sparse)
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize(("op", "prefix", "call"), [READERS[1], *READERS[4:]], ids=[READERS[1][0], *(op for op, *_ in READERS[4:])])
def test_sparse_rows_are_of_the_table(table, op, prefix, call):
    name = "table" if prefix else "dense"
    for sparse, sizes in ((fm.SparseRows(np.array([1]), ONES[:1], 9), "num_rows=9, dim=4"), (fm.SparseRows(np.array([1]), ONES[:1, :3], 10), "num_rows=10, dim=3")):
        with pytest.raises(ValueError, match=f"^{re.escape(f'{op}: {name} must be float32 [{sizes}]; got float32 (10, 4)')}$"):
            call(table, sparse)
    if prefix:
        with pytest.raises(TypeError, match=rf"^{op}: sparse must be SparseRows \(from embedding_backward\); got ndarray$"):
            call(table, table)


def test_sparse_rows_may_be_of_any_integers_and_strided(table):
    wide = np.arange(16, dtype=np.float32).reshape(2, 8)
    expected = table.copy()
    expected[[2, 5]] += wide[:, ::2]
    for rows in (np.array([2, 5], np.int32), np.array([2, 0, 5, 0])[::2], [2, 5]):
        dense = table.copy()
        fm.SparseRows(rows, wide[:, ::2], 10).add_to(dense)
        np.testing.assert_array_equal(dense, expected)


def test_cosine_similarity(rng):
    a, b = rng.standard_normal((2, 7, 5), dtype=np.float32)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(fm.cosine_similarity(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(fm.cosine_similarity(a, a), 1, rtol=1e-6)
    np.testing.assert_allclose(fm.cosine_similarity(a, -3 * a[0])[0], -1, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 3e38])
def test_directions_of_very_long_and_very_short_vectors(rng, size):
    a, b = (rng.uniform(-1, 1, (4, 5)).astype(np.float32) for _ in range(2))
    expected, large = fm.cosine_similarity(a, b), (a * np.float32(size)).astype(np.float32)
    np.testing.assert_allclose(fm.cosine_similarity(large, b), expected, atol=1e-5)
    ids, similarities = fm.nearest(large, large[2], 4)
    assert ids.tolist() == fm.nearest(a, a[2], 4)[0].tolist()
    assert similarities[0] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="holds a zero vector"):
        fm.cosine_similarity(large, np.zeros(5, np.float32))


def test_nearest_finds_itself_first_and_breaks_ties_by_id(table):
    table[6] = 2 * table[3]
    ids, similarities = fm.nearest(table, table[3], 3)
    assert ids[:2].tolist() == [3, 6]
    np.testing.assert_allclose(similarities[:2], 1, rtol=1e-6)
    assert similarities[2] < 1


def test_the_gradient_may_lie_in_memory_of_the_caller(rng):
    d_out, ids = rng.standard_normal((2, 3, 4)).astype(np.float32), np.array([[5, 1, 5], [0, 1, 5]])
    values = np.full((8, 4), np.nan, np.float32)
    sparse = fm.embedding_backward(d_out, ids, 7, values=values)
    assert np.shares_memory(sparse.values, values) and sparse.rows.tolist() == [0, 1, 5]
    np.testing.assert_array_equal(sparse.values, fm.embedding_backward(d_out, ids, 7).values)
    assert np.isnan(values[3:]).all()
    with pytest.raises(ValueError, match=r"^embedding_backward: values must have a row for each of 6 ids; got \(5, 4\)$"):
        fm.embedding_backward(d_out, ids, 7, values=values[:5])
