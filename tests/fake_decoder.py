"""A decoder whose every number comes from what it reads back from its pages, so that a wrong page or place is found out."""

import zlib

import numpy as np

from fastmixer.kernels.decoder.pages import PAGE
from fastmixer.model.config import ModelConfig


class FakePages:
    """Of each group: the id, the position and a little noise that were written to each place of each page."""

    def __init__(self, sizes):
        self.ids = [np.full((size, PAGE), -1, np.int64) for size in sizes]
        self.positions = [np.full((size, PAGE), -1, np.int64) for size in sizes]
        self.noise = [np.zeros((size, PAGE)) for size in sizes]


class FakeDecoder:
    """Logits are drawn from a hash of all ids that each group sees, read from its pages: a wrong table, position or reused
    page changes them, or is found at once. noise: numbers also depend, a little, on what else is in a call, and pages keep
    that. calls: (sequences, tokens) of each; before_forward: called with the number of calls so far."""

    weights, nbytes = "auto", 1000

    def __init__(self, windows=(0,), context=256, vocab=320, noise=0.0, favourite=None):
        self.windows, self.noise, self.favourite = windows, noise, favourite
        self.config = ModelConfig(vocab=vocab, context=context, dim=8, layers=2, heads=2)
        self.kinds = {"embedding.weight": "int8", "head.weight": "int4"}
        self.calls = []
        self.before_forward = lambda count: None

    def new_pages(self, sizes, dtype="bfloat16"):
        return FakePages(sizes)

    def page_bytes(self, group, dtype="bfloat16"):
        return PAGE * 100

    def step(self, *arguments):
        *inputs, logits, written = arguments
        assert written.dtype == np.uint8 and len(written) == len(inputs[1]) - 1
        logits[...] = self.forward(*inputs)[0]

    def forward(self, ids, starts, first_positions, pages, tables, wanted=None):
        self.before_forward(len(self.calls))
        assert ids.dtype == starts.dtype == first_positions.dtype == np.int64 and tables.dtype == np.int32
        assert starts[0] == 0 and starts[-1] == len(ids) and tables.shape[:2] == (len(self.windows), len(starts) - 1)
        self.calls.append((len(starts) - 1, len(ids)))
        logits = np.empty((len(wanted), self.config.vocab), np.float32)
        rows = {int(token): row for row, token in enumerate(wanted)}
        for sequence, first_position in enumerate(first_positions):
            for token in range(starts[sequence], starts[sequence + 1]):
                position = first_position + token - starts[sequence]
                assert position < self.config.context
                digest, noise = [], 0.0
                for group, window in enumerate(self.windows):
                    table = tables[group, sequence]
                    own = (table[position // PAGE], position % PAGE)
                    assert own[0] >= 0
                    pages.ids[group][own], pages.positions[group][own] = ids[token], position
                    pages.noise[group][own] = self.noise * (len(ids) + len(starts))
                    seen = np.arange(max(0, position - window + 1) if window else 0, position + 1)
                    held = table[seen // PAGE]
                    assert (held >= 0).all(), "a page that is seen is not held"
                    assert (pages.positions[group][held, seen % PAGE] == seen).all(), "a page was written over"
                    digest.append(zlib.crc32(pages.ids[group][held, seen % PAGE].tobytes()))
                    noise += pages.noise[group][held, seen % PAGE].sum()
                if token in rows:
                    random = np.random.default_rng(digest)
                    row = random.standard_normal(self.config.vocab)
                    row += noise * random.standard_normal(self.config.vocab)
                    if self.favourite is not None:
                        row[self.favourite(position)] += 100
                    logits[rows[token]] = row
        return logits, None


def greedy_tokens(decoder, prompt, count):
    """What a decoder writes greedily when nothing else is there."""
    ids, fed = list(prompt), 0
    most = -(-(len(prompt) + count) // PAGE)
    pages = decoder.new_pages([most] * len(decoder.windows))
    tables = np.tile(np.arange(most, dtype=np.int32), (len(decoder.windows), 1, 1))
    while len(ids) < len(prompt) + count:
        new = np.array(ids[fed:])
        logits, _ = decoder.forward(
            new, np.array([0, len(new)]), np.array([fed]), pages, tables, np.array([len(new) - 1])
        )
        fed = len(ids)
        ids.append(int(logits[0].argmax()))
    return ids[len(prompt) :]
