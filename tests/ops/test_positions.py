"""The face of positions, and what positions are for: telling one order of tokens from another."""

import re

import numpy as np
import pytest

import fastmixer as fm


def test_sinusoids_are_those_of_the_paper():
    table = fm.sinusoidal_table(50, 8)
    for position, pair in ((0, 0), (7, 1), (49, 3)):
        angle = position / 10000 ** (2 * pair / 8)
        np.testing.assert_allclose(table[position, 2 * pair : 2 * pair + 2], [np.sin(angle), np.cos(angle)], rtol=1e-6)


def test_rotation_depends_on_distance_only(rng):
    """q.k after rotation is the same for every pair of positions that are equally far apart."""
    q, k = rng.standard_normal((2, 1, 1, 1, 16), dtype=np.float32)
    cos, sin = fm.rotary_tables(64, 16)

    def score(i, j):
        return float((fm.rotate(q, cos, sin, np.array([i])) * fm.rotate(k, cos, sin, np.array([j]))).sum())

    assert abs(score(3, 10) - score(40, 47)) < 1e-4
    assert abs(score(3, 10) - score(3, 11)) > 1e-3


def test_rotation_turns_back(rng):
    x = rng.standard_normal((2, 3, 20, 10), dtype=np.float32)
    cos, sin = fm.rotary_tables(20, 10)
    np.testing.assert_allclose(fm.rotate(fm.rotate(x, cos, sin), cos, sin, inverse=True), x, atol=1e-6)


def attend(x, positions):
    """One attention over x: float32 [time, dim], with positions "none", "added" or "rotary"."""
    time, dim = x.shape
    if positions == "added":
        x = fm.add_positions(x.copy(), fm.sinusoidal_table(time, dim), np.arange(time))
    q = k = v = np.ascontiguousarray(x[None, None])
    if positions == "rotary":
        cos, sin = fm.rotary_tables(time, dim)
        q, k = fm.rotate(q, cos, sin), fm.rotate(k, cos, sin)
    return fm.attention(q, k, v)[0, 0]


@pytest.mark.parametrize(("positions", "same"), [("none", True), ("added", False), ("rotary", False)])
def test_without_positions_a_permuted_input_gives_permuted_outputs(rng, positions, same):
    x, order = rng.standard_normal((9, 16), dtype=np.float32), rng.permutation(9)
    difference = np.abs(attend(x[order], positions) - attend(x, positions)[order]).max()
    assert (difference < 1e-5) == same


def test_positions_may_be_a_list(rng):
    x, tables = rng.standard_normal((2, 1, 3, 4), dtype=np.float32), fm.rotary_tables(9, 4)
    expected = fm.rotate(x, *tables, np.array([4, 0, 8]))
    np.testing.assert_array_equal(fm.rotate(x, *tables, [4, 0, 8]), expected)
    np.testing.assert_array_equal(fm.rotate(x, *tables, [[4, 0, 8], (4, 0, 8)]), expected)


def test_factors_may_be_an_array_and_divide_the_frequencies():
    cos, sin = fm.rotary_tables(5, 4, factors=np.array([1.0, 4.0], np.float32), magnitude=2)
    np.testing.assert_allclose(cos[:, 1], 2 * np.cos(np.arange(5) / 400), rtol=1e-6)
    np.testing.assert_allclose(sin[:, 0], 2 * np.sin(np.arange(5)), rtol=1e-6)


X = np.zeros((1, 1, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fm.sinusoidal_table(2.5, 4), TypeError, "sinusoidal_table: context must be an integer; got float"),
        (lambda: fm.sinusoidal_table(2, 4.0), TypeError, "sinusoidal_table: dim must be an integer; got float"),
        (lambda: fm.rotary_tables(4.5, 8), TypeError, "rotary_tables: context must be an integer; got float"),
        (lambda: fm.rotary_tables(4, 8.0), TypeError, "rotary_tables: head_dim must be an integer; got float"),
        (lambda: fm.rotary_tables(4, 4, magnitude="x"), TypeError, "rotary_tables: magnitude must be a number; got str"),
        (lambda: fm.rotary_tables(4, 4, factors=[0, 1]), ValueError, "rotary_tables: factors[0] must be > 0; got 0"),
        (lambda: fm.rotary_tables(4, 4, factors=[1, np.nan]), ValueError, "rotary_tables: factors[1] must be > 0; got nan"),
        (lambda: fm.rotary_tables(4, 4, factors=["1", 1]), TypeError, "rotary_tables: factors[0] must be a number; got str"),
        (lambda: fm.rotary_tables(4, 4, factors=[1]), ValueError, "rotary_tables: factors must be head_dim / 2 = 2 numbers; got 1"),
        (lambda: fm.rotary_tables(4, 4, factors=2.0), TypeError, "rotary_tables: factors must be a sequence of numbers; got float"),
        (lambda: fm.rotate(X, *fm.rotary_tables(9, 4), [0, 1]), ValueError, "rotate: positions must be integer [batch=1, time=3]; got int64 (1, 2)"),
        (lambda: fm.rotate(X, *fm.rotary_tables(9, 4), [[0, 1], [2]]), ValueError, "rotate: positions must be lists of one length; got different lengths"),
        (lambda: fm.rotate(X, *fm.rotary_tables(9, 4), [0.0, 1.0, 2.0]), TypeError, "rotate: positions must be integer [batch=1, time=3]; got float64 (1, 3)"),
        (lambda: fm.rotate(X, *fm.rotary_tables(9, 4), "012"), TypeError, "rotate: positions must be a NumPy array, integer [batch, time]; got str"),
        (lambda: fm.sinusoidal_table(4, 7), ValueError, "sinusoidal_table: dim must be even; got 7"),
        (lambda: fm.rotary_tables(4, 5), ValueError, "rotary_tables: head_dim must be even; got 5"),
        (lambda: fm.rotary_tables(4, 4, base=0), ValueError, "rotary_tables: base must be > 0; got 0"),
        (
            lambda: fm.rotate(np.zeros((1, 1, 3, 4), np.float32), *fm.rotary_tables(2, 4)),
            IndexError, "rotate: positions[0, 2] = 2 is out of range; expected 0..1",
        ),
        (
            lambda: fm.rotate(np.zeros((1, 1, 3, 4), np.float32), *fm.rotary_tables(9, 6)),
            ValueError, "rotate: cos must be float32 [context, half=2]; got float32 (9, 3)",
        ),
        (
            lambda: fm.add_positions(np.zeros((2, 4), np.float32), np.zeros((5, 4), np.float32), np.array([0, 5])),
            IndexError, "add_positions: positions[1] = 5 is out of range; expected 0..4",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call()
