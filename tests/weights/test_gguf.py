"""GGUF: what the gguf package writes is read; a crafted or damaged file is a ValueError that names file, field and value,
quickly and without growing."""

import re
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmixer.train.memory import peak_memory
from fastmixer.weights.gguf import GGUFFile

HUGE = 2**63


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def tensor(name="w", lengths=(32, 2), kind=0, offset=0, dimensions=None):
    shape = b"".join(struct.pack("<Q", length) for length in lengths)
    dimensions = len(lengths) if dimensions is None else dimensions
    return string(name) + struct.pack("<I", dimensions) + shape + struct.pack("<IQ", kind, offset)


def file(fields=(), tensors=(), data=b"\0" * 256, version=3, counts=None, magic=b"GGUF"):
    tensor_count, field_count = counts or (len(tensors), len(fields))
    header = magic + struct.pack("<IQQ", version, tensor_count, field_count) + b"".join(fields) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


GOOD = file(
    [
        field("general.architecture", 8, string("llama")), field("llama.block_count", 4, struct.pack("<I", 2)),
        field("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("é")),
        field("scores", 9, struct.pack("<IQ", 6, 2) + struct.pack("<2f", 1.5, -2)), field("flag", 7, b"\1"),
        field("large", 10, struct.pack("<Q", 2**64 - 1)), field("empty", 9, struct.pack("<IQ", 8, 0)),
    ],
    [tensor("first", (32, 2)), tensor("second", (32,), kind=8, offset=256)],
    np.arange(64, dtype=np.float32).tobytes() + np.float16(2).tobytes() + np.arange(32, dtype=np.int8).tobytes(),
)  # fmt: skip


def read(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return GGUFFile(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_file(tmp_path, version):
    found = read(tmp_path, GOOD[:4] + struct.pack("<I", version) + GOOD[8:])
    assert found.version == version and list(found) == ["first", "second"] and len(found) == 2
    assert found.metadata["general.architecture"] == "llama" and found.metadata["llama.block_count"] == 2
    assert found.metadata["tokenizer.ggml.tokens"] == ["a", "é"] and found.metadata["empty"] == []
    assert found.metadata["flag"] is True and found.metadata["large"] == 2**64 - 1
    np.testing.assert_array_equal(found.metadata["scores"], [1.5, -2])
    np.testing.assert_array_equal(found["first"], np.arange(64).reshape(2, 32))
    np.testing.assert_array_equal(found["second"], 2 * np.arange(32))
    assert found.raw("second").shape == (1, 34) and not found.raw("second").flags.writeable
    with pytest.raises(KeyError, match="has no tensor 'third'"):
        found["third"]


@pytest.mark.parametrize("strings", [["a", "", "é", "ü" * 300, " "], ["a\0b", "c"], ["\0"], ["", ""], []], ids=repr)
def test_arrays_of_strings(tmp_path, strings):
    """Each of the length that it says: empty ones and zeros within are as good as any."""
    values = b"".join(map(string, strings))
    found = read(tmp_path, file([field("a", 9, struct.pack("<IQ", 8, len(strings)) + values), field("b", 8, string("after"))]))
    assert found.metadata == {"a": strings, "b": "after"}


def test_what_the_gguf_package_writes(tmp_path, rng):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.context_length", 2048)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "b", "ü"])
    weights = {"a": rng.standard_normal((3, 64)).astype(np.float32), "b": rng.standard_normal((2, 3, 32)).astype(np.float16)}
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    quantized = gguf.quants.quantize(weights["a"], gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("c", quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GGUFFile(path)
    assert found.metadata["llama.context_length"] == 2048 and found.metadata["tokenizer.ggml.tokens"][2] == "ü"
    for name, weight in weights.items():
        np.testing.assert_array_equal(found[name], weight.astype(np.float32))
    np.testing.assert_allclose(found["c"], gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType.Q4_0))


# Sizes, counts and offsets as the GGUF parsers of others once trusted them, named by the CVE where there is one (those of
# vocabularies are in tests/text/test_gguf_tokenizer.py, those of chat templates in test_chat.py), and plain damage.
BAD = {
    "no magic": (file(magic=b"GGML"), "magic must be b'GGUF'; got b'GGML'"),
    "a pickle": (b"\x80\x04\x95" + b"\0" * 60, "magic must be b'GGUF'; got b'\\x80\\x04\\x95\\x00'"),
    "version 1": (file(version=1), "version must be 2 or 3; got 1"),
    "version 4": (file(version=4), "version must be 2 or 3; got 4"),
    "big-endian": (file(version=3 << 24), "version must be 2 or 3; got 50331648 (a big-endian file)"),
    "tensor count": (file(counts=(HUGE, 0)), f"tensor count is {HUGE}: more than the file's 288 bytes can hold"),
    "CVE-2024-21836: tensor count wraps": (file(counts=(2**61 + 1, 0)), "tensor count is 2305843009213693953: more than"),
    "field count": (file(counts=(0, HUGE)), f"field count is {HUGE}: more than the file's"),
    "CVE-2024-23605: field count of all ones": (file(counts=(0, 2**64 - 1)), "field count is 18446744073709551615: more than"),
    "CVE-2024-23496: string length plus one wraps to 0": (file([struct.pack("<Q", 2**64 - 1) + b"x" * 40]), "name of field 0 must have at most 1024 bytes; got 18446744073709551615"),
    "key length plus one wraps": (file([struct.pack("<Q", 1025) + b"x" * 2000]), "name of field 0 must have at most 1024 bytes; got 1025"),
    "key not UTF-8": (file([field(b"a\xff", 7, b"\1")]), "name of field 0 is not UTF-8: byte 1 is 0xff"),
    "key twice": (file([field("a", 7, b"\1"), field("a", 7, b"\1")]), "a stands twice among the fields"),
    "value type": (file([field("a", 13, b"\1" * 8)]), "a has value type 13; known are 0 to 12"),
    "value type huge": (file([field("a", 2**32 - 1, b"\1" * 8)]), "a has value type 4294967295; known are 0 to 12"),
    "bool of 2": (file([field("a", 7, b"\2")]), "a must be a bool, 0 or 1; got 2"),
    "string length": (file([field("a", 8, struct.pack("<Q", HUGE))]), f"a needs {HUGE} bytes at byte "),
    "string past the end": (file([field("a", 8, struct.pack("<Q", 1000))]), "a needs 1000 bytes at byte "),
    "string not UTF-8": (file([field("a", 8, string(b"\xc3("))]), "a is not UTF-8: byte 0 is 0xc3"),
    "array length": (file([field("a", 9, struct.pack("<IQ", 4, HUGE))]), f"length of a is {HUGE}: more than the file's"),
    "array bytes wrap": (file([field("a", 9, struct.pack("<IQ", 10, 2**61 + 1))]), "length of a is 2305843009213693953: more than"),
    "CVE-2024-21825: bytes of an array of strings wrap": (file([field("a", 9, struct.pack("<IQ", 8, 2**60))]), "length of a is 1152921504606846976: more than"),
    "array past the end": (file([field("a", 9, struct.pack("<IQ", 0, 1000))]), "length of a is 1000: more than the file's"),
    "string of an array past the end": (file([field("a", 9, struct.pack("<IQ", 8, 2) + string("b") + struct.pack("<Q", 5000))]), "a[1] needs 5000 bytes at byte "),
    "string of an array not UTF-8": (file([field("a", 9, struct.pack("<IQ", 8, 1) + string(b"\x80"))]), "a[0] is not UTF-8: byte 0 is 0x80"),
    "character cut by a string's end": (
        file([field("a", 9, struct.pack("<IQ", 8, 3) + string("b") + string(b"\xc3") + string(b"\xa9"))]), "a[1] is not UTF-8: byte 0 is 0xc3",
    ),
    "no value": (file([field("a" * 28, 4, b"")], data=b"")[:-1], "type of " + "a" * 28 + " needs 4 bytes at byte "),
    "array of arrays": (file([field("a", 9, struct.pack("<IQ", 9, 1) * 9)]), "a is an array of value type 9; arrays of numbers, bools and strings are known"),
    "array of unknown": (file([field("a", 9, struct.pack("<IQ", 99, 1))]), "a is an array of value type 99;"),
    "alignment 0": (file([field("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment must be a power of two up to 65536; got 0"),
    "alignment 24": (file([field("general.alignment", 4, struct.pack("<I", 24))]), "general.alignment must be a power of two up to 65536; got 24"),
    "alignment huge": (file([field("general.alignment", 10, struct.pack("<Q", HUGE))]), f"general.alignment must be a power of two up to 65536; got {HUGE}"),
    "alignment a string": (file([field("general.alignment", 8, string("32"))]), "general.alignment must be a power of two up to 65536; got '32'"),
    "alignment a float": (file([field("general.alignment", 6, struct.pack("<f", 32))]), "general.alignment must be a power of two up to 65536; got 32.0"),
    "offset not of the file's alignment": (file([field("general.alignment", 4, struct.pack("<I", 64))], [tensor(lengths=(1,), offset=32)]), "w has an offset that is no multiple of 64; got 32"),
    "alignment negative": (file([field("general.alignment", 5, struct.pack("<i", -32))]), "general.alignment must be a power of two up to 65536; got -32"),
    "no dimensions": (file(tensors=[tensor(lengths=())]), "w must have 1 to 4 dimensions; got 0"),
    "five dimensions": (file(tensors=[tensor(lengths=(1,) * 5)]), "w must have 1 to 4 dimensions; got 5"),
    "CVE-2024-21802: more dimensions than there is room for": (file(tensors=[tensor(dimensions=2**32 - 1)]), "w must have 1 to 4 dimensions; got 4294967295"),
    "length 0": (file(tensors=[tensor(lengths=(32, 0))]), "w must have a shape of positive numbers; got [32, 0]"),
    "length huge": (file(tensors=[tensor(lengths=(HUGE,))]), f"w of shape [{HUGE}] needs {4 * HUGE} bytes; the file has "),
    "product wraps to 0": (file(tensors=[tensor(lengths=(2**32, 2**32))]), "w of shape [4294967296, 4294967296] needs 73786976294838206464 bytes"),
    "CVE-2025-53630: sizes wrap when they are added up": (file(tensors=[tensor("a", (2**60, 2)), tensor("b", (2**60, 2), offset=32)]), f"a of shape [2, {2**60}] needs {2**63} bytes; the file has "),
    "CVE-2026-27940: tensor count times more than its description wraps": (file(counts=(2**64 // 368 + 1, 0)), f"tensor count is {2**64 // 368 + 1}: more than the file's"),
    "CVE-2024-32878: fewer fields than their count": (file([field("a" * 27, 7, b"\1")], counts=(0, 4), data=b"\xff" * 60), "name of field 1 must have at most 1024 bytes; got 18446744073709551615"),
    "CVE-2026-33298: elements wrap to few": (file(tensors=[tensor(lengths=(2**33 + 32, 2**31, 2**31, 2**31))]), "w of shape "),
    "tensor type": (file(tensors=[tensor(kind=99)]), "w has tensor type 99; known are F32, F16, Q4_0"),
    "type removed from the format": (file(tensors=[tensor(kind=4)]), "w has tensor type 4; known are"),
    "type negative": (file(tensors=[tensor(kind=2**32 - 1)]), "w has tensor type 4294967295; known are"),
    "row of half a block": (file(tensors=[tensor(lengths=(48,), kind=2)]), "w of Q4_0 must have rows of a multiple of 32; got 48"),
    "row of half a super block": (file(tensors=[tensor(lengths=(32, 8), kind=12)]), "w of Q4_K must have rows of a multiple of 256; got 32"),
    "offset past the end": (file(tensors=[tensor(offset=320)]), "w needs bytes "),
    "offset huge": (file(tensors=[tensor(offset=2**64 - 32)]), "w needs bytes 18446744073709551"),
    "offset not aligned": (file(tensors=[tensor(lengths=(1,), offset=4)]), "w has an offset that is no multiple of 32; got 4"),
    "one byte missing": (file(tensors=[tensor()])[:-1], "w needs bytes 96 to 352; the file has 351"),
    "no data": (file(tensors=[tensor()], data=b""), "w of shape [2, 32] needs 256 bytes; the file has "),
    "overlap": (file(tensors=[tensor("a", (32,)), tensor("b", (32,), offset=96)]), "b lies over a: both take byte "),
    "the same place": (file(tensors=[tensor("a", (32,)), tensor("b", (32,))]), "b lies over a: both take byte "),
    "name twice": (file(tensors=[tensor("a", (8,)), tensor("a", (8,), offset=32)]), "a stands twice among the tensors"),
    "CVE-2024-41130: a tensor whose name cannot be read": (file(tensors=[struct.pack("<Q", HUGE) + b"x" * 64]), f"name of tensor 0 must have at most 1024 bytes; got {HUGE}"),
    "tensor name not UTF-8": (file(tensors=[tensor(b"\xfe")]), "name of tensor 0 is not UTF-8: byte 0 is 0xfe"),
    "the 43-byte file": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**64 - 24) + b"x" * 11, "name of field 0 must have at most 1024 bytes"),
    "array of strings to the end": (file([field("a", 9, struct.pack("<IQ", 8, 30) + b"\xff" * 250)]), "a[0] needs 18446744073709551615 bytes"),
}  # fmt: skip


def test_the_corpus_has_every_known_kind():
    assert len(BAD) >= 60
    cves = "2024-21802 2024-21825 2024-21836 2024-23496 2024-23605 2024-32878 2024-41130 2025-53630 2026-27940 2026-33298"
    for cve in cves.split():
        assert any(name.startswith(f"CVE-{cve}: ") for name in BAD), cve


@pytest.mark.parametrize("name", BAD)
def test_crafted(tmp_path, name):
    content, text = BAD[name]
    before, start = peak_memory(), time.perf_counter()
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'm.gguf'))}: {re.escape(text)}"):
        read(tmp_path, content)
    assert time.perf_counter() - start < 1 and peak_memory() - before < 64 << 20


def test_empty_and_absent(tmp_path):
    with pytest.raises(ValueError, match=r"m\.gguf is empty, not a GGUF file$"):
        read(tmp_path, b"")
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf is not a file$"):
        GGUFFile(tmp_path / "absent.gguf")


def test_cut_at_every_byte(tmp_path):
    """Wherever the file ends early, it is a ValueError."""
    for length in range(1, len(GOOD)):
        with pytest.raises(ValueError, match=r"m\.gguf: "):
            read(tmp_path, GOOD[:length])


def read_or_refused(path, content):
    """A fuzz target: whatever the bytes, the file is read or refused by a ValueError that names it."""
    path.write_bytes(content)
    try:
        found = GGUFFile(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    for name in found:
        assert found[name].size > 0 and found.raw(name).size > 0


def test_any_byte_changed_is_read_or_refused(tmp_path, rng):
    header = GOOD.index(np.arange(64, dtype=np.float32).tobytes())
    for _ in range(700):
        content = bytearray(GOOD)
        for at in rng.integers(4, header, rng.integers(1, 4)):
            content[at] = rng.integers(0, 256)
        read_or_refused(tmp_path / "m.gguf", bytes(content))


# Numbers that once were trusted, among plain ones; HYPOTHESIS_PROFILE=fresh goes looking further.
NUMBERS = st.sampled_from([0, 1, 2, 31, 32, 255, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
LONGS = NUMBERS | st.sampled_from([2**32, 2**60, 2**61 + 1, HUGE, 2**64 - 32, 2**64 - 1])
STRINGS = st.binary(max_size=40).map(string) | LONGS.map(lambda length: struct.pack("<Q", length))
VALUES = st.binary(max_size=24) | STRINGS
ARRAYS = st.builds(
    lambda kind, count, rest: struct.pack("<IQ", kind, count) + rest, st.integers(0, 13), LONGS, st.binary(max_size=40)
)
FIELDS = st.builds(lambda name, kind, value: name + struct.pack("<I", kind) + value, STRINGS, st.integers(0, 14), VALUES | ARRAYS)
TENSORS = st.builds(
    lambda name, dimensions, lengths, kind, offset: name
    + struct.pack(f"<I{len(lengths)}QIQ", len(lengths) if dimensions is None else dimensions, *lengths, kind, offset),
    STRINGS, st.none() | NUMBERS, st.lists(LONGS, max_size=5), st.integers(0, 40) | NUMBERS, LONGS,
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.lists(FIELDS, max_size=3), tensors=st.lists(TENSORS, max_size=3), data=st.binary(max_size=300),
    counts=st.none() | st.tuples(LONGS, LONGS), version=st.sampled_from([2, 3]),
)  # fmt: skip
def test_files_made_of_anything_are_read_or_refused(tmp_path, fields, tensors, data, counts, version):
    start = time.perf_counter()
    read_or_refused(tmp_path / "m.gguf", file(fields, tensors, data, version, counts))
    assert time.perf_counter() - start < 1
