"""Tokenizers from GGUF metadata: the same ids as llama.cpp and sentencepiece, and what is refused."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.text.assets import alice_text
from fastmixer.text.gguf_tokenizer import tokenizer_from_gguf
from fastmixer.text.pieces import byte_letters
from fastmixer.text.pretokenizers import CUTTINGS, pre_tokenizer

HERE = Path(__file__).parent
PREFIX = "tokenizer.ggml."

spec = importlib.util.spec_from_file_location("random_strings", HERE / "random_strings.py")
strings_of = importlib.util.module_from_spec(spec)
spec.loader.exec_module(strings_of)


def stored(name):
    return json.loads((HERE / "data" / name).read_text(encoding="utf-8"))


def stored_fields(name, **changes):
    """Fields as the GGUF reader gives them: arrays of numbers as NumPy arrays."""
    fields = stored(f"{name}.json") | {PREFIX + key: value for key, value in changes.items()}
    for key, value in fields.items():
        if isinstance(value, list) and value and not isinstance(value[0], (str, dict)):
            fields[key] = np.array(value, np.float32 if key.endswith("scores") else np.int32)
    return {key: value for key, value in fields.items() if value is not None}


def differing_blocks(tokenizer, name):
    """Blocks of the random strings, or the book (the last), whose ids are not the oracle's."""
    texts = [*strings_of.random_strings(), alice_text()]
    rows = [tokenizer.encode(text).tolist() for text in texts]
    size = strings_of.BLOCK
    blocks = [rows[i : i + size] for i in range(0, len(rows) - 1, size)] + [rows[-1:]]
    found = [hashlib.sha256(json.dumps(block).encode()).hexdigest()[:16] for block in blocks]
    expected = stored("parity.json")[name]
    assert len(found) == len(expected) == strings_of.COUNT // size + 1
    return [index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]


@pytest.mark.parametrize("name", ["spm", "llama3"])
def test_ten_thousand_strings_and_the_book_get_the_ids_of_others(name):
    assert differing_blocks(tokenizer_from_gguf(stored_fields(name), "x.gguf"), name) == []
