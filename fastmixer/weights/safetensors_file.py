"""safetensors files, read within bounds: the header is checked field by field against the file before anything is made
of it, and tensors are views of the mapped file. Knows the container, not models. Source: safetensors' README.
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.weights.quantized import BY_NAME
from fastmixer.weights.stored import StoredTensor
from fastmixer.weights.strict_json import parse_object, short

MAX_HEADER = 16 << 20  # bytes; the format allows 100 MB, the largest models' headers take about 1 MB
MAX_NAME, MAX_DIMENSIONS = 1024, 8
WEIGHTS = ("F32", "F16", "BF16")
# Bytes of a number in every format that a file may hold, weights or not.
DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
    "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
# A pickle runs whatever code its writer put there; these endings are pickles, or archives of them.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: start, stop: bytes from the file's begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile(Mapping[str, StoredTensor]):
    """A safetensors file: tensors by name, views of the mapped file, and .infos, .metadata.

    Raises FileNotFoundError, or ValueError that names the file, the tensor and the value.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        refuse_pickle(self.path)
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise ValueError(f"{self.path} is {size} bytes, no safetensors file: its header's length alone takes 8")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(self._map[:8], "little")
        if length > MAX_HEADER:
            raise ValueError(f"{self.path}: the header's length must be at most {MAX_HEADER}; got {length}")
        if length < 2 or 8 + length > size:
            raise ValueError(
                f"{self.path}: the header's length must be from 2 to {size - 8}, the rest of the file; got {length}"
            )
        if self._map[8:9] != b"{":
            raise ValueError(f"{self.path}: the header must begin with '{{'; got {self._map[8:9]!r}")
        header = parse_object(self._map[8 : 8 + length], f"{self.path}: the header")
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        begin = 8 + length
        self.infos = {name: self._info(name, value, begin, size) for name, value in header.items()}
        self._check_places(begin, size)

    def __getitem__(self, name: str) -> StoredTensor:
        info = self.infos[name]
        if info.dtype not in WEIGHTS:
            raise ValueError(f"{self.path}: tensor {name} must be one of {', '.join(WEIGHTS)}; got {info.dtype}")
        raw = np.frombuffer(self._map, np.uint8, count=info.stop - info.start, offset=info.start)
        rows = math.prod(info.shape[:-1])
        width = (info.shape[-1] if info.shape else 1) * DTYPES[info.dtype]
        return StoredTensor(BY_NAME[info.dtype], raw.reshape(rows, width), info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def _metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise ValueError(f"{self.path}: __metadata__ must be an object of strings; got {short(value)}")
        return value

    def _info(self, name: str, value: Any, begin: int, size: int) -> TensorInfo:
        where = f"{self.path}: tensor {short(name) if len(name) > 80 else name}"
        if len(name) > MAX_NAME:
            raise ValueError(f"{where}: the name must have at most {MAX_NAME} characters; got {len(name)}")
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{where} must have dtype, shape and data_offsets; got {short(value)}")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{where}: dtype must be one of {', '.join(DTYPES)}; got {short(dtype)}")
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(length) for length in shape):
            raise ValueError(f"{where}: shape must be at most {MAX_DIMENSIONS} integers >= 0; got {short(shape)}")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
            raise ValueError(f"{where}: data_offsets must be two integers >= 0; got {short(offsets)}")
        start, stop = offsets
        if not start <= stop <= size - begin:
            raise ValueError(
                f"{where}: data_offsets must be in order, within the {size - begin} bytes after the header; "
                f"got {short(offsets)}"
            )
        expected = math.prod(shape) * DTYPES[dtype]
        if stop - start != expected:
            raise ValueError(
                f"{where}: data_offsets must span {short(expected)} bytes, as {dtype} {short(shape)} takes; "
                f"got {stop - start}"
            )
        return TensorInfo(dtype, tuple(shape), begin + start, begin + stop)

    def _check_places(self, begin: int, size: int) -> None:
        """Tensors lie one after another, to the file's end."""
        at, before = begin, "the header"
        for name, info in sorted(self.infos.items(), key=lambda item: (item[1].start, item[1].stop)):
            if info.start != at:
                problem = "overlap" if info.start < at else f"leave {info.start - at} unnamed bytes after"
                raise ValueError(
                    f"{self.path}: tensor {name}: data_offsets [{info.start - begin}, ...] {problem} {before}"
                )
            at, before = info.stop, f"tensor {name}"
        if at != size:
            raise ValueError(f"{self.path}: {size - at} bytes follow {before}, which no tensor names")


def refuse_pickle(path: Path) -> None:
    """ValueError for a file that PyTorch's pickle wrote: by its name, or by what it begins with."""
    with path.open("rb") as file:
        begin = file.read(8)
    pickled = begin[:1] == b"\x80" and begin[1:2] in b"\x02\x03\x04\x05" and begin[4:] != bytes(4)  # no header's length
    if path.suffix.lower() in PICKLES or pickled or begin[:4] == b"PK\x03\x04":
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is opened; use the model's .safetensors files instead "
            "(transformers' save_pretrained writes them), or a .gguf file"
        )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
