"""The faces of LayerNorm and RMSNorm: any leading axes, strided and read-only inputs, accumulation, clear errors."""

import numpy as np
import pytest

from fastmixer.kernels.select import use_kernels
from fastmixer.ops.norm import layernorm, layernorm_backward, rmsnorm, rmsnorm_backward

DIM = 12


@pytest.fixture
def arrays(rng):
    """x, d_out: float32 [2, 3, dim]; weight, bias: float32 [dim]."""
    shapes = [(2, 3, DIM), (2, 3, DIM), (DIM,), (DIM,)]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def test_layernorm_by_its_formula(arrays):
    x, _, weight, bias = arrays
    out, (mean, inverse_std) = layernorm(x, weight, bias, return_saved=True)
    wanted_mean, wanted_std = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert np.allclose(out, (x - wanted_mean) / wanted_std * weight + bias, atol=1e-6)
    assert np.allclose(mean, wanted_mean.ravel(), atol=1e-6)
    assert np.allclose(inverse_std, 1 / wanted_std.ravel(), rtol=1e-5)
    assert np.allclose(layernorm(x, weight), out - bias, atol=1e-6)


def test_rmsnorm_by_its_formula(arrays):
    x, _, weight, _ = arrays
    out, inverse_rms = rmsnorm(x, weight, epsilon=1e-3, return_saved=True)
    wanted = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    assert np.allclose(out, x / wanted * weight, atol=1e-6)
    assert np.allclose(inverse_rms, 1 / wanted.ravel(), rtol=1e-5)


def test_parameter_gradients_accumulate_and_d_x_overwrites(arrays):
    x, d_out, weight, bias = arrays
    _, saved = layernorm(x, weight, bias, return_saved=True)
    d_weight, d_bias = np.zeros(DIM, np.float32), np.zeros(DIM, np.float32)
    once = layernorm_backward(d_out, x, weight, saved, d_weight, d_bias)
    first = d_weight.copy()
    d_x = np.full_like(x, np.nan)
    assert layernorm_backward(d_out, x, weight, saved, d_weight, d_bias, d_x=d_x) is d_x
    assert np.array_equal(d_x, once)
    assert np.allclose(d_weight, 2 * first, rtol=1e-6)
    assert np.allclose(d_bias, 2 * d_out.sum((0, 1)), rtol=1e-5, atol=1e-6)


def test_residual_gradient_is_added(arrays):
    x, d_out, weight, _ = arrays
    _, saved = rmsnorm(x, weight, return_saved=True)
    plain = rmsnorm_backward(d_out, x, weight, saved, np.zeros(DIM, np.float32))
    d_residual = np.ones_like(x)
    d_x = rmsnorm_backward(d_out, x, weight, saved, np.zeros(DIM, np.float32), d_residual=d_residual, d_x=d_residual)
    assert d_x is d_residual and np.allclose(d_x, plain + 1, atol=1e-6)


def test_strided_and_read_only_inputs(arrays):
    x, _, weight, bias = arrays
    strided = x.transpose(1, 0, 2)[:, :, ::2]
    strided.flags.writeable = False
    weight, bias = weight[::2], bias[::-2]
    assert np.array_equal(layernorm(strided, weight, bias), layernorm(strided.copy(), weight.copy(), bias.copy()))
    assert np.array_equal(rmsnorm(strided, weight), rmsnorm(strided.copy(), weight.copy()))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (4,), (2, 0), (0, 0)])
def test_empty_and_single_rows(shape):
    x, weight = np.ones(shape, np.float32), np.ones(shape[-1], np.float32)
    d_weight = np.zeros_like(weight)
    out, saved = layernorm(x, weight, weight, return_saved=True)
    assert out.shape == shape and layernorm_backward(x, x, weight, saved, d_weight).shape == shape
    out, saved = rmsnorm(x, weight, return_saved=True)
    assert out.shape == shape and rmsnorm_backward(x, x, weight, saved, d_weight).shape == shape


def test_float64_on_the_reference(arrays):
    x, _, weight, bias = (array.astype(np.float64) for array in arrays)
    with use_kernels("reference"):
        assert layernorm(x, weight, bias).dtype == np.float64


def test_errors_name_the_argument(arrays):
    x, d_out, weight, bias = arrays
    with pytest.raises(TypeError, match=r"layernorm: x must be float32 .*; got float16 \(2, 3, 12\)"):
        layernorm(x.astype(np.float16), weight)
    with pytest.raises(ValueError, match=r"layernorm: weight must be float32 \[dim=12\]; got float32 \(11,\)"):
        layernorm(x, weight[1:])
    with pytest.raises(ValueError, match=r"layernorm: bias must be"):
        layernorm(x, weight, bias[None])
    with pytest.raises(ValueError, match=r"rmsnorm: epsilon must be >= 0; got -1"):
        rmsnorm(x, weight, epsilon=-1)
    with pytest.raises(ValueError, match=r"rmsnorm: out must be float32"):
        rmsnorm(x, weight, out=x[0])
    _, saved = layernorm(x, weight, return_saved=True)
    with pytest.raises(ValueError, match=r"layernorm_backward: saved\[0\] \(mean\) must be .*tokens=6"):
        layernorm_backward(d_out, x, weight, (saved[0][:2], saved[1]), np.zeros_like(weight))
    with pytest.raises(ValueError, match=r"layernorm_backward: d_out must be"):
        layernorm_backward(d_out[0], x, weight, saved, np.zeros_like(weight))
    frozen = np.zeros_like(weight)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"layernorm_backward: d_weight .* writable"):
        layernorm_backward(d_out, x, weight, saved, frozen)
    with pytest.raises(TypeError, match=r"rmsnorm: x must be a NumPy array"):
        rmsnorm([1.0], weight)
    with pytest.raises(ValueError, match=r"rmsnorm: x must be"):
        rmsnorm(np.array(1.0, np.float32), weight)
