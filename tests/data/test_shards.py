"""Shards: what goes in comes out; anything damaged is named."""

import json
import re
import zlib

import numpy as np
import pytest

from fastmixer.data import TokenShard, open_dataset, write_dataset
from fastmixer.data.shards import HEADER_BYTES, tokenizer_digest, write_shard
from fastmixer.text import Tokenizer
from fastmixer.text.assets import alice_text


def test_the_book_comes_back(tokenizer, dataset):
    ids = np.concatenate([dataset.train.tokens, dataset.validation.tokens])
    assert tokenizer.decode(ids) == alice_text()
    assert ids[-1] == tokenizer.end_id
    assert len(dataset.validation) == int(len(ids) * 0.1)
    assert dataset.train.tokens.dtype == np.uint16 and dataset.train.vocab == tokenizer.vocab_size
    assert isinstance(dataset.train.tokens, np.memmap) and not dataset.train.tokens.flags.writeable


def test_writing_is_repeatable(tokenizer, tmp_path):
    source = tmp_path / "a.txt"
    source.write_text(alice_text()[:5000])
    for name in ("x", "y"):
        write_dataset(source, tokenizer, tmp_path / name)
    assert (tmp_path / "x/train.tokens").read_bytes() == (tmp_path / "y/train.tokens").read_bytes()


def test_jsonl_documents_are_split_by_seed(tokenizer, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(200)) + "\n")
    data = write_dataset(source, tokenizer, tmp_path / "d", validation_fraction=0.25, seed=3)
    texts = [tokenizer.decode(part) for part in (data.train.tokens, data.validation.tokens)]
    assert all((f"document {i}" in texts[0]) or (f"document {i}" in texts[1]) for i in range(200))
    assert 20 < (data.validation.tokens == tokenizer.end_id).sum() < 80


def test_several_files_and_another_field(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"body": "two"}\n')
    data = write_dataset([tmp_path / "a.txt", tmp_path / "b.jsonl"], tokenizer, tmp_path / "d", validation_fraction=0, field="body")
    assert tokenizer.decode(data.train.tokens) == "onetwo"
    assert len(data.validation) == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.NdJson"])
def test_json_lines_by_their_names(tokenizer, tmp_path, name):
    (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two\\r\\n"}')
    data = write_dataset(tmp_path / name, tokenizer, tmp_path / "d", validation_fraction=0)
    assert (data.train.tokens == tokenizer.end_id).sum() == 2 and tokenizer.decode(data.train.tokens) == "onetwo\r\n"


def test_large_vocabularies_take_four_bytes(tmp_path):
    write_shard(tmp_path / "s", np.array([70_000, 3], np.uint32), 80_000, bytes(16))
    shard = TokenShard.open(tmp_path / "s")
    assert shard.tokens.dtype == np.uint32 and shard.tokens.tolist() == [70_000, 3]


def test_a_shard_tells_its_tokenizer_and_its_checksum(tokenizer, dataset, tmp_path):
    tokenizer.save(tmp_path)
    assert dataset.train.digest == dataset.validation.digest == tokenizer_digest(Tokenizer.load(tmp_path))
    assert dataset.train.crc == zlib.crc32(dataset.train.tokens.tobytes()) != dataset.validation.crc
    write_shard(tmp_path / "none", np.empty(0, np.uint16), 9, bytes(16))
    assert TokenShard.open(tmp_path / "none").crc == 0


def damaged(tmp_path, change):
    path = tmp_path / "s"
    write_shard(path, np.arange(100, dtype=np.uint16), 512, bytes(16))
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(data)))
    return path


def flipped(place):
    def change(data):
        data[place] ^= 1
        return data

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data[:10], "a shard's header has 64 bytes; the file has 10"),
        (lambda data: data[:0], "a shard's header has 64 bytes; the file has 0"),
        (lambda data: data[:-1], "count says 100 ids, 264 bytes; the file has 263"),
        (lambda data: data + b"x", "count says 100 ids, 264 bytes; the file has 265"),
        (flipped(0), "magic must be b'FMTOKENS'; got b'GMTOKENS'"),
        (flipped(8), "the header is damaged"),
        (flipped(17), "the header is damaged"),
        (flipped(HEADER_BYTES + 5), "the ids are damaged"),
    ],
)
def test_damage_is_named(tmp_path, change, text):
    path = damaged(tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {text}")):
        TokenShard.open(path)


def test_every_truncation_and_every_header_bit_is_noticed(tmp_path):
    for length in range(0, 264, 7):
        with pytest.raises(ValueError):
            TokenShard.open(damaged(tmp_path, lambda data, length=length: data[:length]))
    for place in range(HEADER_BYTES - 8):
        with pytest.raises(ValueError):
            TokenShard.open(damaged(tmp_path, flipped(place)))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"", "write_dataset: the text is empty: "),
        ("a.txt", b"\0\1", "is binary, not text: byte 0 is 0x00"),
        ("a.txt", b"ab\xff", "is not UTF-8 text: byte 2 is 0xff"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "a"}\n', "a.jsonl, line 1: has no field 'text'; it has 'body'"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: must be an object with 'text'; got list"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b", "n": ' + b"9" * 5000 + b"}\n", "a.jsonl, line 2: not JSON: Exceeds the limit"),
        ("a.ndjson", b'{"text": "a"}\n' + b"[" * 100_000, "a.ndjson, line 2: not JSON: "),
        ("a.jsonl", b'\n{"text": "a\\ud800"}\n', "a.jsonl, line 2: 'text' holds half a surrogate pair"),
        ("a.JSONL", b"plain", "a.JSONL, line 1: not JSON"),
    ],
)
def test_bad_text_is_named_and_leaves_nothing(tokenizer, tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(text)):
        write_dataset(tmp_path / name, tokenizer, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_missing_files(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt is not a file"):
        write_dataset(tmp_path / "nowhere.txt", tokenizer, tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="train.tokens is not a file"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="there are no files to read"):
        write_dataset([], tokenizer, tmp_path / "d")
