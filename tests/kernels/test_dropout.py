"""Dropout and its random numbers: known answers, the same mask in every implementation, the right frequency."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_float64

from fastmixer.kernels import threads
from fastmixer.kernels.dropout import reference
from fastmixer.kernels.philox import attention_words, flat_words, fold_seed, keep_threshold, philox
from fastmixer.kernels.philox_jit import philox_block
from fastmixer.kernels.select import kernel_module, native_levels

SIZES = [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127]
SEEDS = [0, 1, 2**32, 2**63 + 5, 2**64 - 1]

# kat_vectors of the Random123 distribution, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def dropped(kernel, x, rate, seed, residual=None):
    out = np.full_like(x, np.nan)
    kernel.dropout_forward(x, rate, seed, residual, out)
    return out


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    seed = key[0] | key[1] << 32
    assert tuple(philox(seed, *counter).tolist()) == answer
    assert philox_block(np.uint64(seed), *(np.uint64(word) for word in counter)) == answer
    for level in native_levels("dropout"):
        assert kernel_module("dropout", f"native-{level}").philox_words(seed, *counter) == answer


def test_flat_and_attention_words_are_cut_from_the_same_blocks():
    words = flat_words(11, 0, 64)
    assert np.array_equal(words.reshape(-1, 4), philox(11, np.arange(16)))
    assert np.array_equal(flat_words(11, 5, 38), words[5:38])
    beyond = 2**34 + 4  # the block's number needs more than 32 bits
    assert np.array_equal(flat_words(11, beyond, beyond + 4), philox(11, 1, 1))
    tile = attention_words(11, 2, 3, 4, 7, 5, 14)
    for row, query in enumerate(range(4, 7)):
        for column, key in enumerate(range(5, 14)):
            assert tile[row, column] == philox(11, key // 4, query, 3, 2)[key % 4]


def test_folded_seeds_differ_and_repeat():
    folded = [fold_seed(seed, number) for seed in (0, 1, 2**64 - 1) for number in (0, 1, 2**40)]
    assert len(set(folded)) == len(folded)
    assert all(0 <= seed < 2**64 for seed in folded)
    assert fold_seed(1, 2**40) == folded[5]


@settings(deadline=None, max_examples=30)
@given(
    size=st.sampled_from(SIZES),
    rate=st.sampled_from([0.0, 0.1, 0.5, 0.999999]),
    seed=st.sampled_from(SEEDS),
    with_residual=st.booleans(),
)
def test_equals_the_reference(implementation, size, rate, seed, with_residual):
    kernel = kernel_module("dropout", implementation)
    rng = np.random.default_rng(size)
    x, residual = rng.standard_normal((2, size)).astype(np.float32)
    if not with_residual:
        residual = None
    x.flags.writeable = False
    truth = dropped(reference, x.astype(np.float64), rate, seed, None if residual is None else residual.astype(float))
    out = dropped(kernel, x, rate, seed, residual)
    if residual is None:
        assert np.array_equal(out == 0, truth == 0)  # exactly the same positions
    assert_close_to_float64(out, dropped(reference, x, rate, seed, residual), truth)


def test_many_blocks_and_any_number_of_threads(kernel):
    x = np.random.default_rng(1).standard_normal(100_003).astype(np.float32)
    truth = dropped(reference, x, 0.3, 2**40)
    for count in (1, 2, 4):
        threads.set_threads(count)
        assert np.array_equal(dropped(kernel, x, 0.3, 2**40), truth)


def test_works_in_place(kernel):
    x, residual = np.random.default_rng(2).standard_normal((2, 20_001)).astype(np.float32)
    plain, summed = dropped(kernel, x, 0.2, 3), dropped(kernel, x, 0.2, 3, residual)
    kernel.dropout_forward(x, 0.2, 3, residual, residual)
    assert np.array_equal(residual, summed)
    kernel.dropout_forward(x, 0.2, 3, None, x)
    assert np.array_equal(x, plain)


def test_rate_zero_changes_nothing(kernel):
    x = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    assert np.array_equal(dropped(kernel, x, 0.0, 5), x)


def test_dropped_infinities_and_nan_are_zeros(kernel):
    x = np.full(4096, np.nan, np.float32)
    x[::2] = np.inf
    kept = flat_words(6, 0, len(x)) >= keep_threshold(0.5)
    out = dropped(kernel, x, 0.5, 6)
    assert (out[~kept] == 0).all() and not np.isfinite(out[kept]).any()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_frequency_and_mean(kernel, rate):
    count = 200_000
    out = dropped(kernel, np.ones(count, np.float32), rate, 12345)
    deviation = np.sqrt(rate * (1 - rate) / count)
    assert abs((out == 0).mean() - rate) < 5 * deviation
    assert abs(out.mean() - 1) < 5 * deviation / (1 - rate)
    assert set(np.unique(out)) == {np.float32(0), np.float32(1 / (1 - rate))}


def test_gradient_by_central_differences():
    # linear in x, so the step may be large and the difference is exact up to rounding
    x, d_out = np.random.default_rng(4).standard_normal((2, 40))
    d_x = dropped(reference, d_out, 0.4, 9)
    for i in range(len(x)):
        above, below = x.copy(), x.copy()
        above[i] += 0.5
        below[i] -= 0.5
        numeric = (dropped(reference, above, 0.4, 9) - dropped(reference, below, 0.4, 9)) @ d_out
        assert abs(numeric - d_x[i]) < 1e-12
