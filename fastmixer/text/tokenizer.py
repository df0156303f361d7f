"""Text to ids and back, by a standard tokenizer.json of the `tokenizers` library. Knows nothing of models."""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.text.conventions import END, Conventions, read_conventions, write_conventions
from fastmixer.text.files import lone_surrogate, read_text
from fastmixer.text.pieces import bytes_of_piece, piece_style, readable

if TYPE_CHECKING:
    import tokenizers

KINDS = ("characters", "words", "bpe")
FILE = "tokenizer.json"
EVERY_CHARACTER = r"[\s\S]"  # the pattern that tells a tokenizer of characters from one of words


class Tokenizer:
    """Text to ids and back. Made by train_tokenizer, Tokenizer.load or tokenizer_from_gguf.

    ids are below vocab_size; kind is one of KINDS. end_ids: every id that ends a text or a turn, end_id the usual one of
    them. begin_id: what a text begins with, None if nothing does; adds_begin: whether encode(..., begin=True) puts it
    there. special_ids: tokens that decode leaves out; special_texts: their ids by their texts. piece_style: how pieces write
    bytes (pieces.py). chat_template: how a chat is written (jinja2), or None.
    Any number of threads may use one tokenizer.
    """

    def __init__(
        self,
        inner: "tokenizers.Tokenizer",
        conventions: Conventions | None = None,
        *,
        vocab_size: int | None = None,
        name: str = "tokenizer",
    ):
        self._inner = inner
        self._conventions = conventions or _conventions_here(inner, name)
        self._without_special: Any = None
        self._lock = threading.Lock()
        self.piece_style = piece_style(inner)
        added = inner.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self.special_texts = {token.content: token_id for token_id, token in added.items() if token.special}
        self.special_ids = frozenset(self.special_texts.values())
        self.name = name
        self.kind = _kind(inner)
        # Other people's vocabularies may have holes: the last id counts, not the number of pieces.
        self.vocab_size: int = vocab_size or 1 + max(inner.get_vocab().values())
        self.end_id: int = self._conventions.end_ids[0]
        self.end_ids = frozenset(self._conventions.end_ids)
        self.begin_id, self.adds_begin = self._conventions.begin_id, self._conventions.adds_begin
        self.chat_template = self._conventions.chat_template

    def encode(self, text: str, *, special: bool = True, begin: bool = False) -> np.ndarray:
        """The ids of text: int64 [tokens].

        special: whether a special token written out in the text counts as that token (False: as its letters).
        begin: text is a prompt, which starts with begin_id where the model wants that (once, if the text has it already).
        Raises TypeError, or ValueError for half a surrogate pair.
        """
        check_text("encode", text)
        inner = self._inner if special else self._letters_only()
        ids = inner.encode(text, add_special_tokens=False).ids
        if begin and self.adds_begin and ids[:1] != [self.begin_id]:
            ids = [self.begin_id, *ids]
        return np.array(ids, np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int64 [tokens], encoded in parallel. Raises as encode does."""
        if isinstance(texts, str):
            raise TypeError("encode_batch: texts must be a list of strings; got one string")
        for index, text in enumerate(texts):
            check_text(f"encode_batch: text {index}", text)
        return [np.array(e.ids, np.int64) for e in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids [tokens]; bytes that are no UTF-8 become U+FFFD, special tokens (end of text, ...) nothing.

        Raises TypeError for what is not a row of integers, IndexError naming id and position for one out of range.
        """
        row = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if row.size == 0:
            return ""
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise TypeError(f"decode: ids must be integers [tokens]; got {row.dtype} {row.shape}")
        wrong = np.flatnonzero((row < 0) | (row >= self.vocab_size))
        if len(wrong):
            raise IndexError(
                f"decode: ids[{wrong[0]}] = {row[wrong[0]]} is out of range; expected 0..{self.vocab_size - 1}"
            )
        return self._inner.decode(row.tolist(), skip_special_tokens=True)

    def piece_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one piece, so that a stream can join them; a special token's are its text, and so are an added
        one's, unless decode reads its letters as bytes.

        Raises IndexError for an id outside 0..vocab_size-1.
        """
        token = self._token("piece_bytes", token_id)
        if token_id in self._added and (token_id in self.special_ids or self.piece_style != "bytes"):
            return self._added[token_id].encode()
        return bytes_of_piece(token, self.piece_style)

    def pieces(self, text: str) -> list[str]:
        """The pieces of text as a reader would write them (a space is a space, not a stand-in)."""
        return [self.id_to_token(int(i)) for i in self.encode(text)]

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece as the vocabulary writes it, None if there is none."""
        return self._inner.token_to_id(token)

    def id_to_token(self, token_id: int) -> str:
        r"""The piece of an id, readable: its text, with \xe2 for a byte that is only part of a character.

        Raises IndexError for an id outside 0..vocab_size-1.
        """
        token = self._token("id_to_token", token_id)
        return readable(self.piece_bytes(token_id)) if self.kind == "bpe" else token

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer.json into folder (made if absent), and tokenizer_config.json where it takes one to say how texts
        begin, end and chat; returns the path of tokenizer.json."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        write_conventions(path.parent, self._conventions, self._inner)
        return path

    def to_json(self) -> str:
        """The whole tokenizer as the text of a tokenizer.json."""
        return self._inner.to_str(pretty=True)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a tokenizer.json, or of the folder that holds one. Where texts begin and end, and the chat
        template, come from the files beside it (tokenizer_config.json, special_tokens_map.json, generation_config.json,
        chat_template.jinja or .json), if there are any. FileNotFoundError, or ValueError that names file and field."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        inner = inner_from(path)
        vocab_size = 1 + max(inner.get_vocab().values(), default=-1)
        if not vocab_size:
            raise ValueError(f"{path}: model.vocab is empty")
        return cls(inner, read_conventions(path, inner, vocab_size), vocab_size=vocab_size, name=str(path))

    def _token(self, op: str, token_id: int) -> str:
        token = self._inner.id_to_token(int(token_id)) if 0 <= token_id < self.vocab_size else None
        if token is None:
            raise IndexError(f"{op}: {token_id} is out of range; expected 0..{self.vocab_size - 1}")
        return token

    def _letters_only(self) -> Any:
        """The same tokenizer, to which special tokens are letters like others: a copy, for other threads read this one."""
        with self._lock:
            if self._without_special is None:
                copy = type(self._inner).from_str(self._inner.to_str())
                copy.encode_special_tokens = True
                self._without_special = copy
            return self._without_special


def check_text(op: str, text: str) -> None:
    """TypeError or ValueError, naming op, for what is no text that UTF-8 can write."""
    if not isinstance(text, str):
        raise TypeError(f"{op}: text must be a string; got {type(text).__name__}")
    place = lone_surrogate(text)
    if place is not None:
        raise ValueError(f"{op}: character {place} is {text[place]!r}, half a surrogate pair; no text holds that alone")


def inner_from(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    text = read_text(path)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises nothing narrower, and panics (no Exception) at some files
        raise ValueError(f"{path} is not {_not_json(text) or f'a tokenizer.json: {error}'}") from error


def _not_json(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"JSON: {error}"
    return ""


def _conventions_here(inner: Any, name: str) -> Conventions:
    """Those of the tokenizers that are trained here."""
    end = inner.token_to_id(END)
    if end is None:
        raise ValueError(f"{name}: the vocabulary has no {END!r} token")
    return Conventions((end,))


def _kind(inner: Any) -> str:
    """Which of the three levels a tokenizer is, from what it is made of."""
    if type(inner.model).__name__ != "WordLevel":
        return "bpe"
    splitter = (json.loads(inner.to_str()).get("pre_tokenizer") or {}).get("pattern") or {}
    return "characters" if splitter.get("Regex", "") == EVERY_CHARACTER else "words"
