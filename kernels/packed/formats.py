"""The block formats of quantized weights, and their values in float32: the NumPy truth of every faster path. The simplest
of them are written too, byte for byte as ggml's reference does.

A row is a whole number of blocks; a block holds its scales beside its numbers. Source of the layouts: ggml's ggml-quants.
Knows nothing of files or tensors' names.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SUPER = 256  # numbers in a block of the K formats
# IQ4_NL: what the 16 values of four bits stand for, denser around zero.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@dataclass(frozen=True)
class BlockType:
    """A format: `block` numbers in `bytes` bytes; values: uint8 [blocks, bytes] -> float32 [blocks, block]."""

    name: str
    block: int
    bytes: int
    values: Callable[[np.ndarray], np.ndarray]


def dequantize(raw: np.ndarray, kind: BlockType) -> np.ndarray:
    """float32 [rows, numbers a row] of raw: uint8 [rows, bytes a row], blocks of this format one after another."""
    rows, width = raw.shape
    blocks = raw.reshape(rows * (width // kind.bytes), kind.bytes)
    return kind.values(blocks).reshape(rows, width // kind.bytes * kind.block)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """float32 [blocks, 1]: the float16 at this byte of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """float32 [blocks, 2 n] of uint8 [blocks, n]: the low halves of all bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """float32 [blocks, 32]: 16 where the number's bit in the 32-bit word at this byte is set."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
    return bits.astype(np.float32) * 16


# ---- plain numbers ----


def _float32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _float16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bfloat16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


# ---- blocks of 32 with one scale ----


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 6:]) + _fifth_bits(blocks, 2) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) + _fifth_bits(blocks, 4)) + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    packed = blocks[:, 2:]
    return _half(blocks, 0) * IQ4_VALUES[np.concatenate([packed & 15, packed >> 4], axis=1)]


# ---- blocks of 256: groups of 16 or 32 with small scales of their own, under one scale ----


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    """scales[16], numbers[64] of two bits, scale, minimum's scale. Groups of 16 in the order of the numbers."""
    scales = blocks[:, :16]
    step = _half(blocks, 80) * (scales & 15)
    low = _half(blocks, 82) * (scales >> 4)
    # two halves of 128; in each, four shifts of the same 32 bytes
    packed = blocks[:, 16:80].reshape(-1, 2, 1, 32)
    numbers = (packed >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    numbers = numbers.reshape(-1, 16, 16).astype(np.float32)
    return (step[:, :, None] * numbers - low[:, :, None]).reshape(-1, SUPER)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    """third bits[32], numbers[64] of two bits, scales[12] of six bits, scale. A third bit that is not set takes 4 away."""
    packed_scales = blocks[:, 96:108]
    low = np.concatenate([packed_scales[:, :8] & 15, packed_scales[:, :8] >> 4], axis=1)
    high = (packed_scales[:, None, 8:12] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    scales = (low | high.reshape(-1, 16) << 4).astype(np.float32) - 32
    packed = blocks[:, 32:96].reshape(-1, 2, 1, 32)
    two_bits = ((packed >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3).reshape(-1, 8, 32)
    third = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    numbers = (two_bits.astype(np.float32) - 4 * (1 - third.astype(np.float32))).reshape(-1, 16, 16)
    return ((_half(blocks, 108) * scales)[:, :, None] * numbers).reshape(-1, SUPER)


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of six bits, float32 [blocks, 8] each, of Q4_K's and Q5_K's uint8 [blocks, 12]."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _groups_of_32(blocks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """float32 [blocks, 256] of numbers: float32 [blocks, 8, 32] under the scales of Q4_K and Q5_K."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    step, low = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (step[:, :, None] * numbers - low[:, :, None]).reshape(-1, SUPER)


def _low_and_high(packed: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 8, 32] of uint8 [blocks, 128]: of every 32 bytes the low halves, then the high ones."""
    quarters = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([quarters & 15, quarters >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """scale, minima's scale, scales[12], numbers[128] of four bits."""
    return _groups_of_32(blocks, _low_and_high(blocks[:, 16:144]).astype(np.float32))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    """scale, minima's scale, scales[12], fifth bits[32], numbers[128] of four bits."""
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _groups_of_32(blocks, (_low_and_high(blocks[:, 48:176]) | fifth << 4).astype(np.float32))


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """low bits[128] of four, high bits[64] of two, scales[16] int8, scale. Groups of 16 in the order of the numbers."""
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2)  # [blocks, half, quarter, 32]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    numbers = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return ((_half(blocks, 208) * scales)[:, :, None] * numbers).reshape(-1, SUPER)


# ---- the numbers of blocks, apart from their scales ----


def blocks_of_numbers(raw: np.ndarray, kind: BlockType) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(numbers int8 [rows, blocks, 32], scales float32 [rows, blocks], minima the same or None) of raw: uint8 [rows, bytes
    a row]: value = scale * number + minimum, as dequantize has it. For Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q8_0 and IQ4_NL."""
    blocks = raw.reshape(-1, kind.bytes)
    scales, minima = _half(blocks, 0), None
    if kind.name == "Q4_0":
        numbers, minima = _nibbles(blocks[:, 2:]), -8 * scales
    elif kind.name == "Q4_1":
        numbers, minima = _nibbles(blocks[:, 4:]), _half(blocks, 2)
    elif kind.name == "Q5_0":
        numbers = _nibbles(blocks[:, 6:]) + _fifth_bits(blocks, 2) - 16
    elif kind.name == "Q5_1":
        numbers, minima = _nibbles(blocks[:, 8:]) + _fifth_bits(blocks, 4), _half(blocks, 2)
    elif kind.name == "Q8_0":
        numbers = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    elif kind.name == "IQ4_NL":
        numbers = IQ4_VALUES[np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)]
    else:
        assert kind.name == "Q4_K", kind.name
        steps, low = _scales_and_minima(blocks[:, 4:16])
        scales, minima = scales * steps, -(_half(blocks, 2) * low)
        numbers = _low_and_high(blocks[:, 16:144])
    shape = (len(raw), -1)
    return (
        np.ascontiguousarray(numbers, np.int8).reshape(*shape, 32),
        scales.reshape(shape),
        None if minima is None else minima.reshape(shape),
    )


# ---- from float32 to blocks, as ggml's quantize_row_*_ref and the gguf package have it ----


def quantize(values: np.ndarray, kind: BlockType) -> np.ndarray:
    """uint8 [rows, bytes a row] of values: float32 [rows, numbers a row], rounded to this format.

    Raises ValueError for a format that is only read, a row that is no multiple of its block, and numbers that are not finite
    or too large for it.
    """
    if kind.name not in _WRITERS:
        raise ValueError(f"quantize: type must be one of {', '.join(_WRITERS)}; got {kind.name}")
    rows, columns = values.shape
    if columns % kind.block:
        raise ValueError(f"quantize: {kind.name} needs rows of a multiple of {kind.block} numbers; got {columns}")
    if kind.block > 1 and not np.isfinite(values).all():
        raise ValueError(f"quantize: values for {kind.name} must be finite; got nan or infinity")
    blocks = values.astype(np.float32, copy=False).reshape(rows * (columns // kind.block), kind.block)
    return _WRITERS[kind.name](blocks).reshape(rows, columns // kind.block * kind.bytes)


def _to_half(values: np.ndarray, name: str) -> np.ndarray:
    """float16 of float32; ValueError where a finite number has become an infinity."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if np.isinf(halves).any() and np.isinf(halves).sum() > np.isinf(values).sum():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise ValueError(f"quantize: {name} holds numbers up to 65504; got {largest:g}")
    return halves


def _inverse(scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _write_float32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks, "<f4").view(np.uint8)


def _write_float16(blocks: np.ndarray) -> np.ndarray:
    return _to_half(blocks, "F16").view(np.uint8)


def _write_bfloat16(blocks: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even; a nan stays one."""
    bits = np.ascontiguousarray(blocks, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype("<u2").view(np.uint8)


def _write_q8_0(blocks: np.ndarray) -> np.ndarray:
    """scale, numbers[32]: halves are rounded away from zero."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.nan_to_num(blocks * _inverse(scale), nan=0.0)
    size = np.abs(scaled)
    whole = np.floor(size)
    numbers = np.copysign(whole + np.floor(2 * (size - whole)), scaled).clip(-127, 127)
    return np.concatenate(
        [_to_half(scale, "Q8_0's scale").view(np.uint8), numbers.astype(np.int8).view(np.uint8)], axis=1
    )


def _write_q4_0(blocks: np.ndarray) -> np.ndarray:
    """scale, numbers[16] of four bits: the number that is largest in size becomes -8."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = np.nan_to_num(blocks * _inverse(scale), nan=0.0) + np.float32(8.5)
    numbers = np.trunc(shifted.clip(0, 15)).astype(np.uint8)
    halves = _to_half(scale, "Q4_0's scale").view(np.uint8)
    return np.concatenate([halves, numbers[:, :16] | numbers[:, 16:] << 4], axis=1)


_WRITERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": _write_float32, "F16": _write_float16, "BF16": _write_bfloat16, "Q8_0": _write_q8_0, "Q4_0": _write_q4_0,
}  # fmt: skip
WRITABLE = tuple(_WRITERS)

# By the number that GGUF gives them.
TYPES = {
    0: BlockType("F32", 1, 4, _float32), 1: BlockType("F16", 1, 2, _float16), 2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1), 6: BlockType("Q5_0", 32, 22, _q5_0), 7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0), 10: BlockType("Q2_K", SUPER, 84, _q2_k),
    11: BlockType("Q3_K", SUPER, 110, _q3_k), 12: BlockType("Q4_K", SUPER, 144, _q4_k),
    13: BlockType("Q5_K", SUPER, 176, _q5_k), 14: BlockType("Q6_K", SUPER, 210, _q6_k),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl), 30: BlockType("BF16", 1, 2, _bfloat16),
}  # fmt: skip
# By name, and the number of a name.
BY_NAME = {kind.name: kind for kind in TYPES.values()}
NUMBERS = {kind.name: number for number, kind in TYPES.items()}
