"""safetensors files: read as the safetensors library reads them, and refused where anything is out of bounds."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastmixer.weights.safetensors_file import MAX_HEADER, SafetensorsFile

TINY = Path(__file__).parents[1] / "model" / "tiny"


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "path", sorted(TINY.glob("*/*.safetensors")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_tensors_are_those_of_the_library(path):
    from safetensors import safe_open

    file = SafetensorsFile(path)
    with safe_open(str(path), "np") as theirs:
        assert set(file) == set(theirs.keys()) and file.metadata == theirs.metadata()
        for name in file:
            assert list(file[name].shape) == theirs.get_slice(name).get_shape()
            if file[name].type.name != "BF16":  # NumPy has no such type
                assert (file[name].values() == theirs.get_tensor(name).astype(np.float32)).all()


def test_values_of_every_kind(tmp_path):
    halves = np.arange(4, dtype=np.float32)
    data = (
        halves.tobytes() + halves.astype(np.float16).tobytes() + (halves.view(np.uint32) >> 16).astype("<u2").tobytes()
    )
    header = {
        "a": entry("F32", (4,), (0, 16)), "b": entry("F16", (2, 2), (16, 24)), "c": entry("BF16", (4, 1), (24, 32)),
        "none": entry("F32", (0, 3), (32, 32)),
    }  # fmt: skip
    file = SafetensorsFile(write(tmp_path / "m.safetensors", header, data))
    assert [file[name].shape for name in "abc"] == [(4,), (2, 2), (4, 1)] and file["none"].values().shape == (0, 3)
    assert all((file[name].values().ravel() == halves).all() for name in "abc")
    assert not file["a"].raw.flags.owndata


def test_truncations_at_every_byte_are_refused(tmp_path):
    whole = write(tmp_path / "whole.safetensors", {"a": entry(), "__metadata__": {"format": "pt"}}).read_bytes()
    SafetensorsFile(tmp_path / "whole.safetensors")
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)):
            SafetensorsFile(path)


def test_truncations_of_a_model_are_refused(tmp_path):
    whole, path = (TINY / "llama" / "model.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    length = 8 + int.from_bytes(whole[:8], "little")
    for size in [*range(0, length, 7), length, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)):
            SafetensorsFile(path)


BAD = {
    "overlap": ({"a": entry(), "b": entry(offsets=(8, 24))}, 24, "tensor b: data_offsets .* overlap tensor a"),
    "the same place": ({"a": entry(), "b": entry()}, 16, "tensor b: data_offsets .* overlap tensor a"),
    "hole": ({"a": entry(offsets=(4, 20))}, 20, "leave 4 unnamed bytes after the header"),
    "bytes beyond": ({"a": entry()}, 20, "4 bytes follow tensor a, which no tensor names"),
    "offset beyond": ({"a": entry(offsets=(16, 32))}, 16, "within the 16 bytes .*got \\[16, 32\\]"),
    "offsets backwards": ({"a": entry(offsets=(16, 0))}, 16, "in order.*got \\[16, 0\\]"),
    "negative offset": ({"a": entry(offsets=(-16, 0))}, 16, "two integers >= 0; got \\[-16, 0\\]"),
    "huge offset": ({"a": entry(offsets=(0, 1 << 64))}, 16, "two integers >= 0; got"),
    "three offsets": ({"a": entry(offsets=(0, 8, 16))}, 16, "two integers >= 0; got"),
    "float offset": ({"a": entry(offsets=(0, 16.0))}, 16, "two integers >= 0; got"),
    "negative size": ({"a": entry(shape=(-2, -2))}, 16, "integers >= 0; got \\[-2, -2\\]"),
    "bool size": ({"a": entry(shape=(True, 4))}, 16, "integers >= 0; got \\[True, 4\\]"),
    "float size": ({"a": entry(shape=(2.0, 2))}, 16, "integers >= 0; got"),
    "product that wraps": ({"a": entry(shape=(1 << 32, 1 << 32, 4))}, 16, "must span 2951\\d+ bytes"),
    "too many axes": ({"a": entry(shape=[1] * 9)}, 16, "at most 8 integers"),
    "wrong size": ({"a": entry(shape=(2, 3))}, 16, "must span 24 bytes, as F32 \\[2, 3\\] takes; got 16"),
    "unknown dtype": ({"a": entry("Q4_0")}, 16, "dtype must be one of .*; got 'Q4_0'"),
    "dtype no text": ({"a": entry(None)}, 16, "dtype must be one of .*; got None"),
    "dtype a list": ({"a": entry([])}, 16, "dtype must be one of .*; got \\[\\]"),
    "field missing": ({"a": {"dtype": "F32", "shape": [4]}}, 16, "must have dtype, shape and data_offsets"),
    "field unknown": ({"a": {**entry(), "x": 1}}, 16, "must have dtype, shape and data_offsets"),
    "no object": ({"a": 3}, 16, "must have dtype, shape and data_offsets; got 3"),
    "metadata no strings": ({"a": entry(), "__metadata__": {"n": 1}}, 16, "__metadata__ must be an object of strings"),
    "metadata a list": ({"a": entry(), "__metadata__": []}, 16, "__metadata__ must be an object of strings"),
    "long name": ({"a" * 2000: entry()}, 16, "at most 1024 characters; got 2000"),
    "duplicate": (b'{"a":{},"a":{}}', 16, "the header is not JSON: 'a' stands there twice"),
    "NaN": (b'{"a": NaN}', 16, "the header is not JSON: NaN is no JSON number"),
    "infinity": (b'{"a": {"shape": [-Infinity]}}', 16, "-Infinity is no JSON number"),
    "a list": (b'[1, 2]', 16, "the header must begin with '{'; got b'\\['"),
    "no JSON": (b'{"a": }', 16, "the header is not JSON"),
    "no UTF-8": (b'{"\xff": 1}', 16, "the header is not JSON"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", 16, "the header is not JSON"),
    "nested": (b'{"a":' * 90_000, 16, "the header is (nested too deeply|not JSON)"),
    "brackets": (b'{"a":' + b"[" * 300_000, 16, "more than 600000 items or 200000 brackets"),
    "items": (b'{"a":[' + b"1," * 700_000 + b"1]}", 16, "more than 600000 items"),
    "empty": (b"", 16, "length must be from 2 to"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named(tmp_path, kind):
    header, size, message = BAD[kind]
    path = write(tmp_path / "bad.safetensors", header, b"\0" * size)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        SafetensorsFile(path)
    assert time.perf_counter() - began < 1 and tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, MAX_HEADER + 1, 10_000, 0, 1])
def test_header_lengths_out_of_bounds_are_refused(tmp_path, length):
    path = write(tmp_path / "bad.safetensors", {"a": entry()}, length=length)
    with pytest.raises(ValueError, match=f"the header's length must be .*; got {length}$"):
        SafetensorsFile(path)


@pytest.mark.parametrize("dtype", ["F64", "I64", "C64"])
def test_other_numbers_are_no_weights(tmp_path, dtype):
    file = SafetensorsFile(write(tmp_path / "m.safetensors", {"a": entry(dtype, (2,), (0, 16))}))
    with pytest.raises(ValueError, match=f"tensor a must be one of F32, F16, BF16; got {dtype}"):
        file["a"]


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(tmp_path):
    text = json.dumps({"a": entry()}).encode()
    path = write(tmp_path / "m.safetensors", text + b" " * (0x280 - len(text)))
    assert path.read_bytes()[:2] == b"\x80\x02" and list(SafetensorsFile(path)) == ["a"]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(ValueError, match="is 0 bytes, no safetensors file"):
        SafetensorsFile(tmp_path / "empty.safetensors")
