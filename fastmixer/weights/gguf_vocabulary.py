"""A tokenizer as the metadata of a GGUF file: the mirror of text/gguf_tokenizer.py. What llama.cpp would cut otherwise is
refused."""

import json
from typing import Any

import numpy as np

from fastmixer.text import Tokenizer
from fastmixer.text.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from fastmixer.text.pretokenizers import CUTTINGS, Cutting

_PREFIX = "tokenizer.ggml."
# Names for the same cutting are many; these say it plainest, and every llama.cpp knows them.
_PREFERRED = ("gpt-2", "smollm", "llama-bpe", "qwen2")
_GPT2_PATTERN = CUTTINGS["gpt-2"].patterns[0]  # what a byte-level pre-tokenizer with its own pattern cuts by


def tokenizer_fields(tokenizer: Tokenizer, vocab: int) -> dict[str, Any]:
    """Metadata of a tokenizer for a model with `vocab` rows of the embedding; rows beyond the vocabulary are unused pieces.

    Raises ValueError naming what a GGUF file cannot say.
    """
    described = json.loads(tokenizer.to_json())
    model = described["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its tokenizer is {model['type']} ({tokenizer.kind}); only BPE ones can be written")
    if tokenizer.vocab_size > vocab:
        raise ValueError(f"its tokenizer has {tokenizer.vocab_size} pieces for {vocab} rows of the embedding")
    pieces, types = _pieces(described, vocab)
    if model.get("byte_fallback"):
        fields = _sentencepiece(described, pieces, types)
    else:
        fields = _byte_level(described)
    fields["tokens"] = pieces
    fields["token_type"] = np.array(types, np.int32)
    fields["eos_token_id"] = tokenizer.end_id
    if tokenizer.begin_id is not None:
        fields["bos_token_id"] = tokenizer.begin_id
    fields["add_bos_token"] = tokenizer.adds_begin
    named = {_PREFIX + name: value for name, value in fields.items()}
    if tokenizer.chat_template is not None:
        named["tokenizer.chat_template"] = tokenizer.chat_template
    return named


def _pieces(described: dict[str, Any], vocab: int) -> tuple[list[str], list[int]]:
    """Every piece by id, and its type."""
    pieces = [f"[PAD{index}]" for index in range(vocab)]
    types = [UNUSED] * vocab
    model = described["model"]
    for piece, index in model["vocab"].items():
        pieces[index], types[index] = piece, NORMAL
        if model.get("byte_fallback") and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            types[index] = BYTE
    for token in described["added_tokens"]:
        pieces[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if model.get("unk_token") in model["vocab"] and model.get("byte_fallback"):
        types[model["vocab"][model["unk_token"]]] = UNKNOWN
    return pieces, types


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs, as newer files write them, or two pieces with a space between."""
    pairs = (tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)) for merge in model["merges"])
    return [(left, right) for left, right in pairs]


# ---- byte-level BPE ----


def _byte_level(described: dict[str, Any]) -> dict[str, Any]:
    merges = _merges(described["model"])
    spaced = [pair for pair in merges if " " in pair[0] + pair[1]]
    if spaced:
        raise ValueError(f"its tokenizer merges pieces with spaces in them, {spaced[0]!r}")
    return {"model": "gpt2", "pre": _pre(described), "merges": [f"{left} {right}" for left, right in merges]}


def _pre(described: dict[str, Any]) -> str:
    """The name of the way it cuts text."""
    patterns = tuple(_patterns(described.get("pre_tokenizer")))
    normalizer = described.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise ValueError(f"its tokenizer normalizes text by {normalizer['type']}, which no GGUF file says")
    ignore_merges = bool(described["model"].get("ignore_merges"))
    for name in (*_PREFERRED, *CUTTINGS):
        known: Cutting = CUTTINGS[name]
        if (known.patterns, known.ignore_merges, known.nfc) == (patterns, ignore_merges, normalizer is not None):
            return name
    raise ValueError(f"its tokenizer cuts text by {' then '.join(patterns)}, which no tokenizer.ggml.pre names")


def _patterns(step: dict[str, Any] | None) -> list[str]:
    """The patterns of a pre-tokenizer that ends in letters for bytes. ValueError for any other step."""
    if step is None:
        raise ValueError("its tokenizer has no pre-tokenizer")
    if step["type"] == "Sequence":
        return [pattern for part in step["pretokenizers"] for pattern in _patterns(part)]
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return [_GPT2_PATTERN] if step["use_regex"] else []
    if step["type"] == "Digits" and step["individual_digits"]:
        return [r"\p{N}"]
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return [step["pattern"]["Regex"]]
    raise ValueError(f"its tokenizer cuts text by {json.dumps(step)}, which no tokenizer.ggml.pre names")


# ---- SentencePiece's BPE ----


def _sentencepiece(described: dict[str, Any], pieces: list[str], types: list[int]) -> dict[str, Any]:
    """A piece's score is the rank of the first merge that makes it, from 0 down; what no merge makes comes after all."""
    merges = _merges(described["model"])
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [
        0.0 if kind != NORMAL else -float(ranks.get(piece, len(merges)))
        for piece, kind in zip(pieces, types, strict=True)
    ]
    fields: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": _adds_space(described),
    }
    unknown = described["model"].get("unk_token")
    if unknown is not None:
        fields["unknown_token_id"] = pieces.index(unknown)
    return fields


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a text gets a space before it. ValueError for steps that SentencePiece has no word for."""
    cutter, normalizer = described.get("pre_tokenizer"), described.get("normalizer")
    steps = (
        normalizer["normalizers"]
        if normalizer and normalizer["type"] == "Sequence"
        else [normalizer]
        if normalizer
        else []
    )
    kinds = [step["type"] for step in steps]
    if cutter is not None and cutter["type"] == "Metaspace":
        if kinds or cutter["split"]:
            raise ValueError(f"its tokenizer cuts text by {json.dumps(cutter)}, which no GGUF file says")
        return cutter["prepend_scheme"] != "never"
    if kinds not in (["Prepend", "Replace"], ["Replace"]):
        raise ValueError(f"its tokenizer normalizes text by {', '.join(kinds) or 'nothing'}, which no GGUF file says")
    # Gemma's cutter finds no space to cut at: the normalizer has replaced all of them.
    if cutter is not None and (cutter["type"], cutter.get("pattern")) != ("Split", {"String": " "}):
        raise ValueError(f"its tokenizer cuts text by {json.dumps(cutter)}, which no GGUF file says")
    return kinds[0] == "Prepend"
