"""GGUF written: byte for byte what the gguf package writes, read back by our reader, all or nothing."""

import numpy as np
import pytest

from fastmixer.weights.gguf import GGUFFile
from fastmixer.weights.gguf_writer import TensorToWrite, write_gguf
from fastmixer.weights.quantized import BY_NAME, NUMBERS, WRITABLE, dequantize, quantize

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.add_bos_token": True,
    "a.negative": np.int32(-7),
    "a.large": np.uint64(2**63 + 1),
    "a.double": np.float64(0.1),
    "tokenizer.ggml.tokens": ["<s>", "é", ""],
    "tokenizer.ggml.token_type": np.array([3, 1, 1], np.int32),
    "tokenizer.ggml.scores": np.array([0.5, -1e9], np.float32),
}


def to_write(values, name):
    rows = values.reshape(-1, values.shape[-1])
    return TensorToWrite(BY_NAME[name], values.shape, lambda: quantize(rows, BY_NAME[name]))


@pytest.fixture
def weights(rng):
    shapes = {"a": (3, 64), "b": (33,), "c": (5, 32), "d": (2, 3, 64)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


TYPES = {"a": "Q4_0", "b": "F32", "c": "Q8_0", "d": "BF16"}


def test_the_same_bytes_as_the_gguf_package(tmp_path, weights):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int32("a.negative", -7)
    writer.add_uint64("a.large", 2**63 + 1)
    writer.add_float64("a.double", 0.1)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "é", ""])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1e9])
    for name, values in weights.items():
        kind = gguf.GGMLQuantizationType(NUMBERS[TYPES[name]])
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    done = []
    write_gguf(tmp_path / "ours.gguf", METADATA, {n: to_write(v, TYPES[n]) for n, v in weights.items()}, done.append)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert len(done) == 4 and sum(done) == sum(GGUFFile(tmp_path / "ours.gguf").raw(name).nbytes for name in weights)


@pytest.mark.parametrize("name", WRITABLE)
def test_our_reader_reads_it_back(tmp_path, weights, name):
    values = {key: value for key, value in weights.items() if value.shape[-1] % BY_NAME[name].block == 0}
    path = write_gguf(tmp_path / "m.gguf", METADATA, {key: to_write(v, name) for key, v in values.items()})
    found = GGUFFile(path)
    assert list(found) == list(values) and list(found.metadata) == list(METADATA)
    for key, value in METADATA.items():
        np.testing.assert_array_equal(found.metadata[key], value)
    for key, value in values.items():
        assert found[key].shape == value.shape and found.tensors[key].type.name == name
        rows = value.reshape(-1, value.shape[-1])
        exact = dequantize(quantize(rows, BY_NAME[name]), BY_NAME[name]).reshape(value.shape)
        np.testing.assert_array_equal(found[key], exact)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"a": -1}, "a must be a uint32; got -1"),
        ({"a": 2**32}, "a must be a uint32; got 4294967296"),
        ({"a": None}, "a must be text, a number, or a list of these; got NoneType"),
        ({"a": ["x", 1]}, "a must be text, a number, or a list of these; got list"),
        ({"a": np.zeros((2, 2), np.float32)}, "a must be text, a number, or a list of these; got ndarray"),
        ({"a" * 2000: 1}, "a name must have 1 to 1024 bytes; got 2000"),
        ({"": 1}, "a name must have 1 to 1024 bytes; got 0"),
    ],
)
def test_fields_that_cannot_be_written(tmp_path, metadata, text):
    with pytest.raises(ValueError, match=rf"m\.gguf: {text}$"):
        write_gguf(tmp_path / "m.gguf", metadata, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(), (0, 32), (3, 33), (1, 1, 1, 1, 32)])
def test_shapes_that_cannot_be_written(tmp_path, shape):
    with pytest.raises(ValueError, match=r"m\.gguf: w must have 1 to 4 positive dimensions, the last a multiple of 32 for Q8_0"):
        write_gguf(tmp_path / "m.gguf", {}, {"w": TensorToWrite(BY_NAME["Q8_0"], shape, lambda: np.zeros(0, np.uint8))})
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_stood_there(tmp_path, weights):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, {"a": to_write(weights["a"], "F32")})
    before = path.read_bytes()

    def fail():
        raise OSError("no space left on device")

    broken = TensorToWrite(BY_NAME["F32"], (3, 64), fail)
    wrong = TensorToWrite(BY_NAME["F32"], (3, 64), lambda: np.zeros((3, 8), np.uint8))
    for tensor, error, text in ((broken, OSError, "no space left"), (wrong, ValueError, r"b of F32 \(3, 64\) takes 768 bytes; got uint8 \(3, 8\)")):
        with pytest.raises(error, match=text):
            write_gguf(path, METADATA, {"a": to_write(weights["a"], "F16"), "b": tensor})
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
