"""Text files: their ends of lines, their names; test_text_file.py has those that are read line by line."""

import pytest

from fastmixer.text.files import read_text
from fastmixer.text.text_file import is_json_lines


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\r\ntwo\rthree\nfour", "one\ntwo\nthree\nfour"),
        (b"\r\r\n\n\r", "\n\n\n\n"),
        (b"\xef\xbb\xbfone\r", "one\n"),
        ("a\u2028b\x0cc".encode(), "a\u2028b\x0cc"),  # these end no line
    ],
)
def test_every_end_of_line_becomes_the_same(tmp_path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == text


def test_the_docstring_is_one_line_where_it_names_ends_of_lines():
    assert r"with \n for every end of line" in read_text.__doc__


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.jsonl", True), ("b/a.NDJSON", True), ("a.json", False), ("jsonl", False), ("a.jsonl.txt", False)],
)
def test_json_lines_are_known_by_their_names(path, expected):
    assert is_json_lines(path) is expected
