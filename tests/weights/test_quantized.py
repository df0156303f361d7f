"""Every block format against its definition: random bytes against the gguf package, where that is installed, and blocks
made by hand always."""

import numpy as np
import pytest

from fastmixer.weights.quantized import BY_NAME, IQ4_VALUES, NUMBERS, TYPES, WRITABLE, dequantize, quantize

QUANTIZED = [number for number, kind in TYPES.items() if kind.block > 1]


def random_blocks(kind, rng, rows=7, blocks=3):
    """uint8 [rows, bytes]: random numbers and scales; float16 scales are finite."""
    raw = rng.integers(0, 256, (rows, blocks, kind.bytes), dtype=np.uint8)
    halves = {
        "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
        "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
    }[kind.name]  # fmt: skip
    for at in halves:
        raw[..., at : at + 2] = rng.standard_normal((rows, blocks)).astype("<f2")[..., None].view(np.uint8)
    return raw.reshape(rows, blocks * kind.bytes)


@pytest.mark.parametrize("number", QUANTIZED, ids=lambda number: TYPES[number].name)
def test_random_blocks_against_gguf(number, rng):
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(TYPES[number], rng)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number))
    found = dequantize(raw, TYPES[number])
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", TYPES, ids=lambda number: TYPES[number].name)
def test_sizes_are_those_of_gguf(number):
    gguf = pytest.importorskip("gguf")
    kind = TYPES[number]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.block, kind.bytes)
    assert gguf.GGMLQuantizationType(number).name == kind.name


def half(value):
    return np.float16(value).tobytes()


NIBBLES = bytes(range(16))  # low halves 0..15, high halves 0
LAST = bytes(15 * 16 + i for i in range(16))  # low halves 0..15, high halves 15


@pytest.mark.parametrize(
    ("number", "block", "expected"),
    [
        (2, half(0.5) + LAST, [0.5 * (i - 8) for i in range(16)] + [3.5] * 16),
        (3, half(0.5) + half(10) + NIBBLES, [0.5 * i + 10 for i in range(16)] + [10] * 16),
        (6, half(2) + (1 << 3 | 1 << 20).to_bytes(4, "little") + NIBBLES, [2 * (i + 16 * (i == 3) - 16) for i in range(16)] + [2 * (16 * (i == 4) - 16) for i in range(16)]),
        (7, half(2) + half(1) + (1 << 31).to_bytes(4, "little") + NIBBLES, [2 * i + 1 for i in range(16)] + [1] * 15 + [33]),
        (8, half(0.25) + np.arange(-16, 16, dtype=np.int8).tobytes(), [0.25 * i for i in range(-16, 16)]),
        (20, half(1) + NIBBLES, [*IQ4_VALUES, *[-127] * 16]),
        (30, np.array([0x3F80], "<u2").tobytes(), [1.0]),
        (1, half(-2.5), [-2.5]),
        (0, np.float32(1e-30).tobytes(), [1e-30]),
    ],
    ids=lambda value: TYPES[value].name if isinstance(value, int) else "",
)  # fmt: skip
def test_blocks_by_hand(number, block, expected):
    found = dequantize(np.frombuffer(block, np.uint8)[None], TYPES[number])
    np.testing.assert_allclose(found[0], np.array(expected, np.float32), rtol=1e-6)


def test_super_blocks_by_hand():
    """Q6_K with all scales 1: number 0 is at its least, number 255 at its most."""
    block = bytearray(210)
    block[127] = 0xF0  # the last numbers' low bits: 15 in the last quarter's last
    block[128 + 63] = 0xC0  # and its high bits: 3
    block[192:208] = bytes([1] * 16)
    block[208:] = half(1)
    values = dequantize(np.frombuffer(bytes(block), np.uint8)[None], TYPES[14])[0]
    assert values[255] == 31 and values[254] == -32 and values[0] == -32


def awkward_rows(rng):
    """Rows of 64: ordinary, ties, zeros, one number, the largest twice with both signs, tiny, large."""
    rows = rng.standard_normal((40, 64)).astype(np.float32)
    rows[1] = 0
    rows[2, :32] = np.arange(32) - 16
    rows[3, :32] = np.repeat([127, 63.5, -63.5, 0.5], 8)
    rows[4, 1:] = 0
    rows[5, ::2], rows[5, 1::2] = 3, -3
    rows[6] *= 1e-30
    rows[7] *= 6e4
    rows[8] *= 1e-7  # scales below float16's normal numbers
    return rows


@pytest.mark.parametrize("name", WRITABLE)
def test_written_as_gguf_writes(name, rng):
    gguf = pytest.importorskip("gguf")
    rows = awkward_rows(rng) / (2 if name == "F16" else 1)
    rows[7] /= 4 if name == "F16" else 1
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType(NUMBERS[name]))
    found = quantize(rows, BY_NAME[name])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected.view(np.uint8))


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_is_near(name, rng):
    rows = rng.standard_normal((5, 96)).astype(np.float32)
    step = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 7}[name]
    found = dequantize(quantize(rows, BY_NAME[name]), BY_NAME[name])
    largest = np.abs(rows.reshape(5, 3, 32)).max(axis=2).repeat(32, axis=1)
    assert (np.abs(found - rows) <= step * largest).all()
    again = quantize(found, BY_NAME[name])
    if name != "Q4_0":  # whose scale turns its sign where 7 and not -8 is the largest
        np.testing.assert_array_equal(dequantize(again, BY_NAME[name]), found)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_numbers_below_every_scale_become_nothing(name):
    rows = np.full((1, 32), 1e-39, np.float32)
    np.testing.assert_array_equal(dequantize(quantize(rows, BY_NAME[name]), BY_NAME[name]), 0)


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        ("Q4_K", [0.0] * 256, r"quantize: type must be one of F32, F16, BF16, Q8_0, Q4_0; got Q4_K"),
        ("Q8_0", [0.0] * 48, r"quantize: Q8_0 needs rows of a multiple of 32 numbers; got 48"),
        ("Q4_0", [np.nan] * 32, r"quantize: values for Q4_0 must be finite; got nan or infinity"),
        ("Q8_0", [np.inf] * 32, r"quantize: values for Q8_0 must be finite; got nan or infinity"),
        ("F16", [7e4], r"quantize: F16 holds numbers up to 65504; got 70000"),
        ("Q8_0", [1e9] * 32, r"quantize: Q8_0's scale holds numbers up to 65504; got 7.87402e\+06"),
    ],
)
def test_what_cannot_be_written(name, row, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        quantize(np.array([row], np.float32), BY_NAME[name])


def test_nan_and_infinity_in_plain_numbers():
    row = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    for name in ("F32", "F16", "BF16"):
        np.testing.assert_array_equal(dequantize(quantize(row, BY_NAME[name]), BY_NAME[name]), row)
