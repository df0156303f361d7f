"""AdamW and SGD against the float64 reference and a hand-written torch.optim.AdamW; norms and broken numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_float64

from fastmixer.kernels import threads
from fastmixer.kernels.optimizer import BLOCK, blocks, reference
from fastmixer.kernels.select import kernel_module

SIZES = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 127, BLOCK - 1, BLOCK, BLOCK + 5]
# learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale
SETTINGS = [
    (1e-3, 0.9, 0.999, 1e-8, 0.1, 1, 1.0),
    (3e-4, 0.9, 0.95, 1e-8, 0.0, 1000, 0.25),
    (1e-2, 0.0, 0.5, 1e-6, 0.5, 3, 2.0),
    (0.0, 0.9, 0.999, 1e-8, 0.1, 2, 1.0),
]


def state(size, dtype=np.float32):
    """p, m, v, g."""
    rng = np.random.default_rng(size)
    p, m, v, g = rng.standard_normal((4, size), dtype=np.float32)
    return [array.astype(dtype) for array in (p, 0.1 * m, 0.01 * v * v, g)]


def run_adamw(kernel, dtype, size, numbers, zero_gradient):
    arrays = state(size, dtype)
    kernel.adamw(*arrays, *numbers, zero_gradient)
    return dict(zip("pmvg", arrays, strict=True))


@settings(deadline=None, max_examples=30)
@given(size=st.sampled_from(SIZES), numbers=st.sampled_from(SETTINGS), zero_gradient=st.booleans())
def test_adamw_equals_the_reference(implementation, size, numbers, zero_gradient):
    found = run_adamw(kernel_module("optimizer", implementation), np.float32, size, numbers, zero_gradient)
    plain = run_adamw(reference, np.float32, size, numbers, zero_gradient)
    truth = run_adamw(reference, np.float64, size, numbers, zero_gradient)
    for name in "pmv":
        assert_close_to_float64(found[name], plain[name], truth[name], name=name)
    assert np.array_equal(found["g"], np.zeros(size) if zero_gradient else state(size)[3])


def torch_adamw(p, m, v, g, learning_rate, beta1, beta2, epsilon, weight_decay, step):
    """One element, written as the loop in torch/optim/adamw.py (single tensor, not amsgrad), in Python floats."""
    p *= 1 - learning_rate * weight_decay
    m += (g - m) * (1 - beta1)
    v = v * beta2 + (1 - beta2) * g * g
    bias_correction1 = 1 - beta1**step
    bias_correction2 = 1 - beta2**step
    denominator = math.sqrt(v) / math.sqrt(bias_correction2) + epsilon
    return p - learning_rate / bias_correction1 * m / denominator, m, v


@pytest.mark.parametrize("numbers", SETTINGS)
def test_ten_steps_as_torch_does_them(kernel, numbers):
    learning_rate, beta1, beta2, epsilon, weight_decay, _, _ = numbers
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((10, 20)).astype(np.float32)
    p = rng.standard_normal(20).astype(np.float32)
    m, v = np.zeros_like(p), np.zeros_like(p)
    elements = [(float(value), 0.0, 0.0) for value in p]
    for step, g in enumerate(gradients, start=1):
        kernel.adamw(p, m, v, g, learning_rate, beta1, beta2, epsilon, weight_decay, step, 1.0, False)
        elements = [
            torch_adamw(*element, float(g[i]), learning_rate, beta1, beta2, epsilon, weight_decay, step)
            for i, element in enumerate(elements)
        ]
    # ten roundings of p to float32, each half an ulp of a number near 1
    assert np.abs(p - np.array([element[0] for element in elements])).max() < 10 * np.finfo(np.float32).eps
    assert np.allclose(m, [element[1] for element in elements], rtol=1e-5, atol=1e-7)
    assert np.allclose(v, [element[2] for element in elements], rtol=1e-5, atol=1e-7)


def test_a_gradient_of_zeros_only_decays(kernel):
    p = np.array([1.0, -2.0, 0.5], np.float32)
    m, v, g = np.zeros((3, 3), np.float32)
    kernel.adamw(p, m, v, g, 0.1, 0.9, 0.999, 1e-8, 0.5, 1, 1.0, False)
    assert np.allclose(p, [0.95, -1.9, 0.475], rtol=1e-6)
    assert not m.any() and not v.any()


def test_the_gradient_may_be_read_only(kernel):
    p, m, v, g = state(100)
    g.flags.writeable = False
    expected = run_adamw(kernel, np.float32, 100, SETTINGS[0], False)
    kernel.adamw(p, m, v, g, *SETTINGS[0], False)
    assert np.array_equal(p, expected["p"])
    kernel.sgd(p, g, 0.1, 1.0, False)
    assert np.allclose(p, expected["p"] - np.float32(0.1) * g, rtol=1e-6)


@pytest.mark.parametrize("size", [0, 17, BLOCK + 5])
@pytest.mark.parametrize("zero_gradient", [False, True])
def test_sgd_equals_the_reference(kernel, size, zero_gradient):
    results = []
    for rank, dtype in ((kernel, np.float32), (reference, np.float32), (reference, np.float64)):
        p, _, _, g = state(size, dtype)
        rank.sgd(p, g, 0.03, 0.5, zero_gradient)
        results.append(p)
        assert np.array_equal(g, np.zeros(size) if zero_gradient else state(size)[3])
    assert_close_to_float64(*results)


def norm_of(kernel, g):
    return kernel.squared_norm(g, np.full(blocks(len(g)), np.nan))


@pytest.mark.parametrize("size", [*SIZES, 3 * BLOCK + 77])
def test_squared_norm(kernel, size):
    g = state(size)[3]
    g.flags.writeable = False
    expected = math.fsum(float(value) ** 2 for value in g)
    found = norm_of(kernel, g)
    assert isinstance(found, float) and found == pytest.approx(expected, rel=1e-13)


def test_squared_norm_of_numbers_whose_squares_leave_float32(kernel):
    assert norm_of(kernel, np.full(1000, 1e30, np.float32)) == pytest.approx(1e63, rel=1e-6)
    assert norm_of(kernel, np.full(1000, 1e-30, np.float32)) == pytest.approx(1e-57, rel=1e-6)
    assert math.isinf(norm_of(kernel, np.array([1.0, -np.inf], np.float32)))
    assert math.isnan(norm_of(kernel, np.array([np.inf, np.nan], np.float32)))


def test_threads_do_not_show_in_the_bits(kernel):
    size, results = 5 * BLOCK + 11, []
    for count in (1, 2, 4):
        threads.set_threads(count)
        found = run_adamw(kernel, np.float32, size, SETTINGS[1], False)
        results.append([norm_of(kernel, found["g"]), *found.values()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("size", [0, 1, 33, 2 * BLOCK + 9])
def test_first_nonfinite(kernel, size):
    x = state(size)[0]

    def search():
        return kernel.first_nonfinite(x, np.full(blocks(size), -7))

    assert search() == -1
    x[-1:] = np.float32(3e38)  # large, but finite
    assert search() == -1
    for position in sorted({size - 1, size // 2, 0}, reverse=True) if size else []:
        x[position] = (np.nan, np.inf, -np.inf)[position % 3]
        assert search() == position
