"""Sentences, or pairs of them, as the tokens that an encoder was trained on: special tokens around them, cut to a limit.

Many are tokenized in parallel. Knows nothing of models.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmixer.text.conventions import MODEL_CONFIG, TOKENIZER_CONFIG, read_object
from fastmixer.text.tokenizer import FILE, Tokenizer, inner_from
from fastmixer.weights.encoder_recipe import token_limit
from fastmixer.weights.strict_json import Fields

Pair = tuple[str, str]
SIDES = ("right", "left")  # where a text is cut
INPUTS = "model_input_names"
TYPES = "token_type_ids"
# Classes of transformers' that take no word of tokenizer.json's normalizer, but make one of tokenizer_config.json, and those
# that are taken where neither that nor config.json names one.
REBUILT = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer")
USUAL = {"bert": "BertTokenizer", "distilbert": "BertTokenizer", "mpnet": "MPNetTokenizer"}


class Encoded(NamedTuple):
    """Texts as tokens: ids and token types, int64 [tokens] each; first: the index of the first of them; cut: that of the
    first one that was longer than the limit, None if there was none. skip: so many first tokens of each are no part of what
    is pooled."""

    first: int
    ids: list[np.ndarray]
    types: list[np.ndarray]
    cut: int | None
    skip: int = 0


class SentenceTokenizer:
    """The tokenizer.json in a folder, as transformers reads it with tokenizer_config.json. max_length: tokens of a text (or
    a pair) at most, special ones among them (None: as tokenizer_config.json says), and no more than context. vocab: of the
    encoder.

    Any number of threads may use one tokenizer. Raises FileNotFoundError or ValueError that names the file.
    """

    def __init__(
        self, folder: Path, *, vocab: int, context: int, max_length: int | None = None, lower_case: bool = False
    ):
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; without it texts cannot become tokens")
        inner: Any = inner_from(path)
        size = 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
        if size > vocab:
            raise ValueError(f"{path} has {size} pieces, the model's vocab is {vocab}: they do not belong together")
        settings = Fields(read_object(folder / TOKENIZER_CONFIG), str(folder / TOKENIZER_CONFIG))
        said = settings.values.get("model_max_length") if max_length is None else max_length
        limit = token_limit(said, context)
        kind = _class_of(settings, Fields(read_object(folder / MODEL_CONFIG), str(folder / MODEL_CONFIG)))
        if kind in REBUILT:
            _rebuild_normalizer(inner, settings)
        side = settings.choice("truncation_side", SIDES, _side_of(inner))
        self._prepare(inner, limit, str(path), side=side, lower_case=lower_case, has_types=_has_types(settings, kind))
        if settings.values.get("add_eos_token") is True and not self._inner.encode("").ids:
            raise ValueError(
                f"{folder / TOKENIZER_CONFIG}: add_eos_token is true, but {FILE} puts no token behind a text; how they go "
                "together is not known"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, context: int) -> "SentenceTokenizer":
        """A language model's tokenizer, texts of at most context tokens: with the tokens around them that its tokenizer.json
        adds; where it adds none, begun as its prompts are."""
        import tokenizers
        from tokenizers.processors import TemplateProcessing

        made = cls.__new__(cls)
        inner: Any = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        begin = tokenizer.begin_id
        if tokenizer.adds_begin and begin is not None and not inner.num_special_tokens_to_add(False):
            piece = inner.id_to_token(begin)
            inner.post_processor = TemplateProcessing(single=[piece, "$A"], special_tokens=[(piece, begin)])
        made._prepare(inner, context, tokenizer.name, side=_side_of(inner))
        return made

    def _prepare(
        self, inner: Any, max_length: int, where: str, *, side: str, lower_case: bool = False, has_types: bool = True
    ) -> None:
        """Truncation at max_length on this side, no padding; where: for errors."""
        from tokenizers import normalizers

        self._inner, self.max_length, self._has_types = inner, max_length, has_types
        if lower_case:  # before what the tokenizer itself does, but not to special tokens
            own = [] if inner.normalizer is None else [inner.normalizer]
            inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        added = inner.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        special = self._inner.num_special_tokens_to_add(True)
        if self.max_length <= special:
            raise ValueError(f"{where}: a text of {self.max_length} tokens has no room beside {special} special ones")
        self._inner.no_padding()
        self._inner.no_truncation()
        self._uncut_text = self._inner.to_str()
        self._inner.enable_truncation(self.max_length, direction=side)
        self._uncut: Any = None
        self._lock = threading.Lock()

    def encode(
        self, op: str, texts: Sequence[str] | Sequence[Pair], first: int = 0, *, truncate: bool = True
    ) -> Encoded:
        """The tokens of each text or pair, at least one each. first: the index of texts[0] in the caller's own, op: whose
        errors these are. truncate: cut what is too long; False: raise ValueError."""
        given: list[Any] = list(texts)
        inner = self._inner if truncate else self._without_limit()
        encodings = inner.encode_batch_fast(given) if len(given) > 1 else [inner.encode(*_arguments(given[0]))]
        for index, encoding in enumerate(encodings, first):
            if len(encoding.ids) > self.max_length:
                raise ValueError(
                    f"{op}: texts[{index}] has {len(encoding.ids)} tokens; at most {self.max_length} are possible "
                    "(truncate=True cuts it)"
                )
            if not encoding.ids:  # no special tokens around it, and nothing in it
                raise ValueError(f"{op}: texts[{index}] has no tokens")
        return Encoded(
            first=first,
            ids=[np.array(encoding.ids, np.int64) for encoding in encodings],
            types=[
                np.array(encoding.type_ids, np.int64) if self._has_types else np.zeros(len(encoding.ids), np.int64)
                for encoding in encodings
            ],
            cut=next((index for index, encoding in enumerate(encodings, first) if encoding.overflowing), None),
        )

    def prompt_tokens(self, prompt: str) -> int:
        """How many first tokens of a text are a prompt's, as sentence-transformers counts them: the tokens of the prompt
        alone, without a special one behind it."""
        encoding = self._inner.encode(prompt)
        ids, added = encoding.ids, encoding.special_tokens_mask
        return len(ids) - (bool(ids) and (bool(added[-1]) or ids[-1] in self._special_ids))

    def _without_limit(self) -> Any:
        """The same tokenizer without truncation: a copy, for other threads read this one."""
        with self._lock:
            if self._uncut is None:
                self._uncut = type(self._inner).from_str(self._uncut_text)
            return self._uncut


def _arguments(text: str | Pair) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _class_of(settings: Fields, config: Fields) -> str | None:
    """Which of its classes transformers takes for the tokenizer of a folder with this tokenizer_config.json and config.json,
    None for one that is tokenizer.json alone."""
    model = config.values.get("model_type")
    if model == "modernbert":  # whatever the files say
        return None
    named = settings.values.get("tokenizer_class") or config.values.get("tokenizer_class")
    if isinstance(named, str):
        return named.removesuffix("Fast")
    return USUAL.get(model) if isinstance(model, str) else None


def _rebuild_normalizer(inner: Any, settings: Fields) -> None:
    """What these classes make of the fields, each with its default there: over an uncased tokenizer.json they may ask for
    capitals, and the other way round."""
    from tokenizers import models, normalizers

    if isinstance(inner.model, models.WordPiece):  # their own kind; of another they would make nonsense
        inner.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
            strip_accents=settings.flag("strip_accents") if settings.has("strip_accents") else None,
            lowercase=settings.flag("do_lower_case", True),
        )


def _has_types(settings: Fields, kind: str | None) -> bool:
    """Whether the two texts of a pair are told apart by their tokens' types."""
    names = settings.values.get(INPUTS)
    if names is None:
        return kind == "BertTokenizer"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise settings.wrong(INPUTS, "a list of names")
    return TYPES in names


def _side_of(inner: Any) -> str:
    """Where a tokenizer.json cuts texts itself."""
    return SIDES[0] if inner.truncation is None else inner.truncation["direction"].lower()
