"""Guessing the next tokens from what stands earlier in the text: prompt lookup (Saxena 2023, "Prompt Lookup Decoding").

What follows the last occurrence of the newest few tokens is likely to follow again. Knows nothing of models: guesses are
checked elsewhere, and cost only time if they are wrong.
"""

from collections.abc import Iterable

LENGTHS = (3, 2)  # tokens that must be found again, the longer the better


class PromptLookup:
    """Where each pair and triple of tokens last ended in ids, one added at a time, in constant time each."""

    def __init__(self, ids: Iterable[int]):
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # what follows the tokens begins here
        self._found: int | None = None
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token."""
        self._ids.append(token)
        self._found = None
        end = len(self._ids)
        for length in LENGTHS:
            if end >= length:
                tail = tuple(self._ids[end - length :])
                if self._found is None:
                    self._found = self._after.get(tail)
                self._after[tail] = end

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none if the newest ones are new together."""
        if self._found is None or most <= 0:
            return []
        return self._ids[self._found : self._found + most]
