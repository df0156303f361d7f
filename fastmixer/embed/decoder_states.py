"""A decoder as what gives each token its hidden state, called as an Encoder is. Knows nothing of texts or pooling."""

import numpy as np

from fastmixer.kernels.decoder.pages import PAGE
from fastmixer.model.decoder import Decoder

CACHE_DTYPE = "float32"  # of keys and values, which live for one call
CACHE_BYTES = 1 << 28  # of one call's pages, unless a single text needs more


class DecoderStates:
    """The hidden states of a Decoder, whose weights it shares. Every text has pages of its own, and so few tokens of most
    texts fill theirs that pages, not tokens, say how many texts go through together."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self.config, self.kinds, self.weights, self.nbytes = (
            decoder.config, decoder.kinds, decoder.weights, decoder.nbytes,
        )  # fmt: skip
        groups = len(decoder.windows)
        self._most = CACHE_BYTES // sum(decoder.page_bytes(group, CACHE_DTYPE) for group in range(groups))

    def forward(self, ids: np.ndarray, starts: np.ndarray, token_types: np.ndarray | None = None) -> np.ndarray:
        """float32 [tokens, dim] after the final norm. ids: int64 [tokens], of sequence s those from starts[s] to
        starts[s + 1] (starts: int64 [sequences + 1]); each sees what stands before it in its own. token_types: None."""
        hidden = np.empty((len(ids), self.config.dim), np.float32)
        pages = -(-np.diff(starts) // PAGE)
        first = 0
        while first < len(pages):
            passed = np.cumsum(pages[first:])
            stop = first + max(1, int(np.searchsorted(passed, self._most, side="right")))
            rows = slice(int(starts[first]), int(starts[stop]))
            hidden[rows] = self._forward(ids[rows], starts[first : stop + 1] - starts[first], pages[first:stop])
            first = stop
        return hidden

    def _forward(self, ids: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The same of sequences that need counts: int64 [sequences] pages."""
        decoder, ends = self._decoder, np.cumsum(counts)
        place = np.arange(counts.max(initial=0))
        table = np.where(place < counts[:, None], (ends - counts)[:, None] + place, -1).astype(np.int32)
        tables = np.ascontiguousarray(np.broadcast_to(table, (len(decoder.windows), *table.shape)))
        pages = decoder.new_pages(max(1, int(counts.sum())), CACHE_DTYPE)
        _, hidden = decoder.forward(
            ids, starts, np.zeros(len(counts), np.int64), pages, tables, np.arange(len(ids)), logits=False, hidden=True
        )
        assert hidden is not None
        return hidden
