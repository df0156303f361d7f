"""Drawing the next token from logits, in NumPy: the truth that jit and native are held to; float32 or float64.

Randomness comes in as uniform numbers. Knows nothing of generators, models or text.
"""

import numpy as np


def sample(logits, temperature, top_k, top_p, min_p, uniform, out):
    """One token id per row of logits: [batch, vocab] (overwritten: scratch) into out: int64 [batch].

    temperature 0 takes the largest logit. Otherwise, in this order: temperature; the top_k largest (0: all); the
    fewest most probable whose share reaches top_p; those at least min_p times as probable as the best; then the id
    at which the summed probability, in order of id, passes uniform: float64 [batch] in [0, 1).
    Among equals the lower id comes first. A row holds at least one finite logit, no NaN and no +inf.
    """
    for row, logits_row in enumerate(logits):
        if temperature == 0:
            out[row] = logits_row.argmax()
            continue
        # top-k
        if 0 < top_k < logits_row.size:
            best_first = np.argsort(-logits_row, kind="stable")
            logits_row[best_first[top_k:]] = -np.inf
        # temperature; the best token weighs 1
        weights = np.exp((logits_row - logits_row.max()) / temperature)
        # top-p: a token stays while those before it have not reached the share
        if top_p < 1:
            best_first = np.argsort(-weights, kind="stable")
            reached = np.cumsum(weights[best_first], dtype=np.float64)
            before = np.concatenate([[0.0], reached[:-1]])
            weights[best_first[before >= top_p * reached[-1]]] = 0
        # min-p
        weights[weights < min_p] = 0
        # draw
        reached = np.cumsum(weights, dtype=np.float64)
        out[row] = np.searchsorted(reached, uniform[row] * reached[-1], side="right")


def penalize_repetition(logits, ids, penalty):
    """Divide positive and multiply negative logits of the ids that occurred by penalty, once each, in place.

    logits: [batch, vocab]; ids: int64 [batch, n], 0..vocab-1 or -1 (nothing). Source: CTRL, Keskar et al. 2019.
    """
    for logits_row, ids_row in zip(logits, ids, strict=True):
        occurred = np.unique(ids_row[ids_row >= 0])
        values = logits_row[occurred]
        logits_row[occurred] = np.where(values < 0, values * penalty, values / penalty)
