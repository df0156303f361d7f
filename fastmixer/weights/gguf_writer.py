"""Writes GGUF files, version 3: the container's bytes, one tensor in memory at a time, all or nothing.

Knows neither architectures nor tokenizers; what a model's fields and tensors are called is in gguf_export.py. Source of
the format: ggml's docs/gguf.md.
"""

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastmixer.weights.files import TEMPORARY_PREFIX, sync
from fastmixer.weights.gguf import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, MAX_NAME
from fastmixer.weights.quantized import NUMBERS, BlockType

VERSION = 3
# Metadata value types by the dtype of a NumPy number or array; plain Python values are described in write_gguf.
_NUMBERS = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
    "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a file to be. shape: as NumPy has it; raw(): its blocks, uint8 [rows, bytes a row], made when its turn
    comes."""

    type: BlockType
    shape: tuple[int, ...]
    raw: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) // self.type.block * self.type.bytes


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorToWrite],
    progress: Callable[[int], object] = lambda done: None,
) -> Path:
    """Write a file, or nothing: written beside, synced, then renamed over what stood at path.

    metadata: str, bool, int (as uint32), float (as float32), NumPy numbers (as they are), lists of str, NumPy arrays of
    numbers. progress is called with the bytes of each tensor that is written. Raises ValueError naming file and field;
    OSError as it came.
    """
    path = Path(path)
    header = _header(path, metadata, tensors)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _pad(file, file.write(header))
            for name, tensor in tensors.items():
                raw = tensor.raw()
                if raw.dtype != np.uint8 or raw.nbytes != tensor.bytes:
                    raise ValueError(
                        f"{path}: {name} of {tensor.type.name} {tensor.shape} takes {tensor.bytes} bytes; "
                        f"got {raw.dtype} {raw.shape}"
                    )
                file.write(np.ascontiguousarray(raw).data)
                _pad(file, tensor.bytes)
                progress(tensor.bytes)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path


def _header(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, TensorToWrite]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_name(path, name) + _field(path, name, value) for name, value in metadata.items()]
    offset = 0
    for name, tensor in tensors.items():
        if (
            not 1 <= len(tensor.shape) <= MAX_DIMENSIONS
            or min(tensor.shape) < 1
            or tensor.shape[-1] % tensor.type.block
        ):
            raise ValueError(
                f"{path}: {name} must have 1 to {MAX_DIMENSIONS} positive dimensions, the last a multiple of "
                f"{tensor.type.block} for {tensor.type.name}; got {tensor.shape}"
            )
        lengths = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts.append(_name(path, name) + lengths + struct.pack("<IQ", NUMBERS[tensor.type.name], offset))
        offset += tensor.bytes + -tensor.bytes % DEFAULT_ALIGNMENT
    return b"".join(parts)


def _name(path: Path, name: str) -> bytes:
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise ValueError(f"{path}: a name must have 1 to {MAX_NAME} bytes; got {len(name.encode())}")
    return _string(name)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _field(path: Path, name: str, value: Any) -> bytes:
    """A field's value type and value."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _NUMBERS["bool"], value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, int):
        if not 0 <= value < 2**32:
            raise ValueError(f"{path}: {name} must be a uint32; got {value}")
        value = np.uint32(value)
    elif type(value) is float:
        value = np.float32(value)
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.name in _NUMBERS and value.ndim <= 1:
        kind, raw = _NUMBERS[value.dtype.name], value.astype(value.dtype.newbyteorder("<")).tobytes()
        array = struct.pack("<IIQ", _ARRAY, kind, value.size) if value.ndim else struct.pack("<I", kind)
        return array + raw
    raise ValueError(f"{path}: {name} must be text, a number, or a list of these; got {type(value).__name__}")


def _pad(file: BinaryIO, written: int) -> None:
    file.write(b"\0" * (-written % DEFAULT_ALIGNMENT))
