"""Embedding kernels: every implementation against the float64 reference, over odd sizes and repeated ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_float64

from fastmixer.kernels import select, threads
from fastmixer.kernels.embedding import reference

SIZES = [1, 7, 8, 15, 16, 17, 31, 33, 127]


def group(kernel, ids, num_rows):
    """(order, starts, rows) as the kernel groups ids."""
    order, rows, starts = np.full(len(ids), -9), np.full(len(ids), -9), np.full(len(ids) + 1, -9)
    touched = kernel.group_by_row(ids, num_rows, order, starts, rows)
    return order, starts[: touched + 1], rows[:touched]


@pytest.mark.parametrize("dim", SIZES)
def test_gather_copies_rows(kernel, rng, dim):
    table, ids = rng.standard_normal((31, dim), dtype=np.float32), rng.integers(0, 31, 200)
    out = np.full((200, dim), np.nan, np.float32)
    kernel.gather(table, ids, out)
    np.testing.assert_array_equal(out, table[ids])


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 5000), max_size=300), data=st.data())
@pytest.mark.parametrize("name", select.implementations("embedding"))
def test_grouping_is_stable_and_complete(name, ids, data):
    kernel = select.kernel_module("embedding", name)
    num_rows = data.draw(st.integers(max(ids, default=0) + 1, 60_000))
    ids = np.array(ids, np.int64)
    order, starts, rows = group(kernel, ids, num_rows)
    np.testing.assert_array_equal(order, np.argsort(ids, kind="stable"))
    np.testing.assert_array_equal(rows, np.unique(ids))
    np.testing.assert_array_equal(np.repeat(rows, np.diff(starts)), ids[order])


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("count", [1, 8, 127, 600])
def test_scatter_gradient_matches_float64(kernel, rng, count, dim):
    ids, d_out = rng.integers(0, 40, count), rng.standard_normal((count, dim), dtype=np.float32)
    order, starts, rows = group(kernel, ids, 40)
    d_rows = np.full((len(rows), dim), np.nan, np.float32)
    kernel.scatter_gradient(d_out, order, starts, d_rows)
    expected = [np.empty((len(rows), dim), dtype) for dtype in (np.float32, np.float64)]
    for out in expected:
        reference.scatter_gradient(d_out.astype(out.dtype), order, starts, out)
    assert_close_to_float64(d_rows, *expected, gradient=True)


def test_scatter_gradient_equals_add_at(kernel, rng):
    ids, d_out = rng.integers(0, 50, 400), rng.standard_normal((400, 24), dtype=np.float32)
    order, starts, rows = group(kernel, ids, 50)
    d_rows = np.empty((len(rows), 24), np.float32)
    kernel.scatter_gradient(d_out, order, starts, d_rows)
    expected = np.zeros((50, 24))
    np.add.at(expected, ids, d_out.astype(np.float64))
    np.testing.assert_allclose(d_rows, expected[rows], atol=2e-5)


def test_scatter_gradient_has_the_same_bits_on_any_number_of_threads(kernel, rng):
    ids, d_out = rng.integers(0, 500, 3000), rng.standard_normal((3000, 33), dtype=np.float32)
    order, starts, rows = group(kernel, ids, 500)
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        d_rows = np.full((len(rows), 33), np.nan, np.float32)
        kernel.scatter_gradient(d_out, order, starts, d_rows)
        results.append(d_rows)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


@pytest.mark.parametrize("dim", SIZES)
def test_row_updates_match_float64_and_touch_no_other_row(kernel, rng, dim):
    rows = np.array([0, 3, 4, 19])
    d_rows = rng.standard_normal((4, dim), dtype=np.float32)
    table, m = (rng.standard_normal((20, dim), dtype=np.float32) for _ in range(2))
    v, accumulator = np.abs(m) + np.float32(0.1), np.abs(rng.standard_normal(20, dtype=np.float32))
    updates = {
        "add_rows": lambda k, t, d: k.add_rows(t["table"], rows, d),
        "sgd_rows": lambda k, t, d: k.sgd_rows(t["table"], rows, d, 0.1),
        "adagrad_rows": lambda k, t, d: k.adagrad_rows(t["table"], t["accumulator"], rows, d, 0.1, 1e-6),
        "adamw_rows": lambda k, t, d: k.adamw_rows(t["table"], t["m"], t["v"], rows, d, 1e-2, 0.9, 0.95, 1e-8, 0.1, 7),
    }
    start = {"table": table, "m": m, "v": v, "accumulator": accumulator}
    others = np.setdiff1d(np.arange(20), rows)
    for name, update in updates.items():
        found = {key: value.copy() for key, value in start.items()}
        update(kernel, found, d_rows)
        expected = []
        for dtype in (np.float32, np.float64):
            state = {key: value.astype(dtype) for key, value in start.items()}
            update(reference, state, d_rows.astype(dtype))
            expected.append(state)
        for key in start:
            assert_close_to_float64(found[key], expected[0][key], expected[1][key], name=f"{name}: {key}")
            np.testing.assert_array_equal(found[key][others], start[key][others])


def test_the_textbook_row(kernel):
    table = np.array([[1, 1, 1, 1], [0.50, -0.60, 0.00, 0.70], [2, 2, 2, 2]], np.float32)
    kernel.sgd_rows(table, np.array([1]), np.array([[0.02, -0.01, 0.05, -0.03]], np.float32), 0.1)
    np.testing.assert_allclose(table[1], [0.498, -0.599, -0.005, 0.703], atol=1e-7)
    np.testing.assert_array_equal(table[[0, 2]], [[1, 1, 1, 1], [2, 2, 2, 2]])
