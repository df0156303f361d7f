"""The faces of the parameter updates: what is written, what is only read, clear errors."""

import math

import numpy as np
import pytest

from fastmixer.ops.optimizer import adamw_step, first_nonfinite, global_norm, sgd_step

N = 50


@pytest.fixture
def arrays(rng):
    """p, m, v, g: float32 [n], the moments zero."""
    p, g = rng.standard_normal((2, N), dtype=np.float32)
    return [p, np.zeros(N, np.float32), np.zeros(N, np.float32), g]


def test_the_first_step_moves_by_the_learning_rate(arrays):
    # with both moments corrected, the first step is learning_rate * sign(g)
    p, m, v, g = arrays
    before = p.copy()
    adamw_step(p, m, v, g, learning_rate=0.01, step=1)
    assert np.allclose(before - p, 0.01 * np.sign(g), atol=1e-6)


def test_scaling_the_gradient_is_as_scaling_it_before(arrays):
    p, m, v, g = arrays
    other = [p.copy(), m.copy(), v.copy(), g * np.float32(0.5)]
    adamw_step(p, m, v, g, learning_rate=0.01, step=1, gradient_scale=0.5, weight_decay=0.1)
    adamw_step(*other, learning_rate=0.01, step=1, weight_decay=0.1)
    assert all(np.array_equal(a, b) for a, b in zip((p, m, v), other[:3], strict=True))


def test_the_gradient_is_zeroed_only_if_asked(arrays):
    p, m, v, g = arrays
    frozen = g.copy()
    frozen.flags.writeable = False
    adamw_step(p, m, v, frozen, learning_rate=0.01, step=1)
    sgd_step(p, frozen, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"adamw_step: g .* writable"):
        adamw_step(p, m, v, frozen, learning_rate=0.01, step=1, zero_gradient=True)
    adamw_step(p, m, v, g, learning_rate=0.01, step=2, zero_gradient=True)
    assert not g.any()


def test_sgd(arrays):
    p, _, _, g = arrays
    expected = p - np.float32(0.05) * g
    sgd_step(p, g, learning_rate=0.1, gradient_scale=0.5, zero_gradient=True)
    assert np.allclose(p, expected, atol=1e-7) and not g.any()


def test_global_norm_and_clipping(arrays):
    g = arrays[3]
    assert global_norm(g) == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-12)
    assert global_norm(g[::2]) == pytest.approx(np.linalg.norm(g[::2].astype(np.float64)), rel=1e-12)
    assert global_norm(np.zeros(0, np.float32)) == 0
    assert global_norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)
    g[3] = np.nan
    assert math.isnan(global_norm(g))


def test_first_nonfinite(arrays):
    p = arrays[0]
    assert first_nonfinite(p) == -1
    p[[7, 30]] = np.inf
    assert first_nonfinite(p) == 7
    assert first_nonfinite(np.zeros(0, np.float32)) == -1


def test_views_of_one_flat_buffer_are_updated_in_place(arrays):
    p, m, v, g = arrays
    part = slice(10, 30)
    before = p.copy()
    adamw_step(p[part], m[part], v[part], g[part], learning_rate=0.01, step=1)
    changed = p != before
    assert changed[part].all() and changed.sum() == 20


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"learning_rate": -1.0}, r"adamw_step: learning_rate must be >= 0; got -1.0"),
        ({"learning_rate": float("inf")}, r"adamw_step: learning_rate must be"),
        ({"step": 0}, r"adamw_step: step must be >= 1; got 0"),
        ({"step": -3}, r"adamw_step: step must be >= 1; got -3"),
        ({"beta1": 1.0}, r"adamw_step: beta1 must be >= 0 and < 1; got 1.0"),
        ({"beta2": -0.1}, r"adamw_step: beta2 must be"),
        ({"epsilon": -1e-8}, r"adamw_step: epsilon must be"),
        ({"weight_decay": -0.1}, r"adamw_step: weight_decay must be"),
        ({"gradient_scale": float("nan")}, r"adamw_step: gradient_scale must be"),
    ],
)
def test_bad_numbers(arrays, numbers, message):
    before = arrays[0].copy()
    with pytest.raises(ValueError, match=message):
        adamw_step(*arrays, **{"learning_rate": 0.1, "step": 1, **numbers})
    assert np.array_equal(arrays[0], before)


def test_bad_arrays(arrays):
    p, m, v, g = arrays
    with pytest.raises(ValueError, match=r"adamw_step: m must be float32 \[n=50\]; got float32 \(49,\)"):
        adamw_step(p, m[1:], v, g, learning_rate=0.1, step=1)
    with pytest.raises(ValueError, match=r"adamw_step: p .* C-contiguous"):
        adamw_step(p[::2], m[::2], v[::2], g[::2], learning_rate=0.1, step=1)
    with pytest.raises(TypeError, match=r"adamw_step: g must be float32"):
        adamw_step(p, m, v, g.astype(np.float64), learning_rate=0.1, step=1)
    with pytest.raises(ValueError, match=r"sgd_step: g must be"):
        sgd_step(p, g[:3], learning_rate=0.1)
    with pytest.raises(TypeError, match=r"global_norm: g must be a NumPy array"):
        global_norm([1.0])


def test_the_step_is_a_whole_number(arrays):
    with pytest.raises(TypeError, match=r"adamw_step: step must be an integer; got float"):
        adamw_step(*arrays, learning_rate=0.1, step=1.5)
