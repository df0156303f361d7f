"""Who is near whom among vectors, plainly: what goldens keep, and what approximate vectors are held to."""

import numpy as np


def nearest(vectors, count):
    """int64 [n, count]: for each of vectors [n, dim] of unit length the others of the largest cosines, nearest first."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)  # no vector is its own neighbour
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def agreement(found, expected):
    """The share of expected [n, count] that is among found [n, count], row by row, in whatever order."""
    same = [len(set(ours) & set(theirs)) for ours, theirs in zip(found.tolist(), expected.tolist(), strict=True)]
    return sum(same) / expected.size
