"""Packed weights in NumPy: the truth that jit.py and native.pyx are held to. Kind "float32" is the oracle of the others.

Kinds "int8" and "int4" keep blocks of 32 numbers: value = scale * number (+ minimum). Formats that are such blocks, or
come to the same, keep their values; all others are rounded. Rows of x are rounded to int8 as well, blocks of 32 by
their largest number (llama.cpp's Q8_0), so that a block's product is a sum of integers. "int8_channel" has one scale an
output, and one for every CHANNEL_GROUP numbers of x. Knows nothing of models.
"""

import numpy as np

from fastmixer.kernels.bfloat16 import round_bfloat16, round_bits
from fastmixer.kernels.packed import BLOCK, CHANNEL_GROUP, CHANNEL_KIND, PackedWeight
from fastmixer.kernels.packed.formats import BY_NAME, blocks_of_numbers, dequantize

# Formats whose blocks are kept as they are, by the kind that holds them.
EXACT = {
    "int4": ("Q4_0", "Q4_1", "Q4_K"),
    "int8": ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"),
}
LARGEST = np.float32(127)


def pack_weight(raw, type_name, outputs, inputs, kind):
    """The weight [outputs, inputs] whose blocks are raw: uint8 [outputs, bytes a row], as PackedWeight of this kind.

    "float32", "bfloat16" (and "..._panels"): {"rows"}; "int8", "int4": {"numbers": int8 [outputs, blocks, 32], "scales":
    float32 [outputs, blocks]} and "minima", where there are any. Columns past the last are zeros. "int8_channel":
    {"numbers": int8 [outputs, inputs], "scales": float32 [outputs]}.
    """
    if kind in EXACT and type_name in EXACT[kind]:
        numbers, scales, minima = blocks_of_numbers(raw, BY_NAME[type_name])
    else:
        values = dequantize(raw, BY_NAME[type_name])
        if kind in ("float32", "float32_panels"):
            return PackedWeight(kind, outputs, inputs, {"rows": values})
        if kind in ("bfloat16", "bfloat16_panels"):
            return PackedWeight(kind, outputs, inputs, {"rows": round_bits(values)})
        if kind == CHANNEL_KIND:
            numbers, scales = round_channel(values)
            return PackedWeight(kind, outputs, inputs, {"numbers": numbers.astype(np.int8), "scales": scales})
        numbers, scales, minima = _round_weight(values, kind)
    arrays = {"numbers": numbers, "scales": scales}
    if minima is not None:
        arrays["minima"] = minima
    return PackedWeight(kind, outputs, inputs, arrays)


def packed_linear(x, packed, bias, out, outliers=0):
    """out [tokens, outputs] = x [tokens, inputs] W^T + bias (or None).

    outliers: so many numbers of each row of x are not rounded to int8 but multiplied as they are (LLM.int8, Dettmers et al.
    2022, arXiv 2208.07339): a few large ones set the scales of blocks that hold most of a row's error. Only kinds "int8" and
    "int4" know a difference.
    """
    if "rows" in packed.arrays:
        # 1. rows of numbers: bfloat16 rounds x too, and adds up in float32
        rows = packed_rows_of(packed)
        np.matmul(round_bfloat16(x) if packed.kind.startswith("bfloat16") else x, rows.T, out=out)
    elif packed.kind == CHANNEL_KIND:
        # 2. one scale an output: x in int8, groups of it by their largest number; a group's sum is whole and below 2^24
        out[...] = 0
        for start in range(0, packed.inputs, CHANNEL_GROUP):
            group = slice(start, start + CHANNEL_GROUP)
            numbers, x_scales = round_channel(x[:, group], by_step=False)
            out += numbers @ packed.arrays["numbers"][:, group].T.astype(np.float32) * x_scales[:, None]
        out *= packed.arrays["scales"]
    else:
        # 3. blocks: x in int8; a block's sum of products is whole and below 2^24, so that float32 holds it
        out[...] = 0
        numbers, x_scales, places, values = round_rows(x, outliers)
        for block in range(numbers.shape[1]):
            sums = numbers[:, block] @ packed.arrays["numbers"][:, block].T.astype(np.float32)
            out += sums * (x_scales[:, block, None] * packed.arrays["scales"][:, block])
            if "minima" in packed.arrays:
                total = x_scales[:, block] * numbers[:, block].sum(axis=1)
                out += total[:, None] * packed.arrays["minima"][:, block]
        if outliers:
            weights = np.empty((packed.outputs, packed.inputs), np.float32)
            packed_rows(packed, np.arange(packed.outputs), weights)
            for k in range(outliers):
                out += values[:, k, None] * weights.T[places[:, k]]
    if bias is not None:
        out += bias


def packed_rows(packed, ids, out):
    """out [tokens, inputs] = the weights of outputs ids: int64 [tokens], as an embedding's rows are read."""
    if "rows" in packed.arrays:
        rows = packed.arrays["rows"][ids]
        out[...] = _from_bits(rows) if packed.kind.startswith("bfloat16") else rows
        return
    if packed.kind == CHANNEL_KIND:
        out[...] = packed.arrays["scales"][ids][:, None] * packed.arrays["numbers"][ids]
        return
    values = packed.arrays["scales"][ids][..., None] * packed.arrays["numbers"][ids].astype(np.float32)
    if "minima" in packed.arrays:
        values += packed.arrays["minima"][ids][..., None]
    out[...] = values.reshape(len(ids), values.shape[1] * BLOCK)[:, : packed.inputs]


def packed_rows_of(packed):
    """float32 [outputs, inputs] of a weight that is kept as rows."""
    rows = packed.arrays["rows"]
    return _from_bits(rows) if packed.kind.startswith("bfloat16") else rows


def round_rows(x, outliers=0):
    """x: float32 [rows, columns], padded with zeros to blocks, as (numbers float32 [rows, blocks, 32], whole ones within
    -127..127; scales float32 [rows, blocks]; places int [rows, outliers] and values float32 [rows, outliers] of numbers that
    are zeros there: again and again the largest one of the block with the largest scale)."""
    blocks = in_blocks(x).copy()
    most, every = np.abs(blocks).max(axis=2), np.arange(len(x))
    places, values = np.empty((len(x), outliers), np.int64), np.empty((len(x), outliers), np.float32)
    for k in range(outliers):
        block = (most / LARGEST).argmax(axis=1)
        place = np.abs(blocks[every, block]).argmax(axis=1)
        places[:, k], values[:, k] = block * BLOCK + place, blocks[every, block, place]
        blocks[every, block, place] = 0
        most[every, block] = np.abs(blocks[every, block]).max(axis=1)
    inverse = np.divide(LARGEST, most, out=np.zeros_like(most), where=most > 0)
    return np.rint(blocks * inverse[..., None]), most / LARGEST, places, values


def round_channel(values, by_step=True):
    """(numbers float32, whole ones within -127..127, of values' shape; scales float32 [rows]) of values: float32 [rows,
    columns], each row by its largest number. by_step: divided by the scale; else multiplied by its inverse."""
    most = np.abs(values).max(axis=1, initial=0)
    scales = most / LARGEST
    if by_step:
        steps = np.divide(values, scales[:, None], out=np.zeros_like(values), where=scales[:, None] > 0)
    else:
        steps = values * np.divide(LARGEST, most, out=np.zeros_like(most), where=most > 0)[:, None]
    return np.rint(steps), scales


def in_blocks(x):
    """x [rows, columns] as [rows, blocks, 32], padded with zeros."""
    rows, columns = x.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), x.dtype)
    padded[:, :columns] = x
    return padded.reshape(rows, blocks, BLOCK)


def _round_weight(values, kind):
    """(numbers, scales, minima or None) of values: float32 [outputs, inputs]: int8 around zero, int4 above the smallest."""
    blocks = in_blocks(values)
    largest, smallest = blocks.max(axis=2), blocks.min(axis=2)
    columns = values.shape[1]
    if columns % BLOCK:  # the zeros past the end have no say
        rest = values[:, columns // BLOCK * BLOCK :]
        largest[:, -1], smallest[:, -1] = rest.max(axis=1), rest.min(axis=1)
    if kind == "int8":
        scales, minima = np.maximum(largest, -smallest) / LARGEST, None
        shifted = blocks
    else:
        scales, minima = (largest - smallest) / np.float32(15), smallest
        shifted = blocks - minima[..., None]
    numbers = np.divide(shifted, scales[..., None], out=np.zeros_like(blocks), where=scales[..., None] > 0)
    numbers = np.rint(numbers)
    if columns % BLOCK:
        numbers[:, -1, columns % BLOCK :] = 0
    return numbers.astype(np.int8), scales, minima


def _from_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)
