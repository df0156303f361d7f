"""Training tokenizers at three levels on a text of one's own.

characters: a tiny vocabulary, long sequences. words: short sequences, but a huge vocabulary and no answer to a word it
has not seen. bpe: subwords over bytes, about 1.3 an English word, any text whatever. Knows nothing of models.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastmixer.text.files import pieces_of, read_text
from fastmixer.text.tokenizer import END, EVERY_CHARACTER, KINDS, Tokenizer, check_text

UNKNOWN = "<unk>"
EVERY_WORD = r" ?\w+| ?[^\w\s]|\s"
DEFAULT_VOCAB = 4096
SMALLEST_BPE = 257  # 256 bytes and the end-of-text token


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
        check_text("train_tokenizer", text)
        yield text
