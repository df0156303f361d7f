"""Which texts go through an encoder together. Knows nothing of texts or encoders, only of lengths."""

from collections.abc import Iterator

import numpy as np


def longest_first(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """int64 [texts of a batch], one batch after another: places in lengths (int64 [texts], tokens of each), the longest
    first, as many as have batch_tokens tokens together, but at least one."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    first = 0
    while first < len(order):
        passed = ends[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, passed + batch_tokens, side="right")))
        yield order[first:stop]
        first = stop
