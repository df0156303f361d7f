"""Pooling over ragged sequences, against each sequence alone."""

import numpy as np
import pytest

from fastmixer.embed.pooling import pool, unit_length
from fastmixer.weights.encoder_recipe import POOLINGS

ALONE = {
    "mean": lambda x: x.mean(axis=0), "max": lambda x: x.max(axis=0), "cls": lambda x: x[0], "last": lambda x: x[-1],
    "weightedmean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
    "mean_sqrt_len": lambda x: x.sum(axis=0) / np.sqrt(len(x)),
}  # fmt: skip


@pytest.mark.parametrize("pooling", ALONE)
@pytest.mark.parametrize("lengths", [[1], [5], [1, 1, 1], [7, 1, 300, 2], []])
def test_every_sequence_is_pooled_alone(pooling, lengths, rng):
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    hidden = rng.standard_normal((starts[-1], 13), dtype=np.float32)
    parts = np.split(hidden, starts[1:-1]) if lengths else []
    expected = np.array([ALONE[pooling](part) for part in parts], np.float32).reshape(len(lengths), 13)
    pooled = pool(hidden, starts, pooling)
    assert pooled.dtype == np.float32 and pooled.shape == expected.shape
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_every_pooling_of_a_folder_is_known():
    assert set(ALONE) == set(POOLINGS)


def test_several_stand_side_by_side_in_order(rng):
    hidden, starts = rng.standard_normal((9, 4), dtype=np.float32), np.array([0, 2, 9])
    parts = [pool(hidden, starts, name) for name in ("max", "cls", "mean")]
    np.testing.assert_array_equal(pool(hidden, starts, "max+cls+mean"), np.concatenate(parts, axis=1))


@pytest.mark.parametrize("pooling", [name for name in ALONE if name != "weightedmean"])
def test_first_tokens_may_take_no_part(pooling, rng):
    hidden, starts = rng.standard_normal((9, 4), dtype=np.float32), np.array([0, 3, 9])
    expected = [ALONE[pooling](hidden[2:3]), ALONE[pooling](hidden[5:9])]
    np.testing.assert_allclose(pool(hidden, starts, pooling, 2), expected, atol=1e-6)


def test_weights_count_from_the_first_token_of_all(rng):
    hidden = rng.standard_normal((6, 4), dtype=np.float32)
    expected = np.average(hidden[2:], axis=0, weights=[3, 4, 5, 6])
    np.testing.assert_allclose(pool(hidden, np.array([0, 6]), "weightedmean", 2), [expected], atol=1e-6)


def test_unit_length(rng):
    vectors = rng.standard_normal((5, 13), dtype=np.float32) * np.float32(1e-3)
    vectors[2] = 0
    units = unit_length(vectors)
    assert units.dtype == np.float32 and not units[2].any()
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), [1, 1, 0, 1, 1], atol=1e-6)
