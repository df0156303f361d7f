"""Sparse-row embedding updates of untied models: the same gradients in rows, and nothing else moves."""

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.ops.embedding import SparseRows

NAME = "embedding.weight"


def _pair(small, **options):
    config = small("llama", vocab=97)
    return [fm.Transformer(config, seed=2, sparse_embedding=sparse, **options) for sparse in (False, True)]


def test_rows_are_the_dense_gradient(small, batch_for):
    dense, sparse = _pair(small)
    for seed in (1, 2):  # two batches add up
        ids, targets = batch_for(dense.config, seed=seed)
        assert dense.forward_backward(ids, targets) == sparse.forward_backward(ids, targets)
    assert not sparse.parameters.gradient(NAME).any()
    rows = sparse.parameters.sparse()[NAME]
    np.testing.assert_allclose(rows.to_dense(), dense.parameters.gradient(NAME), atol=1e-8)
    assert len(rows.rows) < 40
    for name in dense.parameters:
        if name != NAME:
            assert np.array_equal(dense.parameters.gradient(name), sparse.parameters.gradient(name))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_rows_that_occurred_move_and_they_move_as_in_dense(small, batch_for, precision):
    dense, sparse = _pair(small, precision=precision, force_precision=True)
    before = sparse.parameters[NAME].copy()
    ids, targets = batch_for(dense.config)
    norms = []
    for model in (dense, sparse):
        model.forward_backward(ids, targets)
        norms.append(fm.AdamW(model.parameters, 1e-2).step())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    touched = np.zeros(97, bool)
    touched[ids] = True
    assert np.array_equal(sparse.parameters[NAME][~touched], before[~touched])
    np.testing.assert_allclose(sparse.parameters[NAME][touched], dense.parameters[NAME][touched], atol=2e-6)
    for name in dense.parameters:
        if name != NAME:
            np.testing.assert_allclose(sparse.parameters[name], dense.parameters[name], atol=2e-6, err_msg=name)
    assert not sparse.parameters.sparse()


def test_it_learns(small, batch_for):
    model = _pair(small)[1]
    optimizer = fm.AdamW(model.parameters, 1e-2)
    ids, targets = batch_for(model.config)
    losses = []
    for _ in range(40):
        losses.append(model.forward_backward(ids, targets))
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_broken_row_is_named(small, batch_for):
    model = _pair(small)[1]
    ids, targets = batch_for(model.config)
    model.forward_backward(ids, targets)
    model.parameters.sparse()[NAME].values[0, 0] = np.nan
    assert model.first_nonfinite(ids, targets) == f"gradient of {NAME}"
    with pytest.raises(FloatingPointError):
        fm.AdamW(model.parameters).step()


def test_tied_heads_cannot(small):
    with pytest.raises(ValueError, match="^Transformer: sparse_embedding needs an untied head: a tied one moves every row$"):
        fm.Transformer(small("gpt2"), sparse_embedding=True)


def test_merged_is_a_sum(rng):
    def rows(*ids):
        return SparseRows(np.array(ids), rng.standard_normal((len(ids), 3)).astype(np.float32), 9)

    one, two = rows(0, 4, 7), rows(2, 4)
    np.testing.assert_array_equal(one.merged(two).to_dense(), one.to_dense() + two.to_dense())
    assert one.merged(two).rows.tolist() == [0, 2, 4, 7]
    with pytest.raises(ValueError, match="both must be of one table; got 9 rows of 3 and 8 of 3"):
        one.merged(SparseRows(two.rows, two.values, 8))
