"""Texts of lines and of JSON lines, one at a time; and the line that is wrong."""

import io
from operator import length_hint
from types import SimpleNamespace

import pytest

from fastmixer.text import text_file
from fastmixer.text.text_file import TextFile


@pytest.fixture
def write(tmp_path):
    def write(data, name="texts.txt"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\ntwo", ["one", "two"]),
        ("one\n\n  two \n\n", ["one", "", "  two ", ""]),
        ("\ufeffone\r\ntwo\r\n", ["one", "two"]),
        ("a\u2028b\x0cc\n", ["a\u2028b\x0cc"]),  # these end no line
        ("", []),
    ],
)
def test_a_line_is_a_text(write, data, texts):
    file = TextFile(write(data))
    assert list(file) == list(file) == texts and length_hint(file) == len(texts)
    assert [line.number for line in file.lines()] == list(range(1, len(texts) + 1))


def test_long_files_are_counted_in_chunks(write, monkeypatch):
    monkeypatch.setattr(text_file, "CHUNK", 3)
    assert [length_hint(TextFile(write(data))) for data in ("ab\ncd\n", "ab\ncd\ne", "\n\n\n", "abc")] == [2, 3, 3, 1]


@pytest.mark.parametrize(
    ("name", "field"), [("x.jsonl", None), ("x.JSONL", None), ("x.ndjson", "text"), ("x.txt", "text")]
)
def test_json_lines(write, name, field):
    file = TextFile(write('{"text": "one", "id": 3}\n\n{"text": "z\\nw\\u00fc"}\n', name), field)
    assert [tuple(line) for line in file.lines()] == [(1, "one"), (3, "z\nwü")]


def test_another_field(write):
    assert list(TextFile(write('{"body": "one", "text": "two"}', "x.jsonl"), "body")) == ["one"]


def test_stdin(monkeypatch):
    monkeypatch.setattr(text_file.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    file = TextFile("-")
    assert length_hint(file) == 0 and list(file) == ["one", "two"]


def test_only_what_is_asked_for_is_read(write):
    texts = iter(TextFile(write(b"one\ntwo\n\xff\n")))
    assert [next(texts), next(texts)] == ["one", "two"]
    with pytest.raises(ValueError, match=r"line 3: not UTF-8: byte 0 is 0xff$"):
        next(texts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("one\nt\0wo\n", "line 2: binary, not text: it holds a byte 0x00"),
        ('{"text": "a"}\n{"text": \n', "line 2: not JSON: Expecting value: line 1 column 10 (char 9)"),
        ('["a"]', "line 1: must be an object with 'text'; got list"),
        ('{"txt": "a", "id": 1}', "line 1: has no field 'text'; it has 'txt', 'id'"),
        ("{}", "line 1: has no field 'text'; it has none"),
        ('{"text": null}', "line 1: 'text' must be a string; got NoneType"),
        ("[" * 100_000, "line 1: not JSON: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(write, data, message):
    path = write(data, "x.txt" if "\0" in data else "x.jsonl")
    with pytest.raises(ValueError) as caught:
        list(TextFile(path))
    assert str(caught.value).startswith(f"{path}, {message}")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/none.txt is not a file$"):
        TextFile(tmp_path / "none.txt")
