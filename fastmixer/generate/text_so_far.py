"""Text as its tokens come: what is certain at once, and no piece of work done twice.

Held back are bytes that are no character yet, and what may turn out to be the beginning of a stop string. The pieces
joined are tokenizer.decode of all ids, up to the stop string. Knows nothing of how tokens are made.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer


class ByteText:
    """The text of a byte-level vocabulary: pieces are bytes, and bytes are decoded as they come."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What is certain after one more token and was not before."""
        if token in self._tokenizer.special_ids:  # decode leaves them out
            return ""
        return self._decoder.decode(self._tokenizer.piece_bytes(token))

    def pending(self) -> str:
        """What the tokens since then would be if nothing followed."""
        return self._decoder.decode(b"", final=True) if self._decoder.getstate()[0] else ""


class PieceText:
    """The text of other vocabularies: pieces are text, and a few stand for single bytes.

    A decoder judges a run of single bytes as a whole, so that it is certain when something else follows. It may also treat
    the beginning of a text in its own way: each part is decoded behind the one before.
    """

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        names = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self._bytes = frozenset(name for name in names if name is not None)
        self._before: list[int] = []  # the last part that was certain
        self._after: list[int] = []  # tokens since then

    def push(self, token: int) -> str:
        """What is certain after one more token and was not before."""
        if token in self._tokenizer.special_ids:  # decode leaves them out, so that bytes on either side stand together
            return ""
        self._after.append(token)
        if token in self._bytes:
            return ""
        text = self.pending()
        if text:
            self._before = self._after
        else:  # nothing to be seen (a space that begins a text): the part before it is still the last that was seen
            self._before = self._before + self._after if self._before else self._after
        self._after = []
        return text

    def pending(self) -> str:
        """What the tokens since then would be if nothing followed."""
        if not self._after:
            return ""
        shown = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._after)[len(shown) :]


class TextSoFar:
    """The text of one sequence. pieces: what has become certain and nobody has taken yet; has_stopped: whether a stop
    string has come, before which the text ends."""

    def __init__(self, tokenizer: "Tokenizer", stops: Sequence[str]):
        self._decoder = ByteText(tokenizer) if tokenizer.piece_style == "bytes" else PieceText(tokenizer)
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""  # certain, but it may be the beginning of a stop string
        self.pieces: deque[str] = deque()
        self.has_stopped = False

    def push(self, token: int) -> None:
        """One more token."""
        self._held += self._decoder.push(token)
        if self._stops:
            pending = self._decoder.pending() if isinstance(self._decoder, PieceText) else ""
            if self._cut(self._held + pending):
                return
        self._show(len(self._held) - self._uncertain())

    def end(self) -> None:
        """Nothing follows: everything is certain."""
        if not self.has_stopped:
            self._held += self._decoder.pending()
            if not self._cut(self._held):
                self._show(len(self._held))

    def _cut(self, text: str) -> bool:
        """Whether text, what was not shown yet, holds a stop string; what stands before it is shown."""
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self._held, self.has_stopped = text, True
            self._show(min(places))
        return bool(places)

    def _show(self, count: int) -> None:
        if count > 0:
            self.pieces.append(self._held[:count])
            self._held = self._held[count:]

    def _uncertain(self) -> int:
        """How many characters at the end of what is held may begin a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


def text_before_stops(text: str, stops: Sequence[str]) -> str:
    """text up to the first stop string in it."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else text
