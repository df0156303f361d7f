"""Every block format against its definition: random bytes against the gguf package, where that is installed, and blocks
made by hand always."""

import numpy as np
import pytest

from fastmixer.weights.quantized import IQ4_VALUES, TYPES, dequantize

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
