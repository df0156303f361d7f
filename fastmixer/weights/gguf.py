"""GGUF files, version 2 and 3, read within bounds: every count and size is a Python integer checked against the file before
anything is made of it, and tensors are views of the mapped file. Knows the container, not architectures; what a block of
a quantized type holds is in quantized.py. Source of the format: ggml's docs/gguf.md.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.weights.quantized import TYPES, BlockType, dequantize

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4
MAX_NAME = 1024  # bytes of a tensor's or field's name
MAX_HEADER = 256 << 20  # bytes before the tensors: a vocabulary of some 256,000 pieces takes about 10 MB

# Metadata value types: number -> (name, struct format).
_SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "B"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SMALLEST_STRING = 8  # its length alone


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. shape: as NumPy has it, the last axis runs along memory; start: bytes from the file's begin."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int
    bytes: int


class GGUFFile(Mapping[str, np.ndarray]):
    """A GGUF file: file.metadata, and tensors by name, file["output.weight"]: float32, dequantized when asked for.

    file.raw(name) is the same tensor as it lies in the file: uint8 [rows, bytes a row]. Raises FileNotFoundError, or
    ValueError that names the file, the field and its value.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        with self.path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ValueError(f"{self.path} is empty, not a GGUF file")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = _Header(str(self.path), self._map)
        self.version, self.metadata, self.tensors = header.read()

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._info(name)
        return dequantize(self.raw(name), info.type).reshape(info.shape)

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def raw(self, name: str) -> np.ndarray:
        """The tensor's blocks as they lie in the file, a read-only view: uint8 [rows, bytes a row]."""
        info = self._info(name)
        rows = int(np.prod(info.shape[:-1], dtype=np.int64))
        flat = np.frombuffer(self._map, np.uint8, count=info.bytes, offset=info.start)
        return flat.reshape(rows, info.bytes // rows)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise KeyError(f"{self.path} has no tensor {name!r}")
        return self.tensors[name]


class _Header:
    """A cursor over the file's beginning that never goes past its end."""

    def __init__(self, path: str, data: mmap.mmap):
        self._path, self._data, self._at = path, data, 0
        self._size = len(data)

    def read(self) -> tuple[int, dict[str, Any], dict[str, TensorInfo]]:
        magic = self._take(len(MAGIC), "magic")
        if magic != MAGIC:
            raise self._wrong("magic", f"must be {MAGIC!r}; got {magic!r}")
        version = self._number("I", "version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = " (a big-endian file)" if swapped in VERSIONS else ""
            raise self._wrong("version", f"must be 2 or 3; got {version}{hint}")
        # A tensor's description takes at least 8 + 4 + 4 + 8 bytes, a field's 8 + 4 + 1.
        tensors = self._count("tensor count", 24)
        fields = self._count("field count", 13)
        metadata = self._metadata(fields)
        infos = self._tensor_infos(tensors, self._alignment(metadata))
        return version, metadata, infos

    # ---- metadata ----

    def _metadata(self, fields: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(fields):
            name = self._string(f"name of field {index}", MAX_NAME)
            if name in metadata:
                raise self._wrong(name, "stands twice among the fields")
            metadata[name] = self._value(name, self._number("I", f"type of {name}"))
        return metadata

    def _value(self, name: str, kind: int) -> Any:
        if kind in _SCALARS:
            value = self._number(_SCALARS[kind][1], name)
            if _SCALARS[kind][0] == "bool":
                if value not in (0, 1):
                    raise self._wrong(name, f"must be a bool, 0 or 1; got {value}")
                return bool(value)
            return value
        if kind == _STRING:
            return self._string(name)
        if kind == _ARRAY:
            return self._array(name)
        raise self._wrong(name, f"has value type {kind}; known are 0 to 12")

    def _array(self, name: str) -> Any:
        kind = self._number("I", f"element type of {name}")
        if kind == _STRING:
            count = self._count(f"length of {name}", _SMALLEST_STRING)
            return self._strings(name, count)
        if kind not in _SCALARS:
            raise self._wrong(name, f"is an array of value type {kind}; arrays of numbers, bools and strings are known")
        label, letter = _SCALARS[kind]
        count = self._count(f"length of {name}", struct.calcsize(letter))
        dtype = np.dtype("uint8" if label == "bool" else label).newbyteorder("<")
        return np.frombuffer(self._take(count * dtype.itemsize, name), dtype)

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._wrong("general.alignment", f"must be a power of two up to {MAX_ALIGNMENT}; got {alignment!r}")
        return alignment

    # ---- tensors ----

    def _tensor_infos(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        described = []
        names: set[str] = set()
        for index in range(count):
            name = self._string(f"name of tensor {index}", MAX_NAME)
            if name in names:
                raise self._wrong(name, "stands twice among the tensors")
            names.add(name)
            described.append((name, *self._tensor(name)))
        data_start = -(-self._at // alignment) * alignment
        infos = {}
        for name, kind, shape, offset, size in described:
            start = data_start + offset
            if offset % alignment:
                raise self._wrong(name, f"has an offset that is no multiple of {alignment}; got {offset}")
            if start + size > self._size:
                raise self._wrong(name, f"needs bytes {start} to {start + size}; the file has {self._size}")
            infos[name] = TensorInfo(name, kind, shape, start, size)
        self._require_apart(infos)
        return infos

    def _tensor(self, name: str) -> tuple[BlockType, tuple[int, ...], int, int]:
        """(type, shape, offset, bytes) of one tensor's description."""
        dimensions = self._number("I", f"dimensions of {name}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._wrong(name, f"must have 1 to {MAX_DIMENSIONS} dimensions; got {dimensions}")
        lengths = [self._number("Q", f"shape of {name}") for _ in range(dimensions)]
        number = self._number("I", f"type of {name}")
        offset = self._number("Q", f"offset of {name}")
        if number not in TYPES:
            known = ", ".join(kind.name for kind in TYPES.values())
            raise self._wrong(name, f"has tensor type {number}; known are {known}")
        kind = TYPES[number]
        elements = 1
        for length in lengths:
            if length < 1:
                raise self._wrong(name, f"must have a shape of positive numbers; got {lengths}")
            elements *= length
        if lengths[0] % kind.block:
            raise self._wrong(name, f"of {kind.name} must have rows of a multiple of {kind.block}; got {lengths[0]}")
        size = elements // kind.block * kind.bytes
        if size > self._size:
            raise self._wrong(name, f"of shape {lengths[::-1]} needs {size} bytes; the file has {self._size}")
        return kind, tuple(reversed(lengths)), offset, size

    def _require_apart(self, infos: dict[str, TensorInfo]) -> None:
        before: TensorInfo | None = None
        for info in sorted(infos.values(), key=lambda info: info.start):
            if before is not None and info.start < before.start + before.bytes:
                raise self._wrong(info.name, f"lies over {before.name}: both take byte {info.start}")
            before = info

    # ---- bytes ----

    def _take(self, count: int, field: str) -> bytes:
        if self._at + count > self._size:
            raise self._wrong(field, f"needs {count} bytes at byte {self._at}; the file has {self._size}")
        if self._at + count > MAX_HEADER:
            raise self._wrong(field, f"needs {count} bytes at byte {self._at}; headers end before {MAX_HEADER}")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, letter: str, field: str) -> Any:
        return struct.unpack("<" + letter, self._take(struct.calcsize("<" + letter), field))[0]

    def _count(self, field: str, smallest: int) -> int:
        """A count of things of at least `smallest` bytes each, which must fit what is left of the file."""
        count = self._number("Q", field)
        if count * smallest > self._size - self._at:
            raise self._wrong(field, f"is {count}: more than the file's {self._size} bytes can hold")
        return count

    def _string(self, field: str, longest: int | None = None) -> str:
        length = self._number("Q", f"length of {field}")
        if longest is not None and length > longest:
            raise self._wrong(field, f"must have at most {longest} bytes; got {length}")
        raw = self._take(length, field)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(field, f"is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from error

    def _strings(self, field: str, count: int) -> list[str]:
        """As _string for each; a vocabulary has 100,000 of them, so that the loop holds only what every one needs."""
        unpack, data, limit = struct.Struct("<Q").unpack_from, self._data, min(self._size, MAX_HEADER)
        strings: list[str] = []
        at = self._at
        for index in range(count):
            start = at + _SMALLEST_STRING
            end = start + unpack(data, at)[0] if start <= limit else limit + 1
            try:
                strings.append(data[start:end].decode() if end <= limit else self._string_at(at, f"{field}[{index}]"))
            except UnicodeDecodeError:
                self._string_at(at, f"{field}[{index}]")  # says what is wrong
            at = end
        self._at = at
        return strings

    def _string_at(self, at: int, field: str) -> str:
        self._at = at
        return self._string(field)

    def _wrong(self, field: str, problem: str) -> ValueError:
        return ValueError(f"{self._path}: {field} {problem}")
