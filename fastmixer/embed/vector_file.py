"""A .npy file of vectors that grows row by row and is whole only once all of them are in it. Knows nothing of text."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class VectorFile:
    """Writes rows [n, dim] to path as they come, in a `with` block: under another name beside it until the block ends well,
    when the file takes its place; an error leaves what stood at path as it was.

    Raises ValueError for a path that does not end with .npy; OSError as it came.
    """

    def __init__(self, path: str | Path, dim: int, dtype: str):
        self.path = Path(path)
        if self.path.suffix != ".npy":
            raise ValueError(f"embed_to: path must end with .npy; got {str(path)!r}")
        self._dim, self._dtype, self._rows = dim, np.dtype(dtype), 0
        self._part = self.path.with_name(f".writing-{self.path.name}-{os.getpid()}")

    def __enter__(self) -> "VectorFile":
        self._file: BinaryIO = self._part.open("wb")
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
                self._part.replace(self.path)
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _write_header(self) -> None:
        """The header for so many rows; NumPy leaves room in it for more digits, so that its length stays the same."""
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._rows, self._dim),
        }  # fmt: skip
        np.lib.format.write_array_header_1_0(self._file, fields)
