"""Feedforward, plain and gated: every implementation against the float64 reference, gradients against differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_float64, assert_gradient_matches, central_differences

from fastmixer.kernels import threads
from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.feedforward import reference
from fastmixer.kernels.select import kernel_module

SIZES = [1, 7, 8, 15, 16, 17, 31, 32, 33, 127]
SUM_ULP = 16.0  # two sums deep


def inputs(tokens, dim, hidden, gated, biases, residual, scale=1.0):
    """Arguments of forward by name, and d_out: float32, read-only; None where not wanted."""
    rng = np.random.default_rng(tokens * 10007 + dim * 101 + hidden)

    def normal(*shape):
        array = (scale * rng.standard_normal(shape)).astype(np.float32)
        array.flags.writeable = False
        return array

    arrays = {
        "x": normal(tokens, dim),
        "w_gate": normal(dim, hidden) if gated else None,
        "b_gate": normal(hidden) if gated and biases else None,
        "w_up": normal(dim, hidden),
        "b_up": normal(hidden) if biases else None,
        "w_down": normal(hidden, dim),
        "b_down": normal(dim) if biases else None,
        "residual": normal(tokens, dim) if residual else None,
    }
    return arrays, normal(tokens, dim)


def run(kernel, arrays, d_out, activation):
    """All that forward and backward write, by name; parameter gradients start at 1."""
    tokens, hidden = len(d_out), arrays["w_up"].shape[1]

    def poisoned(*shape):
        return np.full(shape, np.nan, d_out.dtype)

    gated = arrays["w_gate"] is not None
    out, up, hid = poisoned(*d_out.shape), poisoned(tokens, hidden), poisoned(tokens, hidden)
    gate_pre = poisoned(tokens, hidden) if gated else None
    kernel.feedforward_forward(*arrays.values(), activation, gate_pre, up, hid, out)
    d_x, d_up, d_gate_pre = poisoned(*d_out.shape), poisoned(tokens, hidden), poisoned(tokens, hidden)
    names = ("w_gate", "b_gate", "w_up", "b_up", "w_down", "b_down")
    gradients = {"d_" + name: None if arrays[name] is None else np.ones_like(arrays[name]) for name in names}
    kernel.feedforward_backward(
        d_out, arrays["x"], arrays["w_gate"], arrays["w_up"], arrays["w_down"], activation, gate_pre, up, hid,
        d_gate_pre if gated else None, d_up, d_x, *gradients.values(),
    )  # fmt: skip
    found = {"out": out, "up": up, "hidden": hid, "d_x": d_x, "d_up": d_up, **gradients}
    if gated:
        found |= {"gate_pre": gate_pre, "d_gate_pre": d_gate_pre}
    return {name: array for name, array in found.items() if array is not None}


def in_float64(arrays):
    return {name: None if array is None else array.astype(np.float64) for name, array in arrays.items()}


def assert_equals_reference(kernel, arrays, d_out, activation):
    found, plain = run(kernel, arrays, d_out, activation), run(reference, arrays, d_out, activation)
    truth = run(reference, in_float64(arrays), d_out.astype(np.float64), activation)
    # A bias gradient is a sum over tokens, which may come out much smaller than what is added up.
    summed = {"d_b_down": d_out, "d_b_up": truth["d_up"], "d_b_gate": truth.get("d_gate_pre")}
    for name in truth:
        terms = 0.0 if summed.get(name) is None else np.sqrt(len(d_out)) * np.abs(summed[name]).max(initial=0.0)
        assert_close_to_float64(
            found[name], plain[name], truth[name], gradient=name.startswith("d_"), ulp=SUM_ULP, terms=terms, name=name
        )


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.sampled_from([0, *SIZES]), dim=st.sampled_from(SIZES), hidden=st.sampled_from(SIZES),
    gated=st.booleans(), biases=st.booleans(), residual=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS.values())),
)  # fmt: skip
def test_equals_the_reference(implementation, tokens, dim, hidden, gated, biases, residual, activation):
    arrays, d_out = inputs(tokens, dim, hidden, gated, biases, residual)
    assert_equals_reference(kernel_module("feedforward", implementation), arrays, d_out, activation)


@pytest.mark.parametrize("gated", [False, True])
def test_threads_do_not_show_in_the_bits(kernel, gated):
    arrays, d_out = inputs(130, 96, 384, gated, True, True, scale=0.3)
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        results.append(run(kernel, arrays, d_out, ACTIVATIONS["gelu_tanh"]))
    for other in results[1:]:
        for name in other:
            assert np.array_equal(results[0][name], other[name]), name
    assert_equals_reference(kernel, arrays, d_out, ACTIVATIONS["gelu_tanh"])


@pytest.mark.parametrize("gated", [False, True])
def test_up_and_gate_pre_may_be_left_out(kernel, gated):
    arrays, d_out = inputs(9, 20, 50, gated, True, True)
    expected = run(kernel, arrays, d_out, ACTIVATIONS["silu"])
    hidden, out = np.empty((9, 50), np.float32), np.empty((9, 20), np.float32)
    up = np.empty((9, 50), np.float32) if gated else None
    kernel.feedforward_forward(*arrays.values(), ACTIVATIONS["silu"], None, up, hidden, out)
    assert np.array_equal(out, expected["out"])


@pytest.mark.parametrize("gated", [False, True])
def test_dropout_has_the_bits_of_dropout_after_it(kernel, gated):
    arrays, _ = inputs(29, 52, 70, gated, True, True)
    residual, results = arrays.pop("residual"), []
    for added, drawn in ((residual, (0.4, 2**63 + 5)), (None, ())):
        gate_pre, up, hidden, out = (np.full((29, n), np.nan, np.float32) for n in (70, 70, 70, 52))
        gate_pre = gate_pre if gated else None
        kernel.feedforward_forward(*arrays.values(), added, ACTIVATIONS["silu"], gate_pre, up, hidden, out, *drawn)
        results.append(out)
    found, expected = results
    flat = expected.reshape(-1)
    kernel_module("dropout", "reference").dropout_forward(flat, 0.4, 2**63 + 5, residual.reshape(-1), flat)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("gated", [False, True])
def test_unwanted_gradients_may_be_left_out(kernel, gated):
    arrays, d_out = inputs(9, 20, 50, gated, True, False)
    expected = run(kernel, arrays, d_out, ACTIVATIONS["gelu"])
    d_x, d_up, d_gate_pre = (np.empty_like(expected[name]) for name in ("d_x", "d_up", "d_up"))
    kernel.feedforward_backward(
        d_out, arrays["x"], arrays["w_gate"], arrays["w_up"], arrays["w_down"], ACTIVATIONS["gelu"],
        expected.get("gate_pre"), expected["up"], expected["hidden"], d_gate_pre if gated else None, d_up, d_x,
        None, None, None, None, None, None,
    )  # fmt: skip
    assert np.array_equal(d_x, expected["d_x"])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "none"])
def test_gradients_by_central_differences(gated, name):
    arrays, d_out = inputs(3, 4, 5, gated, True, True)
    arrays, d_out = in_float64(arrays), d_out.astype(np.float64)
    found = run(reference, arrays, d_out, ACTIVATIONS[name])

    def objective():
        return float((run(reference, arrays, d_out, ACTIVATIONS[name])["out"] * d_out).sum())

    for argument in ("x", "w_gate", "b_gate", "w_up", "b_up", "w_down", "b_down"):
        if arrays[argument] is not None:
            start = 0 if argument == "x" else 1
            numeric = central_differences(objective, arrays[argument])
            assert_gradient_matches(found["d_" + argument] - start, numeric, name=f"d_{argument}")
