"""Folders and files are written whole or not at all, and errors name them."""

import errno

import pytest

from fastmixer.weights.files import read_json, replace_folder


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


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", "{", b"\xff"])
def test_what_is_no_json_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"config\.json is not JSON: "):
        read_json(path)
