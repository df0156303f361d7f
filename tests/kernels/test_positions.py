"""Position kernels: every implementation against the float64 reference, over odd sizes and strides."""

import numpy as np
import pytest
from tolerances import assert_close_to_float64

from fastmixer.kernels import threads
from fastmixer.kernels.positions import reference


def tables(rng, context, half, dtype=np.float32):
    angles = rng.uniform(0, 2 * np.pi, (context, half))
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 7, 8), (1, 2, 33, 30), (3, 1, 17, 64), (1, 5, 127, 34)])
def test_rotate_matches_float64_and_may_be_in_place(kernel, rng, shape, inverse):
    batch, _, time, head_dim = shape
    x, positions = rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 130, (batch, time))
    cos, sin = tables(rng, 130, head_dim // 2)
    out = np.full(shape, np.nan, np.float32)
    kernel.rotate(x, cos, sin, positions, inverse, out)
    expected = [np.empty(shape, dtype) for dtype in (np.float32, np.float64)]
    for want in expected:
        d = want.dtype
        reference.rotate(x.astype(d), cos.astype(d), sin.astype(d), positions, inverse, want)
    assert_close_to_float64(out, *expected)
    kernel.rotate(x, cos, sin, positions, inverse, x)
    np.testing.assert_array_equal(x, out)


def test_rotate_takes_strided_views(kernel, rng):
    qkv = rng.standard_normal((2, 9, 5, 12), dtype=np.float32)
    cos, sin = tables(rng, 9, 6)
    positions = np.tile(np.arange(9), (2, 1))
    view = qkv.transpose(0, 2, 1, 3)[:, 1:4]
    expected = np.empty(view.shape, np.float32)
    kernel.rotate(np.ascontiguousarray(view), cos, sin, positions, False, expected)
    others = qkv[:, :, [0, 4]].copy()
    kernel.rotate(view, cos, sin, positions, False, view)
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(qkv[:, :, [0, 4]], others)


@pytest.mark.parametrize("tokens", [1, 31, 33, 127])
@pytest.mark.parametrize("dim", [1, 7, 16, 33])
def test_add_positions_matches_float64(kernel, rng, tokens, dim):
    x, table = rng.standard_normal((tokens, dim), dtype=np.float32), rng.standard_normal((20, dim), dtype=np.float32)
    positions = rng.integers(0, 20, tokens)
    expected = [x.astype(dtype) for dtype in (np.float32, np.float64)]
    for want in expected:
        reference.add_positions(want, table.astype(want.dtype), positions)
    kernel.add_positions(x, table, positions)
    assert_close_to_float64(x, *expected)


def test_the_same_bits_on_any_number_of_threads(kernel, rng):
    x = rng.standard_normal((2, 3, 200, 16), dtype=np.float32)
    cos, sin = tables(rng, 200, 8)
    positions = np.tile(np.arange(200), (2, 1))
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        out = np.full(x.shape, np.nan, np.float32)
        kernel.rotate(x, cos, sin, positions, False, out)
        results.append(out.tobytes())
    assert results[0] == results[1] == results[2]
