"""Files of vectors: what opens, and each thing that may be wrong with one."""

import os

import numpy as np
import pytest

from fastmixer.embed import open_vectors
from fastmixer.embed.vector_file import VectorFile

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_mapped(tmp_path, dtype):
    np.save(tmp_path / "v.npy", VECTORS.astype(dtype))
    vectors = open_vectors(tmp_path / "v.npy", 3)
    assert isinstance(vectors, np.memmap) and not vectors.flags.writeable
    np.testing.assert_array_equal(vectors, VECTORS.astype(dtype))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (VECTORS.astype(np.float64), "must hold float32 or float16; got float64"),
        (VECTORS.astype(np.int32), "must hold float32 or float16; got int32"),
        (VECTORS.astype(">f4"), "must hold float32 or float16; got float32 in big-endian byte order"),
        (VECTORS[0], "must hold [rows, dim], a row at a time; got (3,)"),
        (VECTORS[None], "must hold [rows, dim], a row at a time; got (1, 4, 3)"),
        (np.asfortranarray(VECTORS), "must hold [rows, dim], a row at a time; got (4, 3), a column at a time"),
        (VECTORS[:0], "holds no vectors: its shape is (0, 3)"),
        (VECTORS[:, :0], "holds no vectors: its shape is (4, 0)"),
        (VECTORS[:, :2].copy(), "has vectors of 2 numbers, MiniLM makes them of 3"),
        (np.array([{"a": 1}], object), "cannot be read as vectors: "),
    ],
)  # fmt: skip
def test_what_is_no_table_of_vectors(tmp_path, array, message):
    path = tmp_path / "v.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError) as caught:
        open_vectors(path, 3, "MiniLM")
    assert str(caught.value).startswith(f"{path} {message}")


@pytest.mark.parametrize("keep", [3, 9, 100, 170])
def test_a_file_that_is_cut_off(tmp_path, keep):
    path = tmp_path / "v.npy"
    np.save(path, VECTORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError) as caught:
        open_vectors(path)
    expected = "is not a .npy file: it begins with " if keep < 6 else "cannot be read as vectors: "
    assert str(caught.value).startswith(f"{path} {expected}")


def test_other_files(tmp_path):
    (tmp_path / "v.npy").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"v.npy is not a .npy file: it begins with b'one\\nt"):
        open_vectors(tmp_path / "v.npy")
    for absent in (tmp_path, tmp_path / "none.npy"):
        with pytest.raises(FileNotFoundError, match="is not a file$"):
            open_vectors(absent)


def test_where_there_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        VectorFile(tmp_path / "none" / "v.npy", 3, "float32")
    assert str(caught.value) == f"embed_to: there is no folder {tmp_path / 'none'} to write v.npy into"


def test_where_a_folder_stands(tmp_path):
    (tmp_path / "v.npy").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        VectorFile(tmp_path / "v.npy", 3, "float32")
    assert str(caught.value) == f"embed_to: path must be a file; {tmp_path / 'v.npy'} is a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_may_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught, VectorFile(tmp_path / "v.npy", 3, "float32"):
        pass
    assert str(caught.value) == f"embed_to: {tmp_path / 'v.npy'} cannot be written: Permission denied"


def test_an_error_names_the_path_that_was_asked_for(tmp_path):
    path = tmp_path / f"{'n' * 300}.npy"
    with pytest.raises(OSError) as caught, VectorFile(path, 3, "float32"):
        pass
    assert str(caught.value) == f"embed_to: {path} cannot be written: File name too long"


def test_the_target_of_a_link_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.npy", tmp_path / "there" / "v.npy"
    link.symlink_to("there/v.npy")
    for rows in (VECTORS, VECTORS[:2]):  # nothing stands there the first time
        with VectorFile(link, 3, "float32") as file:
            file.append(rows)
        assert link.is_symlink() and [path.name for path in target.parent.iterdir()] == ["v.npy"]
        np.testing.assert_array_equal(np.load(target), rows)
    link.unlink()
    link.symlink_to("nowhere/v.npy")
    with pytest.raises(FileNotFoundError, match="^embed_to: there is no folder .*nowhere to write v.npy into$"):
        VectorFile(link, 3, "float32")
