"""Tokenizers at three levels, all of them standard tokenizer.json files of the `tokenizers` library.

characters: a tiny vocabulary, long sequences. words: short sequences, but a huge vocabulary and no answer to a word it
has not seen. bpe: subwords over bytes, about 1.3 an English word, any text whatever. Knows nothing of models.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.text.files import lone_surrogate, pieces_of, read_text

if TYPE_CHECKING:
    import tokenizers

KINDS = ("characters", "words", "bpe")
END = "<|endoftext|>"
UNKNOWN = "<unk>"
FILE = "tokenizer.json"
EVERY_WORD = r" ?\w+| ?[^\w\s]|\s"
EVERY_CHARACTER = r"[\s\S]"  # the pattern that tells a tokenizer of characters from one of words
DEFAULT_VOCAB = 4096
SMALLEST_BPE = 257  # 256 bytes and the end-of-text token


class Tokenizer:
    """Text to ids and back. Made by train_tokenizer or Tokenizer.load; ids are below vocab_size, end_id marks a text's
    end, kind is one of KINDS."""

    def __init__(self, inner: "tokenizers.Tokenizer"):
        self._inner = inner
        self.kind = _kind(inner)
        end = inner.token_to_id(END)
        if end is None:
            raise ValueError(f"tokenizer: the vocabulary has no {END!r} token")
        self.end_id: int = end
        self.vocab_size: int = 1 + max(inner.get_vocab().values())  # other people's vocabularies may have holes

    def encode(self, text: str) -> np.ndarray:
        """The ids of text: int64 [tokens]. A special token written out in the text counts as that token.

        Raises TypeError, or ValueError for half a surrogate pair.
        """
        _check_text("encode", text)
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int64 [tokens], encoded in parallel. Raises as encode does."""
        if isinstance(texts, str):
            raise TypeError("encode_batch: texts must be a list of strings; got one string")
        for index, text in enumerate(texts):
            _check_text(f"encode_batch: text {index}", text)
        return [np.array(e.ids, np.int64) for e in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids [tokens]; bytes that are no UTF-8 become U+FFFD, the end-of-text token nothing.

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

    def pieces(self, text: str) -> list[str]:
        """The pieces of text as a reader would write them (a space is a space, not a stand-in)."""
        return [self.id_to_token(int(i)) for i in self.encode(text)]

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece as the vocabulary writes it, None if there is none."""
        return self._inner.token_to_id(token)

    def id_to_token(self, token_id: int) -> str:
        """The piece of an id, readable: decoded where it is whole characters, else as the vocabulary writes it.

        Raises IndexError for an id outside 0..vocab_size-1.
        """
        token = self._inner.id_to_token(int(token_id)) if token_id >= 0 else None
        if token is None:
            raise IndexError(f"id_to_token: {token_id} is out of range; expected 0..{self.vocab_size - 1}")
        if self.kind != "bpe":
            return token
        text = self._inner.decode([int(token_id)], skip_special_tokens=False)
        return token if "\ufffd" in text or not text else text

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer.json into folder (made if absent); returns its path."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    def to_json(self) -> str:
        """The whole tokenizer as the text of a tokenizer.json."""
        return self._inner.to_str(pretty=True)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a tokenizer.json, or of the folder that holds one. FileNotFoundError, or ValueError that names
        the file."""
        import tokenizers

        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        text = read_text(path)
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        return cls(inner)


def train_tokenizer(
    texts: str | Path | Iterable[str | Path], kind: str = "bpe", vocab_size: int = DEFAULT_VOCAB
) -> Tokenizer:
    """A tokenizer learned from texts: strings, or Paths of text files.

    kind: "characters" (vocab_size is an upper limit), "words" (the most frequent, others become <unk>) or "bpe"
    (byte-level; Sennrich et al. 2016, arXiv 1508.07909, over bytes as in GPT-2). Where the text cannot yield vocab_size
    pieces there are fewer, with a warning for bpe. Raises ValueError for empty text, a file that is not text, an unknown
    kind or a small vocab_size; TypeError for what is neither string nor Path.
    """
    if kind not in KINDS:
        raise ValueError(f"train_tokenizer: kind must be one of {', '.join(KINDS)}; got {kind!r}")
    smallest = SMALLEST_BPE if kind == "bpe" else 3
    if not isinstance(vocab_size, int) or vocab_size < smallest:
        raise ValueError(f"train_tokenizer: vocab_size must be an integer >= {smallest} for {kind}; got {vocab_size!r}")
    sources = [texts] if isinstance(texts, (str, Path)) else list(texts)
    strings = list(_strings(sources))
    if not any(text.strip() for text in strings):
        names = ", ".join(str(source) for source in sources if isinstance(source, Path))
        raise ValueError("train_tokenizer: the text is empty" + (f": {names}" if names else ""))
    train = {"characters": _train_characters, "words": _train_words, "bpe": _train_bpe}[kind]
    tokenizer = Tokenizer(train(strings, vocab_size))
    if kind == "bpe" and tokenizer.vocab_size < vocab_size:
        warnings.warn(
            f"train_tokenizer: the text yields {tokenizer.vocab_size} pieces, not the {vocab_size} asked for",
            stacklevel=2,
        )
    return tokenizer


def _train_bpe(texts: list[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((piece for text in texts for piece in pieces_of(text)), trainer)
    return inner


def _train_words(texts: list[str], vocab_size: int) -> Any:
    # words with the space before them, punctuation apart: joined, the pieces are the text again
    return _list_pieces(texts, vocab_size, EVERY_WORD)


def _train_characters(texts: list[str], vocab_size: int) -> Any:
    return _list_pieces(texts, vocab_size, EVERY_CHARACTER)


def _list_pieces(texts: list[str], vocab_size: int, pattern: str) -> Any:
    """A vocabulary that lists the most frequent matches of a pattern; all others are <unk>."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    splitter = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    # No match goes beyond a line, and lines keep the library's list of places short.
    lines = (line for text in texts for line in text.splitlines(keepends=True))
    counts = Counter(piece for line in lines for piece, _ in splitter.pre_tokenize_str(line))
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))[: vocab_size - 2]
    inner = Inner(models.WordLevel({END: 0, UNKNOWN: 1, **{p: 2 + i for i, p in enumerate(frequent)}}, UNKNOWN))
    inner.pre_tokenizer = splitter
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([END])
    return inner


def _strings(sources: Iterable[str | Path]) -> Iterator[str]:
    for source in sources:
        text = read_text(source) if isinstance(source, Path) else source
        _check_text("train_tokenizer", text)
        yield text


def _check_text(op: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{op}: text must be a string; got {type(text).__name__}")
    place = lone_surrogate(text)
    if place is not None:
        raise ValueError(f"{op}: character {place} is {text[place]!r}, half a surrogate pair; no text holds that alone")


def _kind(inner: Any) -> str:
    """Which of the three levels a tokenizer is, from what it is made of."""
    model = json.loads(inner.to_str())
    if model["model"]["type"] != "WordLevel":
        return "bpe"
    pattern = ((model.get("pre_tokenizer") or {}).get("pattern") or {}).get("Regex", "")
    return "characters" if pattern == EVERY_CHARACTER else "words"
