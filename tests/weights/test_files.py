"""Folders and files are written whole or not at all, and errors name them."""

import errno
import os

import pytest

from fastmixer.weights import files
from fastmixer.weights.files import read_json, replace_file, replace_folder


def test_what_fails_leaves_what_stood_and_names_the_folder(tmp_path):
    folder = tmp_path / "run"
    replace_folder(folder, lambda new: (new / "file").write_text("first"))

    def full(new):
        (new / "file").write_text("second")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*run'") as raised:
        replace_folder(folder, full)
    assert raised.value.errno == errno.ENOSPC
    assert (folder / "file").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_that_the_system_did_not_raise_stays_as_it_is(tmp_path):
    def wrong(new):
        raise OSError("the library says something")

    with pytest.raises(OSError, match="^the library says something$"):
        replace_folder(tmp_path / "run", wrong)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    replace_file(path, "old")
    replace_file(path, "né")
    assert path.read_text(encoding="utf-8") == "né" and list(tmp_path.iterdir()) == [path]

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'$"):
        replace_file(path, "newer")
    assert path.read_text(encoding="utf-8") == "né" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", "{", b"\xff"])
def test_what_is_no_json_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"config\.json is not JSON: "):
        read_json(path)
