"""dropout's face: shapes, seeds, strided and read-only inputs, clear errors."""

import numpy as np
import pytest

from fastmixer.kernels.select import use_kernels
from fastmixer.ops.dropout import dropout, fold_seed


@pytest.fixture
def x(rng):
    return rng.standard_normal((3, 5, 7), dtype=np.float32)


def test_keeps_the_shape_and_scales(x):
    out = dropout(x, 0.25, 1)
    assert out.shape == x.shape and out.dtype == np.float32
    kept = out != 0
    assert 0 < kept.sum() < x.size
    assert np.array_equal(out[kept], (x * np.float32(1 / 0.75))[kept])


def test_the_gradient_has_the_same_mask(x):
    assert np.array_equal(dropout(np.ones_like(x), 0.5, 8) == 0, dropout(x, 0.5, 8) == 0)
    assert not np.array_equal(dropout(x, 0.5, 8), dropout(x, 0.5, 9))


def test_position_decides_not_shape(x):
    assert np.array_equal(dropout(x, 0.5, 8).ravel(), dropout(x.ravel(), 0.5, 8))
    assert np.array_equal(dropout(x.ravel()[:50], 0.5, 8), dropout(x, 0.5, 8).ravel()[:50])


def test_strided_and_read_only_inputs(x):
    strided = x.transpose(2, 0, 1)[::2]
    strided.flags.writeable = False
    assert np.array_equal(dropout(strided, 0.3, 2), dropout(strided.copy(), 0.3, 2))


def test_residual_and_out(x):
    residual = np.ones_like(x)
    expected = dropout(x, 0.3, 4) + 1
    assert dropout(x, 0.3, 4, residual=residual, out=residual) is residual
    assert np.allclose(residual, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_empty_and_scalar(shape):
    assert dropout(np.ones(shape, np.float32), 0.0, 0).shape == shape


def test_float64_on_the_reference(x):
    with use_kernels("reference"):
        assert dropout(x.astype(np.float64), 0.5, 1).dtype == np.float64


def test_fold_seed_gives_seeds(x):
    assert not np.array_equal(dropout(x, 0.5, fold_seed(1, 0)), dropout(x, 0.5, fold_seed(1, 1)))


@pytest.mark.parametrize(
    "rate, seed, error, message",
    [
        (1.0, 0, ValueError, r"dropout: rate must be >= 0 and < 1; got 1.0"),
        (-0.1, 0, ValueError, r"dropout: rate must be >= 0 and < 1; got -0.1"),
        (float("nan"), 0, ValueError, r"dropout: rate must be"),
        ("half", 0, TypeError, r"dropout: rate must be a number; got str"),
        (0.1, -1, ValueError, r"dropout: seed must be in \[0, 2\^64\); got -1"),
        (0.1, 2**64, ValueError, r"dropout: seed must be in \[0, 2\^64\); got 18446744073709551616"),
        (0.1, 1.5, TypeError, r"dropout: seed must be an integer; got float"),
    ],
)
def test_bad_numbers(x, rate, seed, error, message):
    with pytest.raises(error, match=message):
        dropout(x, rate, seed)


def test_bad_arrays(x):
    with pytest.raises(TypeError, match=r"dropout: x must be float32 .*; got float16 \(3, 5, 7\)"):
        dropout(x.astype(np.float16), 0.1, 0)
    with pytest.raises(TypeError, match=r"dropout: x must be a NumPy array"):
        dropout([1.0, 2.0], 0.1, 0)
    with pytest.raises(TypeError, match=r"dropout: x must be a NumPy array, float32 .*; got list"):
        dropout([[1.0], [1.0, 2.0]], 0.1, 0)
    with pytest.raises(ValueError, match=r"dropout: out must be float32 .*; got float32 \(3, 5\)"):
        dropout(x, 0.1, 0, out=np.empty((3, 5), np.float32))
    with pytest.raises(ValueError, match=r"dropout: residual must be float32"):
        dropout(x, 0.1, 0, residual=x[:1])
