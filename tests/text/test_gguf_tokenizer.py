"""Tokenizers from GGUF metadata: the same ids as llama.cpp and sentencepiece, and what is refused."""

import hashlib
import importlib.util
import json
import re
import time
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


ALL_STRINGS = strings_of.random_strings()


def stored(name):
    return json.loads((HERE / "data" / name).read_text(encoding="utf-8"))


def stored_fields(name, **changes):
    """Fields as the GGUF reader gives them: arrays of numbers as NumPy arrays."""
    fields = stored(f"{name}.json") | {PREFIX + key: value for key, value in changes.items()}
    for key, value in fields.items():
        if isinstance(value, list) and value and not isinstance(value[0], (str, dict)):
            fields[key] = np.array(value, np.float32 if key.endswith("scores") else np.int32)
    return {key: value for key, value in fields.items() if value is not None}


def differing_blocks(tokenizer, name, texts=None, file="parity.json"):
    """Blocks of the random strings, or the book (the last), whose ids are not the oracle's."""
    texts = [*(texts or ALL_STRINGS), alice_text()]
    rows = [row.tolist() for row in tokenizer.encode_batch(texts)]
    size = strings_of.BLOCK
    blocks = [rows[i : i + size] for i in range(0, len(rows) - 1, size)] + [rows[-1:]]
    found = [hashlib.sha256(json.dumps(block).encode()).hexdigest()[:16] for block in blocks]
    expected = stored(file)[name]
    assert len(found) == len(expected) == strings_of.COUNT // size + 1
    return [index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]


@pytest.mark.parametrize("name", ["spm", "llama3"])
def test_ten_thousand_strings_and_the_book_get_the_ids_of_others(name):
    assert differing_blocks(tokenizer_from_gguf(stored_fields(name), "x.gguf"), name) == []


@pytest.mark.parametrize("name", stored("cuttings.json"))
def test_every_way_to_cut_gives_the_ids_of_llama_cpp(name):
    texts = strings_of.for_cutting(name, ALL_STRINGS)
    tokenizer = tokenizer_from_gguf(stored_fields("llama3", pre=name), "x.gguf")
    assert differing_blocks(tokenizer, name, texts, "cuttings.json") == []


def test_every_way_to_cut_has_an_oracle():
    assert {CUTTINGS[name] for name in stored("cuttings.json")} == set(CUTTINGS.values())


def test_the_real_file_gets_the_ids_of_llama_cpp(smollm2_path):
    from fastmixer.weights.gguf import GGUFFile

    metadata = GGUFFile(smollm2_path).metadata
    tokenizer = tokenizer_from_gguf(metadata, str(smollm2_path))
    assert (tokenizer.vocab_size, tokenizer.kind, tokenizer.begin_id, tokenizer.adds_begin) == (49152, "bpe", 1, False)
    assert tokenizer.end_id == 2 and tokenizer.end_ids == {0, 2}
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]
    texts = strings_of.without(strings_of.SMOLLM2_LACKS, ALL_STRINGS)
    assert differing_blocks(tokenizer, "smollm2", texts) == []
    # Bytes without any piece fall out before merging, as they do in the tokenizer.json that the model was trained with.
    assert tokenizer.encode("a \x06!").tolist() == tokenizer.encode("a !").tolist()
    for text in texts[:500]:
        if not re.search("[\U00040000-\U0010ffff]", text):
            assert b"".join(tokenizer.piece_bytes(i) for i in tokenizer.encode(text).tolist()) == text.encode()


@pytest.mark.parametrize("name", ["spm", "llama3"])
def test_pieces_join_to_the_text(name):
    tokenizer = tokenizer_from_gguf(stored_fields(name), "x.gguf")
    for text in strings_of.random_strings(500):
        ids = tokenizer.encode(text).tolist()
        joined = b"".join(tokenizer.piece_bytes(i) for i in ids)
        assert joined == (b" " if name == "spm" else b"") + text.replace("▁", " ").encode()
        assert tokenizer.decode(ids) == text


def test_special_tokens_user_defined_ones_and_the_beginning():
    tokenizer = tokenizer_from_gguf(stored_fields("llama3"), "x.gguf")
    begin, end, turn = (tokenizer.token_to_id(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "eot_id"))
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.end_ids) == (begin, turn, {end, turn})
    assert tokenizer.adds_begin and tokenizer.special_ids == {begin, end, turn}
    word = tokenizer.token_to_id("HTMLParser")  # no merge makes it: Llama 3 takes whole words at once
    assert tokenizer.encode("HTMLParser<|eot_id|>", begin=True).tolist() == [begin, word, turn]
    assert tokenizer.encode("<|begin_of_text|>HTMLParser", begin=True).tolist() == [begin, word]
    letters = tokenizer.encode("HTMLParser<|eot_id|>", special=False).tolist()
    assert letters[0] == word and len(letters) > 3 and tokenizer.decode(letters) == "HTMLParser<|eot_id|>"
    assert tokenizer.encode("<|eot_id|>").tolist() == [turn] and tokenizer.decode([turn]) == ""
    assert tokenizer.piece_bytes(turn) == b"<|eot_id|>" == tokenizer.id_to_token(turn).encode()

    spm = tokenizer_from_gguf(stored_fields("spm"), "x.gguf")
    tool = spm.token_to_id("<tool>")
    assert tool in spm.encode("a <tool> b").tolist() and spm.special_ids == {0, 1, 2}
    assert spm.encode("a", begin=True)[0] == spm.begin_id == 1 and spm.end_ids == {2}
    assert (
        spm.piece_bytes(spm.token_to_id("<0xE2>")) == b"\xe2" and spm.id_to_token(spm.token_to_id("<0xE2>")) == r"\xe2"
    )
    assert spm.decode(spm.encode("▁ 😀 <0xE2>").tolist()) == "  😀 <0xE2>"  # written out, it is six letters


def test_gemma_has_no_space_before_the_text():
    tokenizer = tokenizer_from_gguf(stored_fields("spm", add_space_prefix=False, add_bos_token=False), "x.gguf")
    assert not tokenizer.adds_begin
    for text in ("Alice", "  a", "", "a▁b"):
        joined = b"".join(tokenizer.piece_bytes(i) for i in tokenizer.encode(text).tolist())
        assert joined == text.replace("▁", " ").encode()


@pytest.mark.parametrize("name", ["spm", "llama3"])
def test_a_saved_one_is_the_same(name, tmp_path):
    fields = stored_fields(name) | {"tokenizer.chat_template": "{{ messages }}"}
    tokenizer = tokenizer_from_gguf(fields, "x.gguf")
    tokenizer.save(tmp_path)
    loaded = fm.Tokenizer.load(tmp_path)
    for one in ("end_id", "end_ids", "begin_id", "adds_begin", "chat_template", "vocab_size", "special_ids", "kind"):
        assert getattr(loaded, one) == getattr(tokenizer, one), one
    for text in strings_of.random_strings(300):
        assert loaded.encode(text, begin=True).tolist() == tokenizer.encode(text, begin=True).tolist()


def test_every_known_cutting_keeps_every_character():
    text = "Hello  World's 12345 3.14!\n\n  x\t\u00a0é中文ひ가 ΐώ…￥ Don'T HTMLParser a1b2 `$+<=>^~|` \r\n"
    letters = set(byte_letters())
    for name, cutting in CUTTINGS.items():
        cut = pre_tokenizer(cutting).pre_tokenize_str(text)
        assert "".join(text[start:stop] for _, (start, stop) in cut) == text, name
        assert {letter for piece, _ in cut for letter in piece} <= letters, name


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        ("gpt-2", "I'll say 1234  times\n\n", ["I", "'ll", " say", " 1234", " ", " times", "\n\n"]),
        ("smollm starcoder", "x 12  y", ["x", " ", "1", "2", " ", " y"]),
        ("llama-bpe", "I'LL (say) 12345\n x", ["I", "'LL", " (", "say", ")", " ", "123", "45", "\n", " x"]),
        ("qwen2", "a1234 b", ["a", "1", "2", "3", "4", " b"]),
        ("tekken", "HTMLParser fooBar 12", ["HTMLParser", " foo", "Bar", " ", "1", "2"]),
        ("gpt-4o o200k", "HTMLParser it's 1234", ["HTMLParser", " it's", " ", "123", "4"]),
        ("deepseek-v3", "ab 1234中文x", ["ab", " ", "123", "4", "中文", "x"]),
        ("falcon", "a,b 1234", ["a", ",", "b", " ", "123", "4"]),
    ],
)  # fmt: skip
def test_cuttings(names, text, expected):
    for name in names.split():
        cut = pre_tokenizer(CUTTINGS[name]).pre_tokenize_str(text)
        assert [text[start:stop] for _, (start, stop) in cut] == expected


def test_qwen_composes_characters_first():
    fields = stored_fields("llama3", pre="qwen2")
    tokenizer = tokenizer_from_gguf(fields, "x.gguf")
    assert tokenizer.encode("e\u0301").tolist() == tokenizer.encode("é").tolist()
    assert not tokenizer.adds_begin


def _changed(name, field, index, value):
    values = stored_fields(name)[PREFIX + field]
    values = values.copy() if isinstance(values, np.ndarray) else list(values)
    values[index] = value
    return {field: values}


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("llama3", {"model": None}, "model must be a string; got nothing"),
        ("llama3", {"model": "bert"}, "model must be one of gpt2, llama; got 'bert'"),
        ("llama3", {"pre": "klingon"}, "pre is 'klingon', which is not known; known are bloom, chatglm-bpe, codeshell, "),
        ("llama3", {"pre": None}, "pre is missing; it names how text is cut, and nothing is guessed. Known are "),
        ("llama3", {"pre": 7}, "pre must be a string; got int 7"),
        ("llama3", {"tokens": None}, "tokens must be an array of strings; got nothing"),
        ("llama3", {"tokens": []}, "tokens is empty"),
        ("llama3", {"tokens": np.arange(3)}, "tokens must be an array of strings; got ndarray array([0, 1, 2])"),
        ("llama3", _changed("llama3", "tokens", 9, "!"), "tokens holds '!' twice, as 0 and 9"),
        ("llama3", {"token_type": np.ones(3, np.int32)}, "token_type must have one number for each of the 1504 tokens; got 3"),
        ("llama3", {"token_type": np.ones(1504, np.float32)}, "token_type must be an array of integers; got ndarray array("),
        ("llama3", _changed("llama3", "token_type", 5, 77), "token_type[5] must be 0..6; got 77"),
        ("llama3", _changed("llama3", "token_type", 5, -1), "token_type[5] must be 0..6; got -1"),
        ("llama3", {"merges": None}, "merges must be an array of strings; got nothing"),
        ("llama3", _changed("llama3", "merges", 3, "ab"), "merges[3] must be two pieces with a space between; got 'ab'"),
        ("llama3", _changed("llama3", "merges", 3, "a b c"), "merges[3] must be two pieces with a space between; got 'a b c'"),
        ("llama3", _changed("llama3", "merges", 3, " b"), "merges[3] must be two pieces with a space between; got ' b'"),
        ("llama3", _changed("llama3", "merges", 3, "q ¤¤"), "merges[3] is 'q ¤¤', but '¤¤' is not among the tokens"),
        ("llama3", _changed("llama3", "merges", 3, "q q"), "merges[3] is 'q q', but 'qq' is not among the tokens"),
        ("llama3", _changed("llama3", "merges", slice(3, 5), ["a", "b c"]), "merges[3] must be two pieces with a space between; got 'a'"),
        ("llama3", _changed("llama3", "merges", 3, "a\0b"), "merges[3] must be two pieces with a space between; got 'a\\x00b'"),
        ("llama3", {"eos_token_id": 1504}, "eos_token_id must be an id in 0..1503; got int 1504"),
        ("llama3", {"eos_token_id": -1}, "eos_token_id must be an id in 0..1503; got int -1"),
        ("llama3", {"eot_token_id": "x"}, "eot_token_id must be an id in 0..1503; got str 'x'"),
        ("llama3", {"bos_token_id": True}, "bos_token_id must be an id in 0..1503; got bool True"),
        ("llama3", {"bos_token_id": None, "add_bos_token": True}, "bos_token_id is missing, but tokenizer.ggml.add_bos_token is true"),
        ("llama3", {"add_bos_token": 1}, "add_bos_token must be a bool; got int 1"),
        ("llama3", {"eos_token_id": None, "token_type": None}, "eos_token_id is missing, and no token says that it ends a text"),
        ("spm", {"scores": None}, "scores must be an array of numbers; got nothing"),
        ("spm", {"scores": np.zeros(4, np.float32)}, "scores must have one number for each of the 1500 tokens; got 4"),
        ("spm", _changed("spm", "scores", 8, np.nan), "scores[8] must be a finite number; got nan"),
        ("spm", {"unknown_token_id": 2**31}, "unknown_token_id must be an id in 0..1499; got int 2147483648"),
        ("spm", {"add_space_prefix": "yes"}, "add_space_prefix must be a bool; got str 'yes'"),
        ("spm", _changed("spm", "tokens", 4, "<0x00>X") | {"unknown_token_id": None, "token_type": np.ones(1500, np.int32)},
         "unknown_token_id is missing, and so are pieces <0x00> to <0xFF> for unknown characters"),
    ],
)  # fmt: skip
def test_what_is_refused(name, changes, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(f'model.gguf: {PREFIX}{problem}')}"):
        tokenizer_from_gguf(stored_fields(name, **changes), "model.gguf")


def test_vocabularies_made_to_take_all_time_are_refused_at_once():
    """The first is CVE-2025-49847: a piece so long that its length is negative as a 32-bit number."""
    start = time.monotonic()
    many = [f"{index:05}" + "a" * 900 for index in range(1500)]
    for fields, problem in (
        (_changed("spm", "tokens", 7, "a" * 50_000_000), "tokens[7] must have at most 1024 characters; got 50000000"),
        ({"tokens": many}, "tokens are too long to tell how they are merged: the sum of their squared lengths is over"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(f'model.gguf: {PREFIX}{problem}')}"):
            tokenizer_from_gguf(stored_fields("spm", **fields), "model.gguf")
    assert time.monotonic() - start < 2


def test_the_number_of_ids_of_a_long_text_is_what_it_is():
    """CVE-2025-52566: more ids than the caller had said there is room for. Here the caller never says."""
    tokenizer = tokenizer_from_gguf(stored_fields("llama3"), "x.gguf")
    text = "\n!" * 200_000
    ids = tokenizer.encode(text)
    assert len(ids) == 200_001 and tokenizer.decode(ids) == text


def test_a_chat_template_must_be_text():
    for value in (3, [{"name": "default"}], ["x"]):
        fields = stored_fields("llama3") | {"tokenizer.chat_template": value}
        with pytest.raises(ValueError, match=r"^model\.gguf: tokenizer\.chat_template must be text or a list of"):
            tokenizer_from_gguf(fields, "model.gguf")
