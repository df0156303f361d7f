"""Matrix products and the linear layer: every implementation against the float64 reference, gradients against
differences, activations against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EPSILON, assert_close_to_float64, assert_gradient_matches, central_differences

from fastmixer.kernels import threads
from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.activations_reference import activate, derivative
from fastmixer.kernels.matmul import reference
from fastmixer.kernels.select import kernel_module

SIZES = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 48, 127]
DEPTHS = [*SIZES, 256, 300]  # past a block of k
size, depth, flag = st.sampled_from(SIZES), st.sampled_from(DEPTHS), st.booleans()
few = settings(deadline=None, max_examples=60)
# A sum of k products has an error of about sqrt(k) ulps of its terms, wherever the order of the sum leaves it.
SUM_ULP = 16.0
FAR_APART_ULP = 4.0  # of the sum of 90 terms' magnitudes


def normal(seed, *shape):
    """float32 [shape], read-only."""
    array = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    array.flags.writeable = False
    return array


def poisoned(*shape, dtype=np.float32):
    return np.full(shape, np.nan, dtype)


def in_float64(*arrays):
    return [array if array is None or np.isscalar(array) else array.astype(np.float64) for array in arrays]


# ---- matmul ----


def run_matmul(kernel, a, b, shape, transpose_a, transpose_b, accumulate):
    out = np.ones(shape, a.dtype) if accumulate else poisoned(*shape, dtype=a.dtype)
    kernel.matmul(a, b, out, transpose_a, transpose_b, accumulate)
    return out


def assert_matmul(kernel, m, n, k, transpose_a, transpose_b, accumulate):
    a = normal(1, *((k, m) if transpose_a else (m, k)))
    b = normal(2, *((n, k) if transpose_b else (k, n)))
    flags = (m, n), transpose_a, transpose_b, accumulate
    found, plain = run_matmul(kernel, a, b, *flags), run_matmul(reference, a, b, *flags)
    truth = run_matmul(reference, *in_float64(a, b), *flags)
    assert_close_to_float64(found, plain, truth, ulp=SUM_ULP)


@few
@given(m=size, n=size, k=depth, transpose_a=flag, transpose_b=flag, accumulate=flag)
def test_matmul(implementation, m, n, k, transpose_a, transpose_b, accumulate):
    assert_matmul(kernel_module("matmul", implementation), m, n, k, transpose_a, transpose_b, accumulate)


@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("m, n, k", [(1, 200, 700), (5, 1000, 70), (520, 100, 520), (1030, 49, 33), (9, 850, 513), (300, 90, 1600)])
def test_matmul_over_several_blocks(kernel, m, n, k, transpose_a, transpose_b):
    for accumulate in (False, True):
        assert_matmul(kernel, m, n, k, transpose_a, transpose_b, accumulate)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("rows", [20, 70, 300])  # few and many: kernels may split numbers where those are many
def test_infinities_and_nan_stay_in_their_row_and_column(kernel, rows, transpose_b):
    a, b = normal(1, rows, 40).copy(), np.abs(normal(2, 40, 60))
    a[3, 5], a[7, 0], a[9, 39], a[:, 2], b[2] = np.nan, np.inf, -np.inf, 0, 0.5
    a[11, 2], b[13, 4], a[:, 13] = 3.4e38, np.inf, np.abs(a[:, 13])
    with np.errstate(invalid="ignore"):
        out = run_matmul(kernel, a, np.ascontiguousarray(b.T) if transpose_b else b, (rows, 60), False, transpose_b, False)
        assert np.isnan(out[9, 4])  # -inf + inf
    assert np.isnan(out[3]).all() and np.isposinf(out[7]).all() and np.isneginf(np.delete(out[9], 4)).all()
    assert np.isposinf(np.delete(out[:, 4], [3, 9])).all()
    assert np.isfinite(np.delete(np.delete(out, [3, 7, 9], axis=0), 4, axis=1)).all()
    np.testing.assert_allclose(np.delete(out[11], 4), 1.7e38, rtol=4 * EPSILON)


@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (False, True), (True, False), (True, True)])
def test_numbers_of_any_size_keep_all_their_digits(kernel, transpose_a, transpose_b):
    """Errors are a few roundings of what is added up, however far apart its terms."""
    rng = np.random.default_rng(3)
    a, b = (np.ldexp(normal(seed, 90, 90), rng.integers(-45, 45, (90, 90))).astype(np.float32) for seed in (1, 2))
    out = run_matmul(kernel, a, b, (90, 90), transpose_a, transpose_b, False)
    left, right = a.T if transpose_a else a, b.T if transpose_b else b
    truth, terms = in_float64(left, right), in_float64(np.abs(left), np.abs(right))
    assert (np.abs(out - truth[0] @ truth[1]) / (terms[0] @ terms[1])).max() < FAR_APART_ULP * EPSILON


def test_nothing_beside_out_is_written(kernel):
    m, n, k = 13, 50, 21
    for transpose_b in (False, True):
        memory = np.full(m * n + 64, 7, np.float32)
        out = memory[32 : 32 + m * n].reshape(m, n)
        kernel.matmul(normal(1, m, k), normal(2, *((n, k) if transpose_b else (k, n))), out, False, transpose_b, False)
        assert (memory[:32] == 7).all() and (memory[-32:] == 7).all()


# ---- the linear layer ----


def linear_inputs(tokens, inputs, outputs, transpose_weight):
    weight = normal(2, *((outputs, inputs) if transpose_weight else (inputs, outputs)))
    return normal(1, tokens, inputs), weight, normal(3, outputs), normal(4, tokens, outputs), normal(5, tokens, outputs)


def run_linear(kernel, x, weight, bias, multiplier, residual, keep, transpose_weight, activation):
    outputs = weight.shape[0 if transpose_weight else 1]
    out = poisoned(len(x), outputs, dtype=x.dtype)
    pre_activation = poisoned(len(x), outputs, dtype=x.dtype) if keep else None
    kernel.linear_forward(x, weight, bias, multiplier, residual, pre_activation, out, transpose_weight, activation)
    return {"out": out, "pre_activation": pre_activation} if keep else {"out": out}


def assert_equal_to_reference(run, kernel, arrays, *flags, gradient=False):
    found, plain = run(kernel, *arrays, *flags), run(reference, *arrays, *flags)
    truth = run(reference, *in_float64(*arrays), *flags)
    for name in truth:
        # errors of the activation's input are passed on at the scale of the sums, not of what remains of them
        scale = max(1.0, np.abs(truth.get("pre_activation", truth[name])).max(initial=0))
        ulp = SUM_ULP * scale / max(np.abs(truth[name]).max(initial=0), 1e-30)
        assert_close_to_float64(found[name], plain[name], truth[name], gradient=gradient, ulp=ulp, name=name)


@few
@given(
    tokens=size, inputs=depth, outputs=size, activation=st.sampled_from(list(ACTIVATIONS.values())),
    parts=st.tuples(flag, flag, flag), keep=flag, transpose_weight=flag,
)  # fmt: skip
def test_linear_forward(implementation, tokens, inputs, outputs, activation, parts, keep, transpose_weight):
    x, weight, *optional = linear_inputs(tokens, inputs, outputs, transpose_weight)
    optional = [array if wanted else None for array, wanted in zip(optional, parts, strict=True)]
    kernel = kernel_module("matmul", implementation)
    assert_equal_to_reference(run_linear, kernel, [x, weight, *optional], keep, transpose_weight, activation)


@few
@given(tokens=size, inputs=depth, outputs=size, parts=st.tuples(flag, flag, flag), seed=st.integers(0, 2**64 - 1))
def test_dropout_in_the_epilogue_has_the_bits_of_dropout_after_it(implementation, tokens, inputs, outputs, parts, seed):
    kernel, dropout = kernel_module("matmul", implementation), kernel_module("dropout", "reference")
    x, weight, *optional = linear_inputs(tokens, inputs, outputs, False)
    bias, multiplier, residual = [array if wanted else None for array, wanted in zip(optional, parts, strict=True)]
    found, pre_activation = poisoned(tokens, outputs), poisoned(tokens, outputs)
    silu = ACTIVATIONS["silu"]
    kernel.linear_forward(x, weight, bias, multiplier, residual, pre_activation, found, False, silu, 0.3, seed)
    expected, undropped = poisoned(tokens, outputs), poisoned(tokens, outputs)
    kernel.linear_forward(x, weight, bias, multiplier, None, undropped, expected, False, silu)
    flat_residual = None if residual is None else residual.reshape(-1)
    dropout.dropout_forward(expected.reshape(-1), 0.3, seed, flat_residual, expected.reshape(-1))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pre_activation, undropped)


@few
@given(
    tokens=size, inputs=depth, outputs=size, activation=st.sampled_from(list(ACTIVATIONS.values())),
    parts=st.tuples(flag, flag, flag), transpose_weight=flag,
)  # fmt: skip
def test_packed_weights_give_the_same_as_linear_forward(
    implementation, tokens, inputs, outputs, activation, parts, transpose_weight
):
    kernel = kernel_module("matmul", implementation)
    x, weight, *optional = linear_inputs(tokens, inputs, outputs, transpose_weight)
    optional = [array if wanted else None for array, wanted in zip(optional, parts, strict=True)]

    def run_packed(kernel, x, weight, bias, multiplier, residual):
        packed = poisoned(kernel.packed_size(inputs, outputs), dtype=x.dtype)
        out = poisoned(tokens, outputs, dtype=x.dtype)
        kernel.pack_weight(weight, packed, transpose_weight)
        kernel.linear_forward_packed(x, packed, bias, multiplier, residual, out, activation)
        return {"out": out}

    assert_equal_to_reference(run_packed, kernel, [x, weight, *optional])


def run_backward_input(kernel, d_out, weight, pre_activation, multiplier, transpose_weight, activation, accumulate):
    inputs = weight.shape[1 if transpose_weight else 0]
    shape = len(d_out), inputs
    d_x = np.ones(shape, d_out.dtype) if accumulate else poisoned(*shape, dtype=d_out.dtype)
    d_multiplier = None if multiplier is None else poisoned(*shape, dtype=d_out.dtype)
    kernel.linear_backward_input(
        d_out, weight, pre_activation, multiplier, d_x, d_multiplier, transpose_weight, activation, accumulate
    )
    return {"d_x": d_x} if d_multiplier is None else {"d_x": d_x, "d_multiplier": d_multiplier}


@few
@given(
    tokens=size, inputs=size, outputs=depth, activation=st.sampled_from(list(ACTIVATIONS.values())),
    activated=st.sampled_from(["no", "plain", "gated"]), accumulate=flag, transpose_weight=flag,
)  # fmt: skip
def test_linear_backward_input(
    implementation, tokens, inputs, outputs, activation, activated, accumulate, transpose_weight
):
    weight = normal(2, *((outputs, inputs) if transpose_weight else (inputs, outputs)))
    pre_activation = None if activated == "no" else normal(3, tokens, inputs)
    multiplier = normal(4, tokens, inputs) if activated == "gated" else None
    arrays = [normal(1, tokens, outputs), weight, pre_activation, multiplier]
    flags = transpose_weight, activation if pre_activation is not None else 0, accumulate
    assert_equal_to_reference(run_backward_input, kernel_module("matmul", implementation), arrays, *flags, gradient=True)


@few
@given(tokens=depth, inputs=size, outputs=size, transpose_weight=flag)
def test_weight_and_bias_gradients_accumulate(implementation, tokens, inputs, outputs, transpose_weight):
    def run(kernel, x, d_out):
        d_weight = np.ones((outputs, inputs) if transpose_weight else (inputs, outputs), x.dtype)
        d_bias = np.ones(outputs, x.dtype)
        kernel.linear_backward_weight(x, d_out, d_weight, transpose_weight)
        kernel.linear_backward_bias(d_out, d_bias)
        return {"d_weight": d_weight, "d_bias": d_bias}

    kernel = kernel_module("matmul", implementation)
    assert_equal_to_reference(run, kernel, [normal(1, tokens, inputs), normal(2, tokens, outputs)], gradient=True)


def test_threads_do_not_show_in_the_bits(kernel):
    x, weight, bias, multiplier, residual = linear_inputs(600, 520, 210, False)
    d_out, results = normal(6, 600, 210), []
    for count in (1, 2, 4):
        threads.set_threads(count)
        found = run_linear(kernel, x, weight, bias, multiplier, residual, True, False, ACTIVATIONS["gelu"])
        found |= run_backward_input(kernel, d_out, weight, x, x, False, ACTIVATIONS["silu"], False)
        d_weight, d_bias = np.zeros((520, 210), np.float32), np.zeros(210, np.float32)
        kernel.linear_backward_weight(x, d_out, d_weight, False)
        kernel.linear_backward_bias(d_out, d_bias)
        results.append({**found, "d_weight": d_weight, "d_bias": d_bias})
    for other in results[1:]:
        for name in other:
            assert np.array_equal(results[0][name], other[name]), name


# ---- activations ----


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_derivatives_over_their_whole_range(kernel, name):
    """A product with the unit matrix leaves only the activation."""
    edges = np.array([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 88.0, -88.0, 1e6, -1e6], np.float32)
    x = np.concatenate([np.linspace(-12, 12, 1990, dtype=np.float32), edges]).reshape(-1, 16)
    unit = np.eye(16, dtype=np.float32)
    out, slope = poisoned(*x.shape), poisoned(*x.shape)
    kernel.linear_forward(x, unit, None, None, None, None, out, False, ACTIVATIONS[name])
    d_out = np.eye(1, dtype=np.float32).repeat(len(x), 0)
    kernel.linear_backward_input(
        d_out, np.ones((16, 1), np.float32), x, None, slope, None, False, ACTIVATIONS[name], False
    )
    wide, inside = x.astype(np.float64), np.abs(x) < 100
    for found, formula in ((out, activate), (slope, derivative)):
        plain, truth = formula(x, ACTIVATIONS[name]), formula(wide, ACTIVATIONS[name])
        assert_close_to_float64(found[inside], plain[inside], truth[inside], name=formula.__name__)
        assert np.allclose(found[~inside], truth[~inside], rtol=1e-6, atol=1e-30), formula.__name__


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_what_is_no_number_and_of_infinity(kernel, name):
    x, unit = np.array([[np.nan], [np.inf]], np.float32).repeat(17, 0), np.ones((1, 1), np.float32)
    out = poisoned(*x.shape)
    kernel.linear_forward(x, unit, None, None, None, None, out, False, ACTIVATIONS[name])
    assert np.isnan(out[:17]).all() and (out[17:] == np.inf).all()


def test_gelu_by_its_definition():
    x = np.linspace(-6, 6, 101)
    assert np.allclose(activate(x, 1), [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x], atol=1e-15)
    # 1 + erf leaves an ulp of 1, times x / 2
    assert np.abs(activate(x.astype(np.float32), 1) - activate(x, 1)).max() < 2 * 6 * EPSILON


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_by_central_differences(name):
    x = np.linspace(-5, 5, 40)
    step = 1e-5
    numeric = (activate(x + step, ACTIVATIONS[name]) - activate(x - step, ACTIVATIONS[name])) / (2 * step)
    assert_gradient_matches(derivative(x, ACTIVATIONS[name]), numeric)


@pytest.mark.parametrize("transpose_weight", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_by_central_differences(name, transpose_weight):
    """Through x = act(pre) * multiplier and out = x W + bias, to everything that has a gradient."""
    pre, multiplier, bias, d_out = in_float64(normal(1, 3, 5), normal(2, 3, 5), normal(3, 4), normal(4, 3, 4))
    weight = in_float64(normal(5, *((4, 5) if transpose_weight else (5, 4))))[0]
    code = ACTIVATIONS[name]

    def objective():
        x = activate(pre, code) * multiplier
        return float(
            (run_linear(reference, x, weight, bias, None, None, False, transpose_weight, 0)["out"] * d_out).sum()
        )

    found = run_backward_input(reference, d_out, weight, pre, multiplier, transpose_weight, code, False)
    d_weight, d_bias = np.zeros_like(weight), np.zeros_like(bias)
    reference.linear_backward_weight(activate(pre, code) * multiplier, d_out, d_weight, transpose_weight)
    reference.linear_backward_bias(d_out, d_bias)
    for name, array, gradient in (
        ("d_pre", pre, found["d_x"]), ("d_multiplier", multiplier, found["d_multiplier"]),
        ("d_weight", weight, d_weight), ("d_bias", bias, d_bias),
    ):  # fmt: skip
        assert_gradient_matches(gradient, central_differences(objective, array), name=name)
