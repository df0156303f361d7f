"""Texts for peers whose batches are padded: sorted by length, so many at a time, each padded to its longest, tokenized
with the tokenizers library alone, which is the fastest that they can have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

MAX_LENGTH = 256  # all-MiniLM-L6-v2's


class PaddedBatches:
    """The tokenizer of an encoder's folder, and what it makes of texts."""

    def __init__(self, folder: str):
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_LENGTH)
        self._tokenizer.enable_padding()

    def embed(self, texts: list[str], batch: int, run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """float32 [texts, dim], in order, of run(ids, mask: int64 [batch, time]) -> float32 [batch, dim]."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        parts = [order[first : first + batch] for first in range(0, len(order), batch)]
        found = np.concatenate([run(*self._tokens([texts[index] for index in part])) for part in parts])
        out = np.empty_like(found)
        out[order] = found
        return out

    def _tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts)
        return (
            np.array([one.ids for one in encodings], np.int64),
            np.array([one.attention_mask for one in encodings], np.int64),
        )
