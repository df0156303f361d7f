"""Packed weights on the disk: the next load maps them instead of packing anew, and processes share their memory.

A file holds the matrices of one model as one implementation lays them out. Its name says which: by the content of the
model's files, how matrices are kept, the implementation, its layout, and the code that reads models. Whoever can write into
the folder decides what a model computes. Knows nothing of what the numbers mean.
"""

import functools
import hashlib
import json
import mmap
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

import fastmixer.weights
from fastmixer import __version__
from fastmixer.kernels.packed import KINDS, PackedWeight
from fastmixer.kernels.select import kernel_module
from fastmixer.ops.bfloat16 import is_fast
from fastmixer.weights.quantized import BY_NAME
from fastmixer.weights.stored import expected_tensors

if TYPE_CHECKING:
    from fastmixer.weights.source import ModelSource

VARIABLE = "FASTMIXER_PACKED_CACHE"
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")  # what it may be besides a folder, in any case
ENDING, WRITING = ".packed", ".writing-"
MAGIC = b"fmpack01"
LINE = 64  # bytes: where arrays begin
TRAILER = LINE  # magic, header's place, its length, its SHA-256; padded
IN_HEADER = 4096  # bytes of an array that stands in the header itself
PIECE = 16 << 20  # bytes of a model's file that are hashed at a time
SETTLED = 2.0  # seconds after which a file's time of change tells it from later changes
FORGOTTEN = 86400.0  # seconds after which what a killed process was writing is removed
LAYOUT_ROWS = 83  # that are packed, to see how: whole panels and a part of one
SMALL_BYTES = 48  # below which every byte makes finite numbers of every format


def cache_folder(asked: bool | str | Path | None) -> Path | None:
    """Where packed weights are kept: a folder; True: the one that FASTMIXER_PACKED_CACHE names, else fastmixer/packed in the
    user's cache directory; False: nowhere; None: as True where FASTMIXER_PACKED_CACHE is a folder or 1 (true, yes, on), else
    nowhere. ValueError where the variable is a word that is neither."""
    variable = os.environ.get(VARIABLE, "")
    is_folder = variable.lower() not in (*YES, *NO)
    if asked is None:
        asked = is_folder or variable.lower() in YES
    if asked is False:
        return None
    if asked is not True:
        if not isinstance(asked, str | Path) or not str(asked):
            raise TypeError(f"load: packed_cache must be True, False, None or a folder; got {asked!r}")
        return Path(asked).expanduser()
    if is_folder and not (os.sep in variable or variable.startswith(("~", "."))):
        raise ValueError(f"{VARIABLE} must be 1, 0 or a folder's path, with a {os.sep} in it; got {variable!r}")
    if is_folder:
        return Path(variable).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmixer" / "packed"


class PackedCache(Mapping[str, PackedWeight]):
    """Packed matrices of a model that lie in a file, by name; none before open or make.

    weights: as Decoder has it; implementation: whose layout it is. path: the file, there or not. Matrices that need no
    packing (they are views of the model's own files) are not written.
    """

    def __init__(self, folder: Path, source: "ModelSource", weights: str, implementation: str):
        self._folder = folder
        self._shapes = {
            name: shape
            for name, shape in expected_tensors(source.config).items()
            if len(shape) == 2 and name != "positions.weight"
        }
        self._weights: dict[str, PackedWeight] = {}
        with suppress(OSError):  # make tells why nothing can be written there
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = _digest(_file_digest(folder, path) for path in _model_files(source.path))
        kept = f"{weights}-{'bfloat16' if is_fast() else 'float32'}" if weights == "auto" else weights
        self._family = f"{content[:24]}-{kept}-{implementation}-"
        code = _digest([__version__, _reading_code(), _layout(implementation)])
        self.path = folder / f"{self._family}{code[:16]}{ENDING}"

    @property
    def names(self) -> list[str]:
        """All matrices of the model."""
        return list(self._shapes)

    def __getitem__(self, name: str) -> PackedWeight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def open(self) -> bool:
        """Map the file; False if there is none, or it cannot be read or is damaged, which a warning tells."""
        try:
            self._weights = _read(self.path, self._shapes)
        except (FileNotFoundError, NotADirectoryError):  # the latter: of what should be a folder
            return False
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; it is made anew", RuntimeWarning, stacklevel=2)
            return False
        return True

    def make(self, weights: Iterable[tuple[str, PackedWeight]]) -> None:
        """Write these (name, packed) matrices, all or nothing, and map them. If that fails, a warning says why, and only
        views are here."""
        views: dict[str, PackedWeight] = {}

        def packed() -> Iterator[tuple[str, PackedWeight]]:
            for name, weight in weights:
                if all(_lies_in_a_file(array) for array in weight.arrays.values()):
                    views[name] = weight
                else:
                    yield name, weight

        temporary = _temporary(self._folder, self.path.stem)
        try:
            with temporary.open("wb") as file:
                count = _write(file, packed())
                file.flush()
                os.fsync(file.fileno())
            if count:
                temporary.replace(self.path)
                self.open()
                self._remove_others()
        except OSError as error:
            warnings.warn(f"packed weights are not kept: {error}", RuntimeWarning, stacklevel=2)
        finally:
            _remove(temporary)
        self._weights = {**self._weights, **views}

    def _remove_others(self) -> None:
        """The same matrices as other versions laid them out, and what killed processes left."""
        for path in self._folder.glob(f"{self._family}*{ENDING}"):
            if path != self.path:
                _remove(path)
        for path in self._folder.glob(f"{WRITING}*"):
            with suppress(OSError):  # another process was faster
                if time.time() - path.stat().st_mtime > FORGOTTEN:
                    path.unlink()


def _temporary(folder: Path, name: str) -> Path:
    """Where this thread writes what will have another name."""
    return folder / f"{WRITING}{os.getpid()}-{threading.get_ident()}-{name}"


def _remove(path: Path) -> None:
    """Take a file away that may be gone, or that others do not let go: the cache works beside it."""
    with suppress(OSError):
        path.unlink()


# ---- which model it is ----


def _digest(parts: Iterable[str | bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        piece = part.encode() if isinstance(part, str) else part
        hashed.update(len(piece).to_bytes(8, "little") + piece)
    return hashed.hexdigest()


def _model_files(path: Path) -> list[Path]:
    """The files that say what the matrices are."""
    return sorted([path / "config.json", *path.glob("*.safetensors")]) if path.is_dir() else [path]


def _file_digest(folder: Path, path: Path) -> str:
    """SHA-256 of a file's pieces' SHA-256. What a file had is remembered with its place, size and times, to the nanosecond,
    so that it is read only once; one that changed in the last seconds is not remembered. A warning tells if it cannot be."""
    real = path.resolve()
    memory = folder / f"{_digest([str(real)])[:24]}.seen"
    now = _identity(real)
    try:
        seen = json.loads(memory.read_text())
    except (OSError, ValueError):  # not seen yet, or half written
        seen = None
    if isinstance(seen, list) and len(seen) == 2 and seen[0] == now and isinstance(seen[1], str):
        return seen[1]

    def piece(start: int) -> bytes:
        with real.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(PIECE)).digest()

    began = time.time()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = _digest(threads.map(piece, range(0, real.stat().st_size, PIECE)))
    stat = real.stat()
    is_settled = _identity(real) == now and began - max(stat.st_ctime, stat.st_mtime) > SETTLED
    if is_settled and os.path.isdir(folder):  # without a folder nothing is kept, which make tells
        temporary = _temporary(folder, memory.stem)
        try:
            temporary.write_text(json.dumps([now, found]))
            temporary.replace(memory)
        except OSError as error:
            _remove(temporary)
            warnings.warn(f"{path} is read whole at every load: {error}", RuntimeWarning, stacklevel=2)
    return found


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _reading_code() -> str:
    """The code that makes tensors of files: what it changes is not seen in the files."""
    folder = Path(fastmixer.weights.__path__[0])
    return _digest(path.read_bytes() for path in sorted(folder.glob("*.py")))


@functools.cache
def _layout(implementation: str) -> str:
    """What a few rows of each format become in each kind: another layout, another file."""
    packing = kernel_module("packed", implementation)
    hashed = []
    for type_name, block in BY_NAME.items():
        width = max(2 * LINE, block.block)
        row_bytes = width // block.block * block.bytes
        raw = (np.arange(LAYOUT_ROWS * row_bytes) * 7 % SMALL_BYTES).astype(np.uint8).reshape(LAYOUT_ROWS, row_bytes)
        for kind in KINDS:
            for name, array in packing.pack_weight(raw, type_name, LAYOUT_ROWS, width, kind).arrays.items():
                hashed += [f"{name} {array.dtype.str} {array.shape}", array.tobytes()]
    return _digest(hashed)


def _lies_in_a_file(array: np.ndarray) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


# ---- the file: arrays, each at a multiple of LINE; the header, as JSON; the trailer that says where that is ----


def _write(file: BinaryIO, weights: Iterable[tuple[str, PackedWeight]]) -> int:
    """Write (name, PackedWeight) pairs; returns how many."""
    header: dict[str, Any] = {}
    at = 0
    for name, weight in weights:
        arrays: dict[str, Any] = {}
        for array_name, array in weight.arrays.items():
            described: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
            if array.nbytes <= IN_HEADER:
                described["bytes"] = array.tobytes().hex()
            else:
                padded = -array.nbytes % LINE
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                file.write(content.data)
                file.write(bytes(padded))
                described |= {"start": at, "sum": _sum(content)}
                at += array.nbytes + padded
            arrays[array_name] = described
        header[name] = {"kind": weight.kind, "outputs": weight.outputs, "inputs": weight.inputs, "arrays": arrays}
    text = json.dumps(header).encode()
    file.write(text)
    trailer = MAGIC + at.to_bytes(8, "little") + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()
    file.write(trailer.ljust(TRAILER, b"\0"))
    return len(header)


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, PackedWeight]:
    """The weights in a file, views of it. shapes: (outputs, inputs) of those that may be there. ValueError names it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < TRAILER:
            raise ValueError(f"{path} is no file of packed weights: it has {size} bytes")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    trailer = mapped[size - TRAILER :]
    begin, length = (int.from_bytes(trailer[place : place + 8], "little") for place in (8, 16))
    if trailer[:8] != MAGIC or begin + length + TRAILER != size:
        raise ValueError(f"{path} is no file of packed weights, or not the whole one")
    text = mapped[begin : begin + length]
    if hashlib.sha256(text).digest() != trailer[24:56]:
        raise ValueError(f"{path} is damaged: its header has another SHA-256 than was written")
    weights = {}
    for name, one in json.loads(text).items():
        if shapes.get(name) != (one["outputs"], one["inputs"]):
            raise ValueError(f"{path} holds another model's {name}")
        arrays = {key: _array(path, mapped, name, array) for key, array in one["arrays"].items()}
        weights[name] = PackedWeight(one["kind"], one["outputs"], one["inputs"], arrays)
    return weights


def _array(path: Path, mapped: mmap.mmap, name: str, described: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    if "bytes" in described:
        return np.frombuffer(bytes.fromhex(described["bytes"]), dtype).reshape(shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    content = np.frombuffer(mapped, np.uint8, count=size, offset=described["start"])
    if _sum(content) != described["sum"]:
        raise ValueError(f"{path} is damaged: the numbers of {name} are not those that were written")
    return content.view(dtype).reshape(shape)


def _sum(content: np.ndarray) -> int:
    """The sum of content: uint8 [n] as words of 8 bytes, modulo 2^64: at memory's speed, it finds flipped bits and lost
    pages."""
    whole = len(content) // 8 * 8
    total = int(np.add.reduce(content[:whole].view(np.uint64), dtype=np.uint64))
    return (total + int.from_bytes(content[whole:].tobytes(), "little")) % (1 << 64)
