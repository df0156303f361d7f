"""Batches of windows from a shard: shuffled anew each epoch by seed, from a position that can be saved and restored.

Knows nothing of files or models.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastmixer.data.shards import TokenShard


class BatchReader:
    """Endless batches of (ids, targets), int64 [batch, time] each, targets one token ahead of ids.

    An epoch cuts the shard into windows of time + 1 tokens from an offset of its own and visits them in an order of its
    own; both come from (seed, epoch). Raises ValueError if the shard is shorter than one window.
    """

    def __init__(self, shard: TokenShard, batch: int, time: int, seed: int = 0):
        for name, value in (("batch", batch), ("time", time)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"BatchReader: {name} must be an integer >= 1; got {value!r}")
        _require_window("BatchReader", shard, time)
        self.shard, self.batch, self.time, self.seed = shard, batch, time, seed
        self.epoch, self.position = 0, 0  # position: windows of this epoch already read
        self._starts = self._epoch_starts()

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next batch; the end of an epoch goes over into the next."""
        windows = np.stack([self._next_window() for _ in range(self.batch)]).astype(np.int64)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def state(self) -> dict[str, Any]:
        """Where the reader stands and in which tokens, JSON-able."""
        return {
            "seed": self.seed, "batch": self.batch, "time": self.time, "tokens": len(self.shard), "crc": self.shard.crc,
            "tokenizer": self.shard.digest.hex(), "epoch": self.epoch, "position": self.position,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state(). ValueError if it is of another shard, seed or window, or is no such state."""
        expected = self.state()
        for name in ("seed", "time", "tokens"):
            if state.get(name) != expected[name]:
                raise ValueError(
                    f"BatchReader: the saved {name} is {state.get(name)!r}; this reader has {expected[name]!r}"
                )
        for name, what in (("tokenizer", "the digest of their tokenizer"), ("crc", "their checksum")):
            if name in state and state[name] != expected[name]:  # states were once saved without
                raise ValueError(
                    f"BatchReader: {self.shard.path} holds other tokens than those that were read: {what} is "
                    f"{expected[name]!r}; the saved one is {state[name]!r}"
                )
        for name in ("epoch", "position"):
            if type(state.get(name)) is not int or state[name] < 0:
                raise ValueError(f"BatchReader: the saved {name} must be an integer >= 0; got {state.get(name)!r}")
        self.epoch, self.position = state["epoch"], state["position"]
        self._starts = self._epoch_starts()
        if self.position > len(self._starts):
            raise ValueError(
                f"BatchReader: the saved position must be at most {len(self._starts)}, the windows of an epoch; "
                f"got {self.position}"
            )

    def _next_window(self) -> np.ndarray:
        if self.position == len(self._starts):
            self.epoch, self.position = self.epoch + 1, 0
            self._starts = self._epoch_starts()
        start = self._starts[self.position]
        self.position += 1
        return self.shard.tokens[start : start + self.time + 1]

    def _epoch_starts(self) -> np.ndarray:
        """Where this epoch's windows begin, in the order in which they are read: int64 [windows]."""
        rng = np.random.default_rng([self.seed, self.epoch])
        spare = len(self.shard) - (self.time + 1)
        offset = int(rng.integers(0, min(self.time, spare + 1)))
        return rng.permutation(np.arange(offset, spare + 1, self.time))


def iterate_batches(
    shard: TokenShard, batch: int, time: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The shard's windows in order, as (ids, targets) int64 [<= batch, time]; at most `limit` batches.

    Every token is a target once, but for a rest shorter than a window. ValueError if the shard is shorter than one window.
    """
    _require_window("iterate_batches", shard, time)
    starts = range(0, len(shard) - time, time)
    for count, first in enumerate(range(0, len(starts), batch)):
        if count == limit:
            return
        windows = np.stack([shard.tokens[s : s + time + 1] for s in starts[first : first + batch]]).astype(np.int64)
        yield np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def _require_window(op: str, shard: TokenShard, time: int) -> None:
    if len(shard) < time + 1:
        raise ValueError(
            f"{op}: {shard.path} has {len(shard)} tokens; a context of {time} needs at least {time + 1}. "
            "Give more text or a shorter context"
        )
