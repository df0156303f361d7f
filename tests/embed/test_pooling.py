"""Pooling over ragged sequences, against each sequence alone."""

import numpy as np
import pytest

from fastmixer.embed.pooling import pool, unit_length

ALONE = {
    "mean": lambda x: x.mean(axis=0), "max": lambda x: x.max(axis=0), "cls": lambda x: x[0], "last": lambda x: x[-1],
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
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_unit_length(rng):
    vectors = rng.standard_normal((5, 13), dtype=np.float32) * np.float32(1e-3)
    vectors[2] = 0
    units = unit_length(vectors)
    assert units.dtype == np.float32 and not units[2].any()
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), [1, 1, 0, 1, 1], atol=1e-6)
