"""How well vectors find what belongs together: each anchor's positive among all texts. Knows nothing of encoders."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastmixer.embed.pooling import unit_length
from fastmixer.ops.matmul import matmul
from fastmixer.train.pair_tokens import TokenizedPairs

DEPTH = 10  # of the mean reciprocal rank
BLOCK = 256  # anchors compared at once


class RetrievalScore(NamedTuple):
    """accuracy: part of the anchors whose most similar text is a positive of theirs; mrr: mean of 1 / rank of the first
    positive, 0 where it is not among the first 10; anchors, texts: how many there were."""

    accuracy: float
    mrr: float
    anchors: int
    texts: int

    def __str__(self) -> str:
        return (
            f"top-1 accuracy {self.accuracy:.1%}, MRR@{DEPTH} {self.mrr:.3f} ({self.anchors} among {self.texts} texts)"
        )


def retrieval_score(pairs: TokenizedPairs, embed: Callable[[np.ndarray], np.ndarray]) -> RetrievalScore:
    """Each distinct anchor against all distinct positives and negatives of pairs; the anchor's own text does not count.

    embed: gives float32 [texts, dim] of texts' numbers int64 [texts]. What is as similar as the positive ranks before it.
    """
    anchors = np.unique(pairs.anchors)
    texts = pairs.distinct(np.concatenate([pairs.positives, pairs.negatives]))
    questions, answers = unit_length(embed(anchors)), unit_length(embed(texts))
    ranks = np.empty(len(anchors), np.int64)
    for start in range(0, len(anchors), BLOCK):
        block = anchors[start : start + BLOCK]
        similarities = matmul(questions[start : start + BLOCK], answers, transpose_b=True)
        right = pairs.belongs(block, texts)
        wrong = ~right & ~pairs.same(block, texts)
        best = np.where(right, similarities, -np.inf).max(axis=1, keepdims=True)
        ranks[start : start + BLOCK] = 1 + (wrong & (similarities >= best)).sum(axis=1)
    found = np.where(ranks <= DEPTH, 1 / ranks, 0)
    return RetrievalScore(float((ranks == 1).mean()), float(found.mean()), len(anchors), len(texts))
