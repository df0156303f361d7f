"""Pairs of texts as tokens: each distinct text once, batches of them packed, and who must not count as whose negative.

Knows tokenizers; nothing of encoders or losses.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastmixer.data.pairs import TextPair
from fastmixer.embed.sentence_tokenizer import SentenceTokenizer

WINDOW = 2048  # texts tokenized at once


class Packed(NamedTuple):
    """Sequences one after another: ids, token_types int64 [tokens]; starts int64 [sequences + 1]."""

    ids: np.ndarray
    starts: np.ndarray
    token_types: np.ndarray


class Prompts(NamedTuple):
    """What stands before anchors, and before positives and negatives."""

    anchor: str = ""
    text: str = ""


class TokenizedPairs:
    """Texts and pairs by number. anchors, positives: int64 [pairs], the number of each pair's texts; negatives: int64
    [pairs' negatives], those of pair i from negative_starts[i] to negative_starts[i + 1].

    A text that is cut to the tokenizer's limit gives one warning. Raises ValueError as the tokenizer does.
    """

    def __init__(self, pairs: Sequence[TextPair], tokenizer: SentenceTokenizer, prompts: Prompts):
        # A text has a number of its own with each prompt before it; words are what it is without.
        rows: dict[str, int] = {}
        words: dict[str, int] = {}
        self._words_of_row: list[int] = []
        self._pairs = pairs

        def row_of(prompt: str, text: str) -> int:
            row = rows.setdefault(prompt + text, len(rows))
            if row == len(self._words_of_row):
                self._words_of_row.append(words.setdefault(text, len(words)))
            return row

        self.anchors = np.array([row_of(prompts.anchor, pair.anchor) for pair in pairs], np.int64)
        self.positives = np.array([row_of(prompts.text, pair.positive) for pair in pairs], np.int64)
        negatives = [[row_of(prompts.text, text) for text in pair.negatives] for pair in pairs]
        self.negatives = np.array([row for listed in negatives for row in listed], np.int64)
        self.negative_starts = np.concatenate([[0], np.cumsum([len(listed) for listed in negatives])]).astype(np.int64)
        self._words = np.array(self._words_of_row)
        self._known = np.unique(self._key(self.anchors, self.positives))
        self._tokenize(list(rows), tokenizer)

    def __len__(self) -> int:
        return len(self.anchors)

    def pack(self, rows: np.ndarray) -> Packed:
        """The tokens of these texts: int64 [sequences]."""
        spans = [slice(self._starts[row], self._starts[row + 1]) for row in rows.tolist()]
        ids = np.concatenate([self._ids[span] for span in spans]).astype(np.int64)
        types = np.concatenate([self._types[span] for span in spans]).astype(np.int64)
        return Packed(ids, np.concatenate([[0], np.cumsum(self.lengths[rows])]), types)

    def rows_of(self, pairs: np.ndarray) -> np.ndarray:
        """The texts of a batch of pairs: anchors, positives, then all their negatives."""
        spans = [self.negatives[self.negative_starts[pair] : self.negative_starts[pair + 1]] for pair in pairs.tolist()]
        return np.concatenate([self.anchors[pairs], self.positives[pairs], *spans])

    def masked(self, pairs: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool [pairs, candidates]: whether a candidate (a text's number; those of the pairs first) must not count against
        an anchor: because a pair says that they belong together, or because it is the anchor's own text."""
        masked = self.belongs(self.anchors[pairs], candidates) | self.same(self.anchors[pairs], candidates)
        masked[np.arange(len(pairs)), np.arange(len(pairs))] = False
        return masked

    def belongs(self, anchors: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool [anchors, candidates]: whether some pair has the two."""
        return np.isin(self._key(anchors[:, None], candidates[None, :]), self._known)

    def same(self, anchors: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool [anchors, candidates]: whether the two are one text, prompts aside."""
        return self._words[anchors][:, None] == self._words[candidates][None, :]

    def distinct(self, rows: np.ndarray) -> np.ndarray:
        """Of these texts' numbers one for each text, in ascending order."""
        rows = np.unique(rows)
        return rows[np.sort(np.unique(self._words[rows], return_index=True)[1])]

    def _key(self, anchors: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return self._words[anchors] * len(self._words) + self._words[candidates]

    def _tokenize(self, texts: list[str], tokenizer: SentenceTokenizer) -> None:
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        cut: int | None = None
        for first in range(0, len(texts), WINDOW):
            encoded = tokenizer.encode("EmbedderTrainer", texts[first : first + WINDOW], first)
            cut = encoded.cut if cut is None else cut
            ids += encoded.ids
            types += encoded.types
        self.lengths = np.array([len(row) for row in ids], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)]).tolist()
        self._ids = np.concatenate(ids).astype(np.int32)
        self._types = np.concatenate(types).astype(np.int8)
        if cut is not None:
            warnings.warn(
                f"{self._where(cut)} is longer than {tokenizer.max_length} tokens; it is cut, as others will be without a "
                "word",
                UserWarning,
                stacklevel=4,
            )

    def _where(self, row: int) -> str:
        """Which text of which pair this is."""
        for index, pair in enumerate(self._pairs):
            where = pair.where or f"pairs[{index}]"
            if self.anchors[index] == row:
                return f"{where}: the anchor"
            if self.positives[index] == row:
                return f"{where}: the positive"
            if row in self.negatives[self.negative_starts[index] : self.negative_starts[index + 1]]:
                return f"{where}: a negative"
        raise AssertionError(row)


def batches(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers 0..count-1 in batches, epoch after epoch without end, each in an order of its own; a last batch of one pair,
    which would have nothing to be told from, is left out."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count, batch):
            if count - start > 1:
                yield order[start : start + batch]
        epoch += 1


def batches_in_epoch(count: int, batch: int) -> int:
    """How many batches an epoch has."""
    return count // batch + (count % batch > 1)
