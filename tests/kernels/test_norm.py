"""LayerNorm and RMSNorm: every implementation against the float64 reference, gradients against differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FEW_ULP, assert_close_to_float64, assert_gradient_matches, central_differences

from fastmixer.kernels import threads
from fastmixer.kernels.norm import MOST_ROW_BLOCKS, reference, row_block, row_blocks
from fastmixer.kernels.select import kernel_module

EPSILON = 1e-5
ULP = float(np.finfo(np.float32).eps)
TOKENS = [0, 1, 7, 15, 16, 17, 33]
DIMS = [2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 127]


def inputs(tokens, dim, scale=1.0, shift=0.0):
    """x, weight, bias, d_out, d_residual: float32, read-only."""
    rng = np.random.default_rng(tokens * 1000 + dim)
    shapes = [(tokens, dim), (dim,), (dim,), (tokens, dim), (tokens, dim)]
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    arrays[0] = (arrays[0] * scale + shift).astype(np.float32)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def poisoned(like, *shape):
    return np.full(shape, np.nan, like.dtype)


def run_layernorm(kernel, x, weight, bias, d_out, d_residual, epsilon=EPSILON):
    """Everything that forward and backward give, by name; parameter gradients start at 1."""
    tokens, dim = x.shape
    out, d_x = poisoned(x, tokens, dim), poisoned(x, tokens, dim)
    mean, inverse_std = poisoned(x, tokens), poisoned(x, tokens)
    partial = poisoned(x, row_blocks(tokens), 2, dim)
    d_weight, d_bias = np.ones_like(weight), None if bias is None else np.ones_like(bias)
    kernel.layernorm_forward(x, weight, bias, epsilon, out, mean, inverse_std)
    kernel.layernorm_backward(d_out, x, weight, mean, inverse_std, d_residual, d_x, d_weight, d_bias, partial)
    found = {"out": out, "mean": mean, "inverse_std": inverse_std, "d_x": d_x, "d_weight": d_weight}
    return found if d_bias is None else {**found, "d_bias": d_bias}


def run_rmsnorm(kernel, x, weight, bias, d_out, d_residual, epsilon=EPSILON):
    tokens, dim = x.shape
    out, d_x, inverse_rms = poisoned(x, tokens, dim), poisoned(x, tokens, dim), poisoned(x, tokens)
    partial, d_weight = poisoned(x, row_blocks(tokens), 1, dim), np.ones_like(weight)
    kernel.rmsnorm_forward(x, weight, epsilon, out, inverse_rms)
    kernel.rmsnorm_backward(d_out, x, weight, inverse_rms, d_residual, d_x, d_weight, partial)
    return {"out": out, "inverse_rms": inverse_rms, "d_x": d_x, "d_weight": d_weight}


RUNS = {"layernorm": run_layernorm, "rmsnorm": run_rmsnorm}


def in_float64(arrays):
    return [None if array is None else array.astype(np.float64) for array in arrays]


def assert_equals_reference(run, kernel, arrays):
    found, plain, truth = run(kernel, *arrays), run(reference, *arrays), run(reference, *in_float64(arrays))
    for name in truth:
        gradient = name.startswith("d_")
        assert_close_to_float64(found[name], plain[name], truth[name], gradient=gradient, name=name)


@pytest.mark.parametrize("norm", RUNS)
@settings(deadline=None, max_examples=40)
@given(tokens=st.sampled_from(TOKENS), dim=st.sampled_from(DIMS), bias=st.booleans(), residual=st.booleans())
def test_equals_the_reference(implementation, norm, tokens, dim, bias, residual):
    arrays = inputs(tokens, dim)
    arrays[2] = arrays[2] if bias else None
    arrays[4] = arrays[4] if residual else None
    assert_equals_reference(RUNS[norm], kernel_module("norm", implementation), arrays)


@pytest.mark.parametrize("norm", RUNS)
@pytest.mark.parametrize("scale, shift", [(1e4, 0.0), (1e-4, 0.0), (1.0, 50.0)])
def test_large_small_and_shifted_rows(kernel, norm, scale, shift):
    assert_equals_reference(RUNS[norm], kernel, inputs(40, 256, scale, shift))


@pytest.mark.parametrize("norm", RUNS)
def test_constant_rows_stay_finite(kernel, norm):
    arrays = inputs(5, 33)
    arrays[0] = np.repeat(np.array([[0.0], [1.0], [-3.0], [0.0], [1e4]], np.float32), 33, axis=1)
    assert_equals_reference(RUNS[norm], kernel, arrays)


def test_rows_of_one_element(kernel):
    # LayerNorm's gradient is 0 here, as the difference of two equal terms: rounding may leave ulps of those terms
    x, weight, bias, d_out, _ = inputs(20, 1)
    found = run_layernorm(kernel, x, weight, bias, d_out, None)
    assert np.array_equal(found["out"], np.broadcast_to(bias, x.shape))
    terms = np.abs(d_out * weight) * found["inverse_std"][:, None]
    assert (np.abs(found["d_x"]) <= FEW_ULP * ULP * terms).all()
    assert_equals_reference(run_rmsnorm, kernel, [x, weight, bias, d_out, None])


@pytest.mark.parametrize("norm", RUNS)
def test_nan_stays_in_its_row(kernel, norm):
    arrays = inputs(20, 48)
    arrays[0] = arrays[0].copy()
    arrays[0][3, 7] = np.nan
    found = RUNS[norm](kernel, *arrays)
    for name in ("out", "d_x"):
        rows = np.isnan(found[name]).any(axis=1)
        assert rows.tolist() == [row == 3 for row in range(20)], name


@pytest.mark.parametrize("norm", RUNS)
@pytest.mark.parametrize("tokens", [50, 2500])
def test_threads_do_not_show_in_the_bits(kernel, norm, tokens):
    arrays, results = inputs(tokens, 72), []
    for count in (1, 2, 4):
        threads.set_threads(count)
        results.append(RUNS[norm](kernel, *arrays))
    for other in results[1:]:
        for name in other:
            assert np.array_equal(results[0][name], other[name]), name
    assert_equals_reference(RUNS[norm], kernel, arrays)


@pytest.mark.parametrize("norm", RUNS)
@pytest.mark.parametrize("target", ["d_out", "d_residual"])
def test_backward_in_place(kernel, norm, target):
    x, weight, _, d_out, d_residual = inputs(33, 40)
    d_out, d_residual = d_out.copy(), d_residual.copy()
    expected = RUNS[norm](kernel, x, weight, None, d_out, d_residual)["d_x"]
    d_x = d_out if target == "d_out" else d_residual
    d_weight = np.zeros_like(weight)
    if norm == "layernorm":
        saved, partial = (np.empty(33, np.float32), np.empty(33, np.float32)), np.empty((3, 2, 40), np.float32)
        kernel.layernorm_forward(x, weight, None, EPSILON, np.empty_like(x), *saved)
        kernel.layernorm_backward(d_out, x, weight, *saved, d_residual, d_x, d_weight, None, partial)
    else:
        saved, partial = np.empty(33, np.float32), np.empty((3, 1, 40), np.float32)
        kernel.rmsnorm_forward(x, weight, EPSILON, np.empty_like(x), saved)
        kernel.rmsnorm_backward(d_out, x, weight, saved, d_residual, d_x, d_weight, partial)
    assert np.array_equal(d_x, expected)


def test_row_blocks_cover_the_rows_and_stay_few():
    for tokens in (0, 1, 15, 16, 17, 1023, 1024, 1025, 100_000):
        blocks, rows = row_blocks(tokens), row_block(tokens)
        assert blocks <= MOST_ROW_BLOCKS
        assert (blocks - 1) * rows < max(tokens, 1) <= max(blocks * rows, 1)


def test_a_normalized_row_has_mean_0_and_variance_1():
    x = np.random.default_rng(0).normal(3, 5, (4, 64))
    out = run_layernorm(reference, x, np.ones(64), np.zeros(64), x, None, epsilon=0.0)["out"]
    assert np.allclose(out.mean(axis=1), 0) and np.allclose(out.var(axis=1), 1)
    out = run_rmsnorm(reference, x, np.ones(64), None, x, None, epsilon=0.0)["out"]
    assert np.allclose((out * out).mean(axis=1), 1)


@pytest.mark.parametrize("norm", RUNS)
def test_gradients_by_central_differences(norm):
    x, weight, bias, d_out, d_residual = in_float64(inputs(3, 9))
    run = RUNS[norm]
    found = run(reference, x, weight, bias, d_out, d_residual)

    def objective():
        return float((run(reference, x, weight, bias, d_out, None)["out"] * d_out).sum())

    assert_gradient_matches(found["d_x"] - d_residual, central_differences(objective, x), name="d_x")
    assert_gradient_matches(found["d_weight"] - 1, central_differences(objective, weight), name="d_weight")
    if norm == "layernorm":
        assert_gradient_matches(found["d_bias"] - 1, central_differences(objective, bias), name="d_bias")
