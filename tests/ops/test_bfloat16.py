"""The faces that take rounded weights: near the float32 results, the same with and without views, errors by name."""

import re

import numpy as np
import pytest

from fastmixer.kernels.bfloat16 import from_panels, round_bfloat16
from fastmixer.ops.bfloat16 import RoundedWeight, round_weight, rounded_bytes
from fastmixer.ops.cross_entropy import head_loss
from fastmixer.ops.dropout import dropout
from fastmixer.ops.feedforward import FeedForwardRounded, FeedForwardSaved, feedforward, feedforward_backward
from fastmixer.ops.matmul import linear, linear_backward
from fastmixer.ops.optimizer import adamw_step

SHARE = 0.02  # of the largest number of a result: bfloat16 keeps 8 bits; measured 0.01


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_near(found, expected, name=""):
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert 0 < difference <= SHARE * np.abs(expected).max(), name


def test_round_weight_and_its_two_layouts(rng):
    weight = normal(rng, 7, 10)[:, ::2]  # strided
    rounded = round_weight(weight)
    assert rounded.over_rows.shape == (1, 4, 48) and rounded.over_columns.shape == (1, 3, 48)
    np.testing.assert_array_equal(from_panels(rounded.over_rows, 7, 5), round_bfloat16(weight))
    np.testing.assert_array_equal(from_panels(rounded.over_columns, 5, 7), round_bfloat16(weight).T)
    again = round_weight(2 * weight, rounded)
    assert again.over_rows is rounded.over_rows
    np.testing.assert_array_equal(from_panels(rounded.over_columns, 5, 7), 2 * round_bfloat16(weight).T)
    assert round_weight(np.zeros((0, 4), np.float32)).over_columns.shape == (0, 2, 48)
    assert rounded_bytes(7, 50) == sum(array.nbytes for array in RoundedWeight.empty(7, 50))


@pytest.mark.parametrize("transpose", [False, True])
def test_linear_and_its_gradients(rng, transpose):
    x, d_out = normal(rng, 2, 9, 33), normal(rng, 2, 9, 20)
    weight, bias = normal(rng, *((20, 33) if transpose else (33, 20))), normal(rng, 20)
    rounded = round_weight(weight)
    options = {"activation": "silu", "transpose_weight": transpose}
    assert_near(linear(x, weight, bias, rounded=rounded, **options), linear(x, weight, bias, **options))
    dropped = linear(x, weight, bias, rounded=rounded, dropout=0.5, seed=9, **options)
    np.testing.assert_array_equal(dropped, dropout(linear(x, weight, bias, rounded=rounded, **options), 0.5, 9))
    results = []
    for how in (rounded, None):
        d_weight, d_bias = np.ones_like(weight), np.ones_like(bias)
        d_x = linear_backward(d_out, x, weight, d_weight, d_bias, transpose_weight=transpose, rounded=how)
        results.append((d_x, d_weight))
        np.testing.assert_allclose(d_bias, 1 + d_out.sum(axis=(0, 1)), rtol=1e-5, atol=1e-5)
    for found, expected, name in zip(*results, ("d_x", "d_weight"), strict=True):
        assert_near(found, expected, name)


@pytest.mark.parametrize("gated", [False, True])
def test_feedforward_and_its_gradients(rng, gated):
    x, d_out, residual = (normal(rng, 11, 16) for _ in range(3))
    w_up, w_down, w_gate = normal(rng, 16, 40), normal(rng, 40, 16), normal(rng, 16, 40) if gated else None
    b_up, b_down, b_gate = normal(rng, 40), normal(rng, 16), normal(rng, 40) if gated else None
    rounded = FeedForwardRounded(round_weight(w_up), round_weight(w_down), round_weight(w_gate) if gated else None)
    results = []
    for how in (rounded, None):
        out, saved = feedforward(
            x, w_up, b_up, w_down, b_down, "gelu_tanh", w_gate=w_gate, b_gate=b_gate, residual=residual, rounded=how,
            return_saved=True,
        )  # fmt: skip
        names = ["d_w_up", "d_b_up", "d_w_down", "d_b_down", *(["d_w_gate", "d_b_gate"] if gated else [])]
        weights = [w_up, b_up, w_down, b_down, w_gate, b_gate]
        gradients = {name: np.zeros_like(weight) for name, weight in zip(names, weights, strict=False)}
        d_x = feedforward_backward(d_out, x, w_up, w_down, saved, "gelu_tanh", w_gate=w_gate, rounded=how, **gradients)
        results.append({"out": out, "d_x": d_x, **gradients})
    for name, expected in results[1].items():
        if name == "d_b_down":  # the sum of d_out, in float32 either way
            np.testing.assert_array_equal(results[0][name], expected)
        else:
            assert_near(results[0][name], expected, name)


def test_head_loss(rng):
    x, weight, targets = normal(rng, 10, 24), normal(rng, 51, 24), rng.integers(0, 51, 10)
    results = []
    for how in (round_weight(weight), None):
        d_x, d_weight = np.empty_like(x), np.zeros_like(weight)
        logits = np.full((4, 51), np.nan, np.float32)
        loss = head_loss(x, weight, targets, d_x=d_x, d_weight=d_weight, logits=logits, rounded=how)
        assert np.isfinite(logits).all()
        results.append((loss, d_x, d_weight))
    assert results[0][0] == pytest.approx(results[1][0], abs=0.02) and results[0][0] != results[1][0]
    for found, expected in zip(results[0][1:], results[1][1:], strict=True):
        assert_near(found, expected)
    assert results[1][0] == pytest.approx(head_loss(x, weight, targets), rel=1e-6)


def test_adamw_step_of_a_matrix(rng):
    p, g = normal(rng, 5, 6), normal(rng, 5, 6)
    flat, m, v = p.ravel().copy(), np.zeros(30, np.float32), np.zeros(30, np.float32)
    rounded = RoundedWeight.empty(5, 6)
    adamw_step(p, np.zeros_like(p), np.zeros_like(p), g, learning_rate=0.1, step=1, rounded=rounded)
    adamw_step(flat, m, v, g.ravel(), learning_rate=0.1, step=1)
    assert np.array_equal(p.ravel(), flat)
    np.testing.assert_array_equal(from_panels(rounded.over_rows, 5, 6), round_bfloat16(p))


X, WEIGHT = np.zeros((3, 4), np.float32), np.zeros((4, 6), np.float32)
SAVED = FeedForwardSaved(np.zeros((3, 6), np.float32), np.zeros((3, 6), np.float32))
ROUNDED, OTHER = round_weight(WEIGHT), round_weight(np.zeros((6, 4), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: round_weight(X.astype(np.float64)), TypeError, "round_weight: weight must be float32 [rows, columns]; got float64 (3, 4)"),
        (lambda: linear(X, WEIGHT, rounded=WEIGHT), TypeError, "linear: rounded must be a RoundedWeight; got ndarray"),
        (lambda: linear(X, WEIGHT, rounded=OTHER), ValueError, "linear: rounded.over_rows must be C-contiguous uint32 (1, 2, 48); got uint32 (1, 3, 48)"),
        (lambda: linear_backward(np.zeros((3, 6), np.float32), X, WEIGHT, None, rounded=OTHER), ValueError, "linear_backward: rounded.over_rows must be C-contiguous uint32 (1, 2, 48); got uint32 (1, 3, 48)"),
        (lambda: head_loss(X, WEIGHT.T.copy(), np.zeros(3, int), rounded=ROUNDED), ValueError, "head_loss: rounded.over_rows must be C-contiguous uint32 (1, 3, 48); got uint32 (1, 2, 48)"),
        (lambda: head_loss(X, WEIGHT.T.copy(), np.zeros(3, int), logits=np.zeros((0, 6), np.float32)), ValueError, "head_loss: logits must have at least one row; got (0, 6)"),
        (lambda: feedforward(X, WEIGHT, None, WEIGHT.T.copy(), None, w_gate=WEIGHT, rounded=FeedForwardRounded(ROUNDED, OTHER)), ValueError, "feedforward: rounded.gate must be given with w_gate; got None"),
        (lambda: feedforward(X, WEIGHT, None, WEIGHT.T.copy(), None, w_gate=WEIGHT, rounded=FeedForwardRounded(ROUNDED, OTHER, OTHER)), ValueError, "feedforward: rounded.gate.over_rows must be C-contiguous uint32 (1, 2, 48); got uint32 (1, 3, 48)"),
        (lambda: feedforward(X, WEIGHT, None, WEIGHT.T.copy(), None, rounded=FeedForwardRounded(ROUNDED, OTHER, ROUNDED)), ValueError, "feedforward: rounded.gate is of w_gate, which must be given; got None"),
        (lambda: feedforward_backward(X, X, WEIGHT, WEIGHT.T.copy(), SAVED, rounded=FeedForwardRounded(ROUNDED, OTHER, ROUNDED)), ValueError, "feedforward_backward: rounded.gate is of w_gate, which must be given; got None"),
        (lambda: feedforward(X, WEIGHT, None, WEIGHT.T.copy(), None, rounded=ROUNDED), TypeError, "feedforward: rounded must be FeedForwardRounded; got RoundedWeight"),
    ],
)  # fmt: skip
def test_bad_input(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call()


