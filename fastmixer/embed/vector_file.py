"""Files of vectors: a .npy that grows row by row and is whole only once all of them are in it, and the opening of one.

Knows nothing of text.
"""

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"\x93NUMPY"
READABLE = ("float32", "float16")
FOREIGN = "big-endian" if sys.byteorder == "little" else "little-endian"


class VectorFile:
    """Writes rows [n, dim] to path as they come, in a `with` block: under another name beside it until the block ends well,
    when the file takes its place; an error leaves what stood at path as it was. Of a link its target is written.

    Raises ValueError for a path that does not end with .npy, FileNotFoundError for a folder that is not there,
    IsADirectoryError for a path that is one; as the block is entered OSError that names path where nothing can be written.
    """

    def __init__(self, path: str | Path, dim: int, dtype: str):
        self.path = Path(path)
        if self.path.suffix != ".npy":
            raise ValueError(f"embed_to: path must end with .npy; got {str(path)!r}")
        self._target = Path(os.path.realpath(path)) if os.path.islink(path) else self.path
        if os.path.isdir(path):  # (Path's own methods raise for a name that is too long)
            raise IsADirectoryError(f"embed_to: path must be a file; {path} is a folder")
        if not self._target.parent.is_dir():
            raise FileNotFoundError(
                f"embed_to: there is no folder {self._target.parent} to write {self._target.name} into"
            )
        self._dim, self._dtype, self._rows = dim, np.dtype(dtype), 0
        self._part = self._target.with_name(f".writing-{self._target.name}-{os.getpid()}")

    def __enter__(self) -> "VectorFile":
        try:
            self._file: BinaryIO = self._part.open("wb")
        except OSError as error:  # says what is wrong with a name that nobody asked for
            raise type(error)(f"embed_to: {self.path} cannot be written: {error.strerror}") from error
        self._write_header()
        return self

    def append(self, vectors: np.ndarray) -> None:
        """vectors: [rows, dim], in the file's dtype."""
        self._file.write(np.ascontiguousarray(vectors, self._dtype).data)
        self._rows += len(vectors)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self._file.seek(0)
                self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._part.replace(self._target)
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _write_header(self) -> None:
        """The header for so many rows; NumPy leaves room in it for more digits, so that its length stays the same."""
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._rows, self._dim),
        }  # fmt: skip
        np.lib.format.write_array_header_1_0(self._file, fields)


def open_vectors(path: str | Path, dim: int | None = None, maker: str = "the model") -> np.ndarray:
    """The vectors in a .npy file: float32 or float16 [rows, dim], memory-mapped and read-only. dim: what rows must have,
    maker: whose vectors have that.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise ValueError(f"{path} is not a .npy file: it begins with {start!r}")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # damaged, cut off, or of Python objects
        raise ValueError(f"{path} cannot be read as vectors: {error}") from error
    if vectors.dtype.name not in READABLE or not vectors.dtype.isnative:
        order = "" if vectors.dtype.isnative else f" in {FOREIGN} byte order"
        raise ValueError(f"{path} must hold {' or '.join(READABLE)}; got {vectors.dtype.name}{order}")
    if vectors.ndim != 2 or not vectors.flags.c_contiguous:
        order = "" if vectors.ndim != 2 else ", a column at a time"
        raise ValueError(f"{path} must hold [rows, dim], a row at a time; got {vectors.shape}{order}")
    if 0 in vectors.shape:
        raise ValueError(f"{path} holds no vectors: its shape is {vectors.shape}")
    if dim is not None and vectors.shape[1] != dim:
        raise ValueError(f"{path} has vectors of {vectors.shape[1]} numbers, {maker} makes them of {dim}")
    return vectors
