"""Sentences, or pairs of them, as the tokens that an encoder was trained on: special tokens around them, cut to a limit.

Many are tokenized in parallel. Knows nothing of models.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmixer.text.conventions import TOKENIZER_CONFIG, read_object
from fastmixer.text.tokenizer import FILE, Tokenizer, inner_from

Pair = tuple[str, str]


class Encoded(NamedTuple):
    """Texts as tokens: ids and token types, int64 [tokens] each; first: the index of the first of them; cut: that of the
    first one that was longer than the limit, None if there was none."""

    first: int
    ids: list[np.ndarray]
    types: list[np.ndarray]
    cut: int | None


class SentenceTokenizer:
    """The tokenizer.json in a folder. max_length: tokens of a text (or a pair) at most, special ones among them: the
    smallest of what is given, what tokenizer_config.json says, and context. vocab: of the encoder.

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
        settings = read_object(folder / TOKENIZER_CONFIG)
        said = settings.get("model_max_length")
        limits = [context, max_length, said if isinstance(said, int | float) and said >= 1 else None]
        self._prepare(inner, int(min(limit for limit in limits if limit is not None)), lower_case, str(path))
        if settings.get("add_eos_token") is True and not self._inner.encode("").ids:
            raise ValueError(
                f"{folder / TOKENIZER_CONFIG}: add_eos_token is true, but {FILE} puts no token behind a text; how they go "
                "together is not known"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, context: int) -> "SentenceTokenizer":
        """A language model's tokenizer: texts as its prompts, begun as it wants them, of at most context tokens."""
        import tokenizers
        from tokenizers.processors import TemplateProcessing

        made = cls.__new__(cls)
        inner: Any = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        begin = tokenizer.begin_id
        if tokenizer.adds_begin and begin is not None:
            piece = inner.id_to_token(begin)
            inner.post_processor = TemplateProcessing(single=[piece, "$A"], special_tokens=[(piece, begin)])
        else:
            inner.post_processor = TemplateProcessing(single="$A", special_tokens=[])
        made._prepare(inner, context, False, tokenizer.name)
        return made

    def _prepare(self, inner: Any, max_length: int, lower_case: bool, where: str) -> None:
        """Truncation at max_length, no padding; where: for errors."""
        self._inner, self.max_length = inner, max_length
        special = self._inner.num_special_tokens_to_add(True)
        if self.max_length <= special:
            raise ValueError(f"{where}: a text of {self.max_length} tokens has no room beside {special} special ones")
        self._inner.no_padding()
        self._inner.no_truncation()
        self._uncut_text = self._inner.to_str()
        self._inner.enable_truncation(self.max_length)
        self._uncut: Any = None
        self._lock = threading.Lock()
        self._lower_case = lower_case

    def encode(
        self, op: str, texts: Sequence[str] | Sequence[Pair], first: int = 0, *, truncate: bool = True
    ) -> Encoded:
        """The tokens of each text or pair, at least one each. first: the index of texts[0] in the caller's own, op: whose
        errors these are. truncate: cut what is too long; False: raise ValueError."""
        given: list[Any] = [_lowered(text) for text in texts] if self._lower_case else list(texts)
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
            types=[np.array(encoding.type_ids, np.int64) for encoding in encodings],
            cut=next((index for index, encoding in enumerate(encodings, first) if encoding.overflowing), None),
        )

    def _without_limit(self) -> Any:
        """The same tokenizer without truncation: a copy, for other threads read this one."""
        with self._lock:
            if self._uncut is None:
                self._uncut = type(self._inner).from_str(self._uncut_text)
            return self._uncut


def _arguments(text: str | Pair) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _lowered(text: str | Pair) -> str | Pair:
    return text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())
