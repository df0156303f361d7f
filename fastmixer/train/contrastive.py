"""The loss that draws texts which belong together close, and the way back from it to hidden states.

Every text of a batch is a wrong answer to the others' questions (in-batch negatives). Knows nothing of encoders or texts.
Source: multiple negatives ranking, Henderson et al. 2017 (arXiv 1705.00652).
"""

from itertools import pairwise

import numpy as np

from fastmixer.embed.pooling import SMALLEST_NORM, pool
from fastmixer.ops.cross_entropy import cross_entropy
from fastmixer.ops.matmul import matmul
from fastmixer.train.dense import DenseStages

# What stands in a score's place that must not count: e to that is 0 beside any score of cosines times MAX_SCALE.
MASKED, MAX_SCALE = -1e4, 1000.0


def contrastive_loss(
    hidden: np.ndarray,
    starts: np.ndarray,
    pooling: str,
    masked: np.ndarray,
    *,
    scale: float = 20.0,
    symmetric: bool = False,
    dense: DenseStages | None = None,
    d_hidden: np.ndarray | None = None,
) -> float:
    """The mean loss in nats of finding each anchor's positive among all candidates, by scale * cosine.

    hidden: float [tokens, dim] of batch anchors, then their positives in the same order, then any number of negatives: one
    sequence each, from starts[s] to starts[s + 1]. masked: bool [batch, candidates], True where a candidate must not count
    against an anchor. symmetric: the mean of that and of finding each positive's anchor. dense: stages between what is
    pooled and its vector. d_hidden: float [tokens, dim] receives the gradient, and the stages' parameters theirs.
    """
    pooled = pool(hidden, starts, pooling)
    vectors = pooled if dense is None else dense.forward(pooled)
    lengths = np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors, vectors)), SMALLEST_NORM)[:, None]
    unit = vectors / lengths
    loss, d_unit = ranking_loss(unit, masked, scale=scale, symmetric=symmetric)
    if d_hidden is not None:
        along = np.einsum("nd,nd->n", d_unit, unit)[:, None]  # a vector's length changes nothing
        d_vectors = (d_unit - along * unit) / lengths
        d_pooled = d_vectors if dense is None else dense.backward(d_vectors)
        pool_backward(d_pooled, hidden, starts, pooling, d_hidden)
    return loss


def ranking_loss(
    unit: np.ndarray, masked: np.ndarray, *, scale: float = 20.0, symmetric: bool = False
) -> tuple[float, np.ndarray]:
    """(loss, its gradient) of unit: float [batch + candidates, dim], vectors of length 1 as contrastive_loss orders them."""
    batch = len(masked)
    anchors, texts = unit[:batch], unit[batch:]
    answers = np.arange(batch)
    scores = matmul(anchors, texts, transpose_b=True)
    scores *= scale
    scores[masked] = MASKED
    loss, d_scores = cross_entropy(scores, answers)
    if symmetric:
        back, d_back = cross_entropy(np.ascontiguousarray(scores[:, :batch].T), answers)
        loss = (loss + back) / 2
        d_scores[:, :batch] += d_back.T
        d_scores *= 0.5
    d_scores *= scale
    d_unit = np.empty_like(unit)
    matmul(d_scores, texts, out=d_unit[:batch])
    matmul(d_scores, anchors, transpose_a=True, out=d_unit[batch:])
    return loss, d_unit


def pool_backward(
    d_pooled: np.ndarray, hidden: np.ndarray, starts: np.ndarray, pooling: str, d_hidden: np.ndarray
) -> None:
    """d_hidden: float [tokens, dim], overwritten, from d_pooled: float [sequences, dim]; as fastmixer.embed.pooling.pool of
    hidden: float [tokens, dim]. Of equal maxima the first has it all."""
    lengths = np.diff(starts)
    if pooling == "mean":
        d_hidden[...] = np.repeat(d_pooled / lengths.astype(d_pooled.dtype)[:, None], lengths, axis=0)
        return
    d_hidden.fill(0)
    if pooling == "max":
        features = np.arange(hidden.shape[1])
        for d_row, (start, stop) in zip(d_pooled, pairwise(starts.tolist()), strict=True):
            d_hidden[start + hidden[start:stop].argmax(axis=0), features] = d_row
    else:
        d_hidden[starts[:-1] if pooling == "cls" else starts[1:] - 1] = d_pooled
