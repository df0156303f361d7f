"""Pairs from lines of JSON and from Python: every form, and every way to be wrong with its place."""

import json

import pytest

from fastmixer.data.pairs import TextPair, as_pairs, read_pairs


def write(folder, *lines):
    path = folder / "pairs.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def test_every_form_of_a_line(tmp_path):
    path = write(
        tmp_path,
        {"anchor": "a", "positive": "b"},
        "",
        {"query": "c", "text": "d", "negative": "e"},
        {"anchor": "f", "text": "g", "negative": ["h", "i"], "other": 3},
        {"anchor": "j", "query": "not this", "positive": "k", "negative": None},
    )
    assert [pair[:3] for pair in read_pairs(path)] == [
        ("a", "b", ()), ("c", "d", ("e",)), ("f", "g", ("h", "i")), ("j", "k", ()),
    ]  # fmt: skip
    assert read_pairs(path)[1].where == f"{path}, line 3"


def test_fields_of_other_names(tmp_path):
    path = write(tmp_path, {"question": "a", "answer": "b", "wrong": "c", "negative": "never read"})
    assert read_pairs(path, ["question", "answer", "wrong"])[0][:3] == ("a", "b", ("c",))
    assert read_pairs(path, ["question", "answer"])[0][:3] == ("a", "b", ())


def test_from_python():
    given = [("a", "b"), ["c", "d", "e"], ("f", "g", ["h", "i"]), {"query": "j", "positive": "k"}, TextPair("l", "m")]
    assert [pair[:3] for pair in as_pairs(iter(given))] == [
        ("a", "b", ()), ("c", "d", ("e",)), ("f", "g", ("h", "i")), ("j", "k", ()), ("l", "m", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{broken", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('["a", "b"]', "must be an object with 'anchor' and 'positive'; got list"),
        ({"anchor": "a"}, "no field 'positive' (or 'text'); got 'anchor'"),
        ({}, "no field 'anchor' (or 'query'); got none"),
        ({"anchor": 3, "positive": "b"}, "'anchor' must be a string; got int"),
        ({"query": "a", "text": None}, "'text' must be a string; got NoneType"),
        ({"anchor": "a", "positive": "b", "negative": ["c", 4]}, "'negative' must be a string; got int"),
        ({"anchor": " \t", "positive": "b"}, "'anchor' is empty"),
        ('{"anchor": "\\ud800", "positive": "b"}', "'anchor' holds half a surrogate pair; no text holds that alone"),
    ],
)
def test_a_wrong_line(tmp_path, line, text):
    path = write(tmp_path, {"anchor": "a", "positive": "b"}, "", line)
    with pytest.raises(ValueError) as error:
        read_pairs(path)
    assert str(error.value) == f"{path}, line 3: {text}"


def test_a_wrong_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl is not a file"):
        read_pairs(tmp_path / "absent.jsonl")
    path = write(tmp_path, "", "  ")
    with pytest.raises(ValueError) as error:
        read_pairs(path)
    assert str(error.value) == f"{path} holds no pairs; expected a JSON object a line with 'anchor' and 'positive'"
    with pytest.raises(ValueError) as error:
        read_pairs(path, ["q", "a"])
    assert str(error.value) == f"{path} holds no pairs; expected a JSON object a line with 'q' and 'a'"
    path.write_bytes(b'{"anchor": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"pairs\.jsonl is not UTF-8 text: byte 15 is 0xe9"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (["one"], "fields must be two or three names: of anchor, positive and negative; got ['one']"),
        ("ab", "fields must be two or three names: of anchor, positive and negative; got 'ab'"),
        (["q", ""], "fields must be two or three names: of anchor, positive and negative; got ['q', '']"),
        (["q", "q"], "fields must differ from each other; got q, q"),
    ],
)
def test_wrong_fields(tmp_path, fields, text):
    with pytest.raises(ValueError) as error:
        read_pairs(write(tmp_path, {"q": "a"}), fields)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("pairs", "kind", "text"),
    [
        (3, TypeError, "pairs must be a file or a list of (anchor, positive); got int"),
        ({"a": "b"}, TypeError, "pairs must be a file or a list of (anchor, positive); got dict"),
        ([], ValueError, "pairs is empty; expected (anchor, positive) pairs"),
        ([("a", "b"), "ab"], TypeError, "pairs[1] must be (anchor, positive) or (anchor, positive, negative); got str"),
        ([("a",)], TypeError, "pairs[0] must be (anchor, positive) or (anchor, positive, negative); got 1 items"),
        ([("a", b"b")], TypeError, "pairs[0]: 'positive' must be a string; got bytes"),
        ([("a", "b", 5)], TypeError, "pairs[0]: 'negative' must be a string; got int"),
        ([("a", "")], ValueError, "pairs[0]: 'positive' is empty"),
        ([{"anchor": "a"}], ValueError, "pairs[0]: no field 'positive' (or 'text'); got 'anchor'"),
    ],
)
def test_wrong_pairs(pairs, kind, text):
    with pytest.raises(kind) as error:
        as_pairs(pairs)
    assert str(error.value) == text
