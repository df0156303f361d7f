"""The face of feedforward: leading axes, saved arrays, strided and read-only inputs, clear errors."""

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.kernels.select import use_kernels
from fastmixer.ops.dropout import dropout
from fastmixer.ops.feedforward import FeedForwardSaved, feedforward, feedforward_backward

DIM, HIDDEN = 6, 10


@pytest.fixture
def layer(rng):
    """x, w_up, b_up, w_down, b_down, w_gate, b_gate."""
    shapes = [(2, 3, DIM), (DIM, HIDDEN), (HIDDEN,), (HIDDEN, DIM), (DIM,), (DIM, HIDDEN), (HIDDEN,)]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def test_plain_by_its_formula(layer):
    x, w_up, b_up, w_down, b_down, *_ = layer
    out = fm.feedforward(x, w_up, b_up, w_down, b_down, "relu", residual=x)
    assert np.allclose(out, np.maximum(x @ w_up + b_up, 0) @ w_down + b_down + x, atol=1e-5)
    without = feedforward(x, w_up, None, w_down, None, activation="relu")
    assert np.allclose(without, np.maximum(x @ w_up, 0) @ w_down, atol=1e-5)


def test_gated_by_its_formula(layer):
    x, w_up, b_up, w_down, b_down, w_gate, b_gate = layer
    out, saved = feedforward(x, w_up, b_up, w_down, b_down, "silu", w_gate=w_gate, b_gate=b_gate, return_saved=True)
    gate = x @ w_gate + b_gate
    hidden = gate / (1 + np.exp(-gate)) * (x @ w_up + b_up)
    assert np.allclose(out, hidden @ w_down + b_down, atol=1e-5)
    assert np.allclose(saved.hidden, hidden.reshape(6, HIDDEN), atol=1e-5)
    assert np.allclose(saved.gate_pre, gate.reshape(6, HIDDEN), atol=1e-5)
    weights = {"w_gate": w_gate, "b_gate": b_gate}
    dropped = feedforward(x, w_up, b_up, w_down, b_down, "silu", **weights, residual=x, dropout=0.5, seed=9)
    assert np.array_equal(dropped, dropout(out, 0.5, 9, residual=x))
    with pytest.raises(ValueError, match="feedforward: dropout must be"):
        feedforward(x, w_up, b_up, w_down, b_down, dropout=-0.1)


def test_the_default_activation_is_the_exact_gelu(layer):
    x, *weights = layer[:5]
    assert np.array_equal(feedforward(x, *weights), feedforward(x, *weights, "gelu"))
    assert not np.array_equal(feedforward(x, *weights), feedforward(x, *weights, "gelu_tanh"))


@pytest.mark.parametrize("gated", [False, True])
def test_tokens_do_not_see_each_other(layer, gated):
    x, w_up, b_up, w_down, b_down, w_gate, b_gate = layer
    keywords = {"w_gate": w_gate, "b_gate": b_gate} if gated else {}
    whole = feedforward(x, w_up, b_up, w_down, b_down, **keywords)
    alone = feedforward(x[1, 2], w_up, b_up, w_down, b_down, **keywords)
    assert np.allclose(alone, whole[1, 2], atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_accumulate_and_arrays_are_used_again(layer, gated):
    x, w_up, b_up, w_down, b_down, w_gate, b_gate = layer
    gate = {"w_gate": w_gate, "b_gate": b_gate} if gated else {}
    out, saved = feedforward(x, w_up, b_up, w_down, b_down, **gate, return_saved=True)
    again = feedforward(x, w_up, b_up, w_down, b_down, **gate, saved=saved)
    assert np.array_equal(out, again)
    gradients = {"d_w_up": w_up, "d_b_up": b_up, "d_w_down": w_down, "d_b_down": b_down}
    if gated:
        gradients |= {"d_w_gate": w_gate, "d_b_gate": b_gate}
    gradients = {name: np.zeros_like(like) for name, like in gradients.items()}
    gate.pop("b_gate", None)
    d_x = feedforward_backward(out, x, w_up, w_down, saved, **gate, **gradients)
    once = {name: array.copy() for name, array in gradients.items()}
    scratch = FeedForwardSaved(*(np.full((6, HIDDEN), np.nan, np.float32) for _ in range(3)))
    target = np.full_like(x, np.nan)
    result = feedforward_backward(out, x, w_up, w_down, saved, **gate, **gradients, d_x=target, scratch=scratch)
    assert result is target and np.array_equal(result, d_x)
    for name, array in gradients.items():
        assert np.allclose(array, 2 * once[name], rtol=1e-5, atol=1e-5), name


def test_strided_and_read_only_inputs(layer):
    x, w_up, b_up, w_down, b_down, *_ = layer
    strided = x.transpose(1, 0, 2)
    strided.flags.writeable = False
    turned = np.asfortranarray(w_up)
    found = feedforward(strided, turned, b_up, w_down, b_down)
    assert np.array_equal(found, feedforward(strided.copy(), w_up, b_up, w_down, b_down))


def test_no_tokens(layer):
    _, *weights = layer[:5]
    empty = np.empty((0, DIM), np.float32)
    out, saved = feedforward(empty, *weights, return_saved=True)
    d_w_up = np.zeros((DIM, HIDDEN), np.float32)
    assert out.shape == feedforward_backward(out, empty, weights[0], weights[2], saved, d_w_up=d_w_up).shape
    assert (d_w_up == 0).all()


def test_float64_on_the_reference(layer):
    wide = [array.astype(np.float64) for array in layer[:5]]
    with use_kernels("reference"):
        assert feedforward(*wide).dtype == np.float64


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"x": np.ones((2, 5), np.float32)}, ValueError, "w_up must be float32 [dim=5, hidden]; got float32 (6, 10)"),
        ({"b_up": np.ones(9, np.float32)}, ValueError, "b_up must be float32 [hidden=10]; got float32 (9,)"),
        ({"w_down": np.ones((10, 6))}, TypeError, "w_down must be float32 [hidden=10, dim=6]; got float64 (10, 6)"),
        ({"b_gate": np.ones(10, np.float32)}, ValueError, "b_gate is the bias of w_gate, which must be given; got None"),
        (
            {"residual": np.ones((2, 6), np.float32)}, ValueError,
            "residual must be float32 [axis_0=2, axis_1=3, dim=6]; got float32 (2, 6)",
        ),
        (
            {"activation": 3}, ValueError,
            "activation must be one of 'none', 'gelu', 'gelu_tanh', 'silu', 'relu'; got 3",
        ),
        (
            {"activation": []}, ValueError,
            "activation must be one of 'none', 'gelu', 'gelu_tanh', 'silu', 'relu'; got []",
        ),
        ({"x": [[1.0], [1.0, 2.0]]}, TypeError, "x must be a NumPy array, float32 [dim]; got list"),
    ],
)  # fmt: skip
def test_errors(layer, change, error, text):
    arguments = dict(zip(("x", "w_up", "b_up", "w_down", "b_down"), layer[:5], strict=True)) | change
    with pytest.raises(error) as caught:
        feedforward(**arguments)
    assert str(caught.value) == "feedforward: " + text


def test_a_plain_layer_leaves_gate_pre_alone(layer):
    x, *weights = layer[:5]
    up, hidden = np.empty((2, 6, HIDDEN), np.float32)
    expected = feedforward(x, *weights)
    found, saved = feedforward(x, *weights, saved=FeedForwardSaved(up, hidden, np.empty(3)), return_saved=True)
    assert np.array_equal(found, expected) and saved.gate_pre is None


def test_out_is_not_x(layer):
    x, *weights = layer[:5]
    with pytest.raises(ValueError, match="feedforward: out is written while x is read"):
        feedforward(x, *weights, out=x)
