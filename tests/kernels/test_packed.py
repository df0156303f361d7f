"""Packed weights: every implementation against NumPy, over all formats and kinds, odd sizes and poisoned outputs."""

import numpy as np
import pytest

from fastmixer.kernels import packed as packed_op
from fastmixer.kernels.bfloat16 import round_bfloat16
from fastmixer.kernels.packed import BLOCK, CHANNEL_GROUP, CHANNEL_KIND, formats, reference

KINDS = (*packed_op.KINDS, *packed_op.FOR_MANY_ROWS.values())
SIZES = [(1, 32), (7, 64), (17, 96), (33, 256), (130, 160)]  # outputs, inputs of formats in blocks of 32
ODD_SIZES = [(1, 1), (3, 7), (17, 31), (31, 33), (65, 100), (8, 127)]  # of plain numbers
SUM_TOLERANCE = 2e-6  # of the sum of magnitudes: float32 sums in another order
ROUNDED_ULP = 2.0**-8  # bfloat16's relative rounding


def raw_weight(rng, name, outputs, inputs):
    """uint8 [outputs, bytes a row] of a format, scales and numbers of ordinary size."""
    block_type = formats.BY_NAME[name]
    if name in formats.WRITABLE:
        values = rng.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(0.1)
        return formats.quantize(values, block_type)
    blocks = rng.integers(0, 256, (outputs * inputs // block_type.block, block_type.bytes), dtype=np.uint8)
    for at in halves_of(name):
        scales = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(outputs, -1)


def halves_of(name):
    """Where a block keeps its float16 scales."""
    return {
        "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2),
        "Q5_K": (0, 2), "Q6_K": (208,),
    }[name]  # fmt: skip


def sizes_of(name):
    block = formats.BY_NAME[name].block
    return ODD_SIZES + SIZES if block == 1 else [(o, i) for o, i in SIZES if i % block == 0]


# Encoders' kinds come from plain numbers, and begin with the same values as the others.
CASES = [
    (name, kind, size)
    for name in formats.BY_NAME
    for kind in (KINDS if name in ("F32", "BF16") else packed_op.KINDS)
    for size in sizes_of(name)
]
PRODUCTS = [
    (name, kind)
    for name in ("F32", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "Q4_K", "Q6_K")
    for kind in (KINDS if name in ("F32", "BF16") else packed_op.KINDS)
]


def unpacked(kernel, packed):
    rows = np.full((packed.outputs, packed.inputs), np.nan, np.float32)
    kernel.packed_rows(packed, np.arange(packed.outputs), rows)
    return rows


@pytest.mark.parametrize(("name", "kind", "size"), CASES)
def test_packed_weights_give_their_values_back(kernel, rng, name, kind, size):
    raw = raw_weight(rng, name, *size)
    values = formats.dequantize(raw, formats.BY_NAME[name])
    packed = kernel.pack_weight(raw, name, *size, kind)
    assert (packed.kind, packed.outputs, packed.inputs) == (kind, *size)
    assert packed.nbytes > 0
    got = unpacked(kernel, packed)
    if kind.startswith("float32"):
        np.testing.assert_array_equal(got, values)
    elif kind.startswith("bfloat16"):
        np.testing.assert_array_equal(got, round_bfloat16(values))
    if kind.startswith(("float32", "bfloat16")):
        return
    # scale * number and minimum may cancel: some ulp of the larger
    few_ulp = 4 * np.finfo(np.float32).eps * np.abs(values).max()
    if name in reference.EXACT.get(kind, ()):
        np.testing.assert_allclose(got, values, rtol=0, atol=few_ulp)
    else:
        expected = unpacked(reference, reference.pack_weight(raw, name, *size, kind))
        np.testing.assert_allclose(got, expected, rtol=0, atol=few_ulp)
        assert (np.abs(got - values) <= 0.5001 * step_of(values, kind)).all()


def step_of(values, kind):
    """float32 of values' shape: how far apart the numbers of each one's block lie."""
    out = np.empty_like(values)
    if kind == CHANNEL_KIND:
        out[...] = np.abs(values).max(axis=1, keepdims=True) / 127 + 1e-7
        return out
    for start in range(0, values.shape[1], BLOCK):
        block = values[:, start : start + BLOCK]
        if kind == "int8":
            step = np.abs(block).max(axis=1) / 127
        else:
            step = (block.max(axis=1) - block.min(axis=1)) / 15
        out[:, start : start + BLOCK] = step[:, None] + 1e-7
    return out


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 13, 70])
@pytest.mark.parametrize(("name", "kind"), PRODUCTS)
def test_products_match_the_reference(kernel, rng, name, kind, tokens):
    for outputs, inputs in sizes_of(name):
        outliers = {1: inputs, 4: 2, 13: 1, 70: -(-inputs // 16)}.get(tokens, 0)  # as many as there are, and more
        raw = raw_weight(rng, name, outputs, inputs)
        x = rng.standard_normal((tokens, inputs), dtype=np.float32) * rng.uniform(0.1, 10, (tokens, 1)).astype(
            np.float32
        )
        bias = rng.standard_normal(outputs, dtype=np.float32) if tokens % 2 else None
        out = np.full((tokens, outputs), np.nan, np.float32)
        kernel.packed_linear(x, kernel.pack_weight(raw, name, outputs, inputs, kind), bias, out, outliers)
        expected = np.empty_like(out)
        packed = reference.pack_weight(raw, name, outputs, inputs, kind)
        reference.packed_linear(x, packed, bias, expected, outliers)
        magnitude = np.abs(x) @ np.abs(unpacked(reference, packed)).T + (0 if bias is None else np.abs(bias))
        assert (np.abs(out - expected) <= SUM_TOLERANCE * magnitude + offsets_of(packed, x)).all()


def offsets_of(packed, x):
    """What rounding of minimum and steps, each larger than their sum, adds to a tolerance."""
    if "minima" not in packed.arrays:
        return 0.0
    magnitudes = np.abs(reference.in_blocks(x)).sum(axis=2)
    return 2 * SUM_TOLERANCE * (magnitudes @ np.abs(packed.arrays["minima"]).T)


@pytest.mark.parametrize("outliers", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_near_the_plain_product(rng, kind, outliers):
    """The oracle of the others, itself against float64 over the dequantized values."""
    outputs, inputs, tokens = 40, 256, 9
    for name in formats.BY_NAME:
        raw = raw_weight(rng, name, outputs, inputs)
        x = rng.standard_normal((tokens, inputs), dtype=np.float32)
        packed, out = reference.pack_weight(raw, name, outputs, inputs, kind), np.empty((tokens, outputs), np.float32)
        reference.packed_linear(x, packed, None, out, outliers)
        rows = unpacked(reference, packed).astype(np.float64)
        truth = x.astype(np.float64) @ rows.T
        # each number of x is off by half a step at most, steps are as likely up as down
        step = 0 if kind.startswith(("float32", "bfloat16")) else np.abs(x).max() / 127
        spread = step / np.sqrt(12) * np.sqrt((rows**2).sum(axis=1))
        if kind.startswith("bfloat16"):
            spread = ROUNDED_ULP * np.sqrt(((np.abs(x).max() * rows) ** 2).sum(axis=1))
        assert (np.abs(out - truth) <= 6 * spread + 1e-5 * (np.abs(x) @ np.abs(rows).T)).all(), name


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_outliers_cost_their_blocks_nothing(kernel, rng, kind, tokens):
    """Each row has its own, two of them in one block."""
    outputs, inputs = 50, 20 * BLOCK
    packed = kernel.pack_weight(raw_weight(rng, "Q8_0", outputs, inputs), "Q8_0", outputs, inputs, kind)
    x = rng.uniform(-1, 1, (tokens, inputs)).astype(np.float32)
    blocks = np.stack([rng.permutation(20)[:2] for _ in range(tokens)]) * BLOCK
    np.put_along_axis(x, np.concatenate([blocks + 7, blocks[:, :1] + 30], axis=1), np.float32([300, -500, -400]), axis=1)
    out = np.full((4, tokens, outputs), np.nan, np.float32)
    for i, outliers in enumerate((0, 2, 3, inputs)):
        kernel.packed_linear(x, packed, None, out[i], outliers)
    truth = x.astype(np.float64) @ unpacked(kernel, packed).astype(np.float64).T
    errors = np.sqrt(((out - truth) ** 2).mean(axis=(1, 2)))
    assert errors[2] < errors[:2].min() / 10 and errors[3] < errors[2] / 10


def test_of_numbers_as_large_the_first_is_the_outlier(kernel):
    """Blocks of the same numbers: what is left of the first one is rounded in finer steps."""
    x = np.tile(np.float32([-1, 0.3, 1] + 29 * [0.1]), 3)[None]
    weight = np.repeat(np.float32([1, 2, 4]), BLOCK)[None]
    packed, found = kernel.pack_weight(weight.view(np.uint8), "F32", 1, 3 * BLOCK, "int8"), []
    for outliers in range(1, 7):
        out = np.empty((1, 1), np.float32)
        kernel.packed_linear(x, packed, None, out, outliers)
        found.append(out[0, 0])
    coarse = np.rint(0.3 * 127) / 127 + 29 * np.rint(0.1 * 127) / 127
    fine = 0.3 + 29 * 0.3 * np.rint(0.1 / 0.3 * 127) / 127
    # the first block until its steps are finer, then the next one; the two of a block sum to zero
    expected = [7 * coarse, 6 * coarse + fine, 6 * coarse + fine, 4 * coarse + 3 * fine, 4 * coarse + 3 * fine, 7 * fine]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4", CHANNEL_KIND])
def test_integers_come_out_exactly(kernel, kind):
    """Weights and rows that int8 and int4 hold: every sum is whole, so every implementation must hit it."""
    outputs, inputs = 20, 96
    weight = (np.arange(outputs * inputs).reshape(outputs, inputs) * 7 % 16).astype(np.float32)
    weight[:, ::BLOCK], weight[:, 1::BLOCK] = (15 if kind == "int4" else 127), 0
    x = (np.arange(5 * inputs).reshape(5, inputs) * 11 % 255 - 127).astype(np.float32)
    x[:, ::BLOCK] = 127
    out = np.full((5, outputs), np.nan, np.float32)
    packed = kernel.pack_weight(weight.view(np.uint8), "F32", outputs, inputs, kind)
    kernel.packed_linear(x, packed, None, out)
    np.testing.assert_array_equal(out, x @ weight.T)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kernel, kind):
    out = np.full((3, 9), np.nan, np.float32)
    packed = kernel.pack_weight(np.zeros((9, 4 * 40), np.uint8), "F32", 9, 40, kind)
    kernel.packed_linear(np.zeros((3, 40), np.float32), packed, None, out)
    np.testing.assert_array_equal(out, np.zeros_like(out))


@pytest.mark.parametrize("outliers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [2, 9, 40])
def test_a_row_does_not_depend_on_its_neighbours(kernel, rng, kind, tokens, outliers):
    outputs, inputs = 70, 192
    packed = kernel.pack_weight(raw_weight(rng, "Q8_0", outputs, inputs), "Q8_0", outputs, inputs, kind)
    x = rng.standard_normal((tokens, inputs), dtype=np.float32)
    out = np.empty((tokens, outputs), np.float32)
    kernel.packed_linear(x, packed, None, out, outliers)
    for t in (0, tokens - 1):
        alone = np.empty((1, outputs), np.float32)
        kernel.packed_linear(x[t : t + 1], packed, None, alone, outliers)
        if kind in ("int8", "int4", CHANNEL_KIND):
            np.testing.assert_array_equal(alone[0], out[t])
        else:
            np.testing.assert_allclose(alone[0], out[t], atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 7, 15, 16, 67, 130])
def test_long_rows_have_a_scale_a_group(kernel, rng, tokens):
    """One large number costs the small ones of its own group their places, not those of the next."""
    outputs, inputs = 51, 2 * CHANNEL_GROUP + 42
    weight = rng.standard_normal((outputs, inputs), dtype=np.float32)
    x = rng.standard_normal((tokens, inputs), dtype=np.float32)
    x[:, 5] = 1000
    packed = kernel.pack_weight(weight.view(np.uint8), "F32", outputs, inputs, CHANNEL_KIND)
    out, bias = np.full((tokens, outputs), np.nan, np.float32), rng.standard_normal(outputs, dtype=np.float32)
    kernel.packed_linear(x, packed, bias, out)
    rows = unpacked(kernel, packed)
    rounded = np.concatenate(
        [n * s[:, None] for n, s in (reference.round_channel(x[:, at : at + CHANNEL_GROUP], by_step=False) for at in range(0, inputs, CHANNEL_GROUP))], axis=1
    )
    assert np.abs(rounded[:, CHANNEL_GROUP:] - x[:, CHANNEL_GROUP:]).max() < 0.02 < np.abs(rounded - x).max()
    expected = rounded.astype(np.float64) @ rows.T.astype(np.float64) + bias
    np.testing.assert_allclose(out, expected, atol=2e-6 * (np.abs(rounded) @ np.abs(rows).T).max())


def test_rows_are_read_by_id(kernel, rng):
    raw = raw_weight(rng, "Q4_1", 50, 64)
    packed = kernel.pack_weight(raw, "Q4_1", 50, 64, "int4")
    ids = np.array([49, 0, 7, 7, 33])
    out = np.full((5, 64), np.nan, np.float32)
    kernel.packed_rows(packed, ids, out)
    np.testing.assert_allclose(out, formats.dequantize(raw, formats.BY_NAME["Q4_1"])[ids], atol=1e-6)


@pytest.mark.parametrize("name", ["Q4_1", "Q8_0", "F16"])
def test_source_may_be_read_only(kernel, rng, name):
    raw = raw_weight(rng, name, 20, 64)
    raw.setflags(write=False)
    for kind in KINDS:
        packed = kernel.pack_weight(raw, name, 20, 64, kind)
        kernel.packed_linear(np.ones((2, 64), np.float32), packed, None, np.empty((2, 20), np.float32))
