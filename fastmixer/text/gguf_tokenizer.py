"""A tokenizer from the metadata of a GGUF file. Every field is checked before anything is built of it.

gpt2: byte-level BPE, cut by one of the named patterns of pretokenizers.py. llama: SentencePiece's BPE, pieces with scores
(Gemma's too, without the leading space). Field names and types: ggml's docs/gguf.md. Knows nothing of tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmixer.text.conventions import Conventions, named_template
from fastmixer.text.pieces import SPACE
from fastmixer.text.pretokenizers import CUTTINGS, pre_tokenizer
from fastmixer.text.tokenizer import Tokenizer

MODELS = ("gpt2", "llama")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
# Control tokens that end a turn or a text in the models people have; a file names only one or two of its own.
END_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <|end_of_text|> "
    "<eos> <EOT> [EOT] [EOS] <end_of_utterance> <｜end▁of▁sentence｜>".split()
)
MOST_PIECES = 1 << 21  # eight times the largest vocabulary people have
LONGEST_PIECE = 1 << 10  # characters
MOST_CUTTING = 1 << 30  # characters looked at to find how pieces were merged: the sum of squared lengths
_PREFIX = "tokenizer.ggml."


def tokenizer_from_gguf(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes. metadata: fields by name, arrays of numbers as NumPy arrays,
    arrays of strings as lists; source: the file's name, for messages.

    ValueError names source, field and value; an unknown tokenizer.ggml.model or .pre is refused, never guessed.
    """
    fields = _Fields(metadata, source)
    model = fields.text("model")
    if model not in MODELS:
        raise fields.wrong("model", f"must be one of {', '.join(MODELS)}; got {model!r}")
    vocabulary = _vocabulary(fields)
    inner = _byte_level(fields, vocabulary) if model == "gpt2" else _sentencepiece(fields, vocabulary)
    adds_begin = CUTTINGS[fields.text("pre")].adds_begin if model == "gpt2" else True
    conventions = _conventions(fields, vocabulary, adds_begin)
    _add_tokens(inner, vocabulary)
    if conventions.adds_begin:
        _add_begin(inner, vocabulary, conventions)
    return Tokenizer(inner, conventions, vocab_size=len(vocabulary.pieces), name=source)


@dataclass(frozen=True)
class _Vocabulary:
    """pieces: as the file writes them; types: int64 [pieces]; ids: of each piece."""

    pieces: list[str]
    types: np.ndarray
    ids: dict[str, int]


class _Fields:
    """The fields tokenizer.ggml.*, each of the type that was asked for."""

    def __init__(self, metadata: Mapping[str, Any], source: str):
        self._metadata, self._source = metadata, source

    def wrong(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{self._source}: {_PREFIX}{name} {problem}")

    def get(self, name: str) -> Any:
        return self._metadata.get(_PREFIX + name)

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be a string; got {_short(value)}")
        return value

    def strings(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list) or not set(map(type, value)) <= {str}:
            raise self.wrong(name, f"must be an array of strings; got {_short(value)}")
        return value

    def numbers(self, name: str, count: int, kinds: str) -> np.ndarray:
        """An array of `count` numbers; kinds: NumPy's letters of the types that may come."""
        value = self.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.ndim != 1:
            expected = "numbers" if "f" in kinds else "integers"
            raise self.wrong(name, f"must be an array of {expected}; got {_short(value)}")
        if len(value) != count:
            raise self.wrong(name, f"must have one number for each of the {count} tokens; got {len(value)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, f"must be a bool; got {_short(value)}")
        return default if value is None else value

    def token_id(self, name: str, vocabulary: _Vocabulary) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(vocabulary.pieces):
            raise self.wrong(name, f"must be an id in 0..{len(vocabulary.pieces) - 1}; got {_short(value)}")
        return value

    def chat_template(self) -> str | None:
        # The one field of ours outside tokenizer.ggml.
        value = self._metadata.get("tokenizer.chat_template")
        return named_template(value, f"{self._source}: tokenizer.chat_template")


def _vocabulary(fields: _Fields) -> _Vocabulary:
    pieces = fields.strings("tokens")
    if not pieces:
        raise fields.wrong("tokens", "is empty")
    if len(pieces) > MOST_PIECES:
        raise fields.wrong("tokens", f"must be at most {MOST_PIECES}; got {len(pieces)}")
    longest = max(range(len(pieces)), key=lambda index: len(pieces[index]))
    if len(pieces[longest]) > LONGEST_PIECE:
        length = len(pieces[longest])
        raise fields.wrong(f"tokens[{longest}]", f"must have at most {LONGEST_PIECE} characters; got {length}")
    ids = dict(zip(pieces, range(len(pieces)), strict=True))
    if len(ids) != len(pieces):
        second = next(index for index, piece in enumerate(pieces) if ids[piece] != index)
        raise fields.wrong("tokens", f"holds {pieces[second]!r} twice, as {second} and {ids[pieces[second]]}")
    if fields.get("token_type") is None:
        return _Vocabulary(pieces, np.full(len(pieces), NORMAL), ids)
    types = fields.numbers("token_type", len(pieces), "iu")
    wrong = np.flatnonzero((types < 0) | (types > BYTE))
    if len(wrong):
        raise fields.wrong(f"token_type[{wrong[0]}]", f"must be 0..{BYTE}; got {types[wrong[0]]}")
    return _Vocabulary(pieces, types, ids)


# ---- gpt2: byte-level BPE ----


def _byte_level(fields: _Fields, vocabulary: _Vocabulary) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers

    known = ", ".join(sorted(CUTTINGS))
    if fields.get("pre") is None:
        raise fields.wrong("pre", f"is missing; it names how text is cut, and nothing is guessed. Known are {known}")
    name = fields.text("pre")
    if name not in CUTTINGS:
        raise fields.wrong("pre", f"is {name!r}, which is not known; known are {known}")
    cutting = CUTTINGS[name]
    merges = _merges(fields, vocabulary)
    inner = Inner(models.BPE(vocabulary.ids, merges, ignore_merges=cutting.ignore_merges))
    if cutting.nfc:
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizer(cutting)
    inner.decoder = decoders.ByteLevel()
    return inner


def _merges(fields: _Fields, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    ids = vocabulary.ids
    pairs: list[tuple[str, str]] = []
    for index, merge in enumerate(fields.strings("merges")):
        # A merge whose second half holds a space would be ambiguous; byte-level pieces hold none.
        left, space, right = merge.partition(" ")
        if not space or left not in ids or right not in ids or left + right not in ids:
            if not left or not right or " " in right:
                raise fields.wrong(f"merges[{index}]", f"must be two pieces with a space between; got {merge!r}")
            absent = next(piece for piece in (left, right, left + right) if piece not in ids)
            raise fields.wrong(f"merges[{index}]", f"is {merge!r}, but {absent!r} is not among the tokens")
        pairs.append((left, right))
    return pairs


# ---- llama: SentencePiece's BPE ----


def _sentencepiece(fields: _Fields, vocabulary: _Vocabulary) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers

    count = len(vocabulary.pieces)
    scores = fields.numbers("scores", count, "fiu").astype(np.float64)
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise fields.wrong(f"scores[{first}]", f"must be a finite number; got {scores[first]}")
    unknown = fields.token_id("unknown_token_id", vocabulary)
    if unknown is None:
        unknown = next(iter(np.flatnonzero(vocabulary.types == UNKNOWN).tolist()), None)
    if sum(len(piece) ** 2 for piece in vocabulary.pieces) > MOST_CUTTING:
        raise fields.wrong("tokens", "are too long to tell how they are merged: the sum of their squared lengths is over "
                           f"{MOST_CUTTING}")  # fmt: skip
    falls_back = all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256))
    if unknown is None and not falls_back:
        raise fields.wrong("unknown_token_id", "is missing, and so are pieces <0x00> to <0xFF> for unknown characters")
    inner = Inner(
        models.BPE(
            vocabulary.ids,
            _merges_by_score(vocabulary, scores),
            unk_token=None if unknown is None else vocabulary.pieces[unknown],
            fuse_unk=True,
            byte_fallback=falls_back,
        )
    )
    begins_with_space = fields.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if begins_with_space else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * begins_with_space)
    return inner


def _merges_by_score(vocabulary: _Vocabulary, scores: np.ndarray) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best score first; SentencePiece merges that pair next whose
    result has the best score. Longer left halves first among those of one piece, as leftmost merging leaves them."""
    # Control, unknown, byte and user-defined pieces are never the result of a merge, nor part of one.
    mergeable = np.flatnonzero(vocabulary.types <= NORMAL)
    pieces = vocabulary.pieces
    ids = {pieces[i]: i for i in mergeable.tolist()}
    merges: list[tuple[str, str]] = []
    results: list[int] = []
    for token_id in mergeable.tolist():
        piece = pieces[token_id]
        for cut in range(len(piece) - 1, 0, -1):
            left = piece[:cut]
            if left in ids and piece[cut:] in ids:
                merges.append((left, piece[cut:]))
                results.append(token_id)
    # Pieces of equal score: the longest left half first, then the longest right half.
    sizes = np.array([(len(left), len(right)) for left, right in merges], np.int64).reshape(-1, 2)
    ranks = np.lexsort((-sizes[:, 1], -sizes[:, 0], -scores[np.array(results, np.int64)]))
    return [merges[index] for index in ranks.tolist()]


# ---- both ----


def _conventions(fields: _Fields, vocabulary: _Vocabulary, adds_begin: bool) -> Conventions:
    begin = fields.token_id("bos_token_id", vocabulary)
    named = [fields.token_id(f"{name}_token_id", vocabulary) for name in ("eos", "eot", "eom")]
    by_text = [
        token_id
        for text in sorted(END_TEXTS)
        if (token_id := vocabulary.ids.get(text)) is not None and vocabulary.types[token_id] == CONTROL
    ]
    if {"<|return|>", "<|call|>"} <= {vocabulary.pieces[token_id] for token_id in by_text}:
        # A model that ends with these uses <|end|> between the parts of one answer.
        by_text = [token_id for token_id in by_text if vocabulary.pieces[token_id] != "<|end|>"]
    ends = tuple(dict.fromkeys(token_id for token_id in [*named, *by_text] if token_id is not None))
    if not ends:
        raise fields.wrong("eos_token_id", "is missing, and no token says that it ends a text")
    adds = fields.flag("add_bos_token", adds_begin and begin is not None)
    if adds and begin is None:
        raise fields.wrong("bos_token_id", f"is missing, but {_PREFIX}add_bos_token is true")
    return Conventions(ends, begin, adds, fields.chat_template())


def _add_tokens(inner: Any, vocabulary: _Vocabulary) -> None:
    """Tokens that are found in the text before it is cut: special ones, and those that the maker defined."""
    from tokenizers import AddedToken

    def tokens(*types: int, special: bool) -> list[Any]:
        found = np.flatnonzero(np.isin(vocabulary.types, types)).tolist()
        return [AddedToken(vocabulary.pieces[i], special=special, normalized=False) for i in found]

    inner.add_special_tokens(tokens(CONTROL, UNKNOWN, special=True))
    inner.add_tokens(tokens(USER_DEFINED, special=False))


def _add_begin(inner: Any, vocabulary: _Vocabulary, conventions: Conventions) -> None:
    """The begin token as tokenizer.json says it, for whoever opens the saved file."""
    from tokenizers import processors

    begin = vocabulary.pieces[conventions.begin_id or 0]
    inner.post_processor = processors.TemplateProcessing(
        single=[begin, "$A"], pair=[begin, "$A", begin, "$B"], special_tokens=[(begin, conventions.begin_id)]
    )


def _short(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}" if value is not None else "nothing"
    return text if len(text) <= 80 else text[:77] + "..."
