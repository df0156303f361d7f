"""Arrays as users have them: fields of packed records, any byte order, unsigned ids. What kernels cannot walk is copied where it
is read and refused where it is written."""

import numpy as np
import pytest

import fastmixer as fm

PACKED = np.dtype([("tag", "u1"), ("value", "f4", (8,))])  # numbers at odd addresses, 33 bytes from row to row


def packed_rows(values):
    """values: float32 [batch, heads, rows, 8] as a view that is contiguous along its last axis only."""
    records = np.full(values.shape[:-1], 7, PACKED)
    records["value"] = values
    return records, records["value"]


def test_fields_of_records_are_read_as_their_copies(rng):
    plain = [rng.standard_normal((1, 2, 4, 8), dtype=np.float32) for _ in range(4)]
    q, k, v, d_out = (packed_rows(values)[1] for values in plain)
    np.testing.assert_array_equal(fm.attention(q, k, v), fm.attention(*plain[:3]))
    out, log_sum_exp = fm.attention(*plain[:3], return_saved=True)
    expected = fm.attention_backward(plain[3], *plain[:3], out, log_sum_exp)
    for found, one in zip(fm.attention_backward(d_out, q, k, v, out, log_sum_exp), expected, strict=True):
        np.testing.assert_array_equal(found, one)
    cos, sin = fm.rotary_tables(4, 8)
    np.testing.assert_array_equal(fm.rotate(q, cos, sin), fm.rotate(plain[0], cos, sin))


def test_fields_of_records_are_not_written(rng):
    q = rng.standard_normal((1, 1, 4, 8), dtype=np.float32)
    records, out = packed_rows(np.zeros_like(q))
    with pytest.raises(ValueError, match="^attention: out is written in place and must lie, and have strides, at multiples of"):
        fm.attention(q, q, q, out=out)
    assert (records["tag"] == 7).all()


def test_numbers_that_begin_at_odd_addresses(rng):
    x = rng.standard_normal((4, 8), dtype=np.float32)
    odd = np.frombuffer(b"x" + x.tobytes(), np.float32, offset=1).reshape(4, 8)
    assert not odd.flags.aligned
    weight, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
    np.testing.assert_array_equal(fm.layernorm(odd, weight, bias), fm.layernorm(x, weight, bias))


def test_another_byte_order_is_named(rng):
    q = rng.standard_normal((1, 1, 4, 8), dtype=np.float32)
    other = q.astype(q.dtype.newbyteorder())
    with pytest.raises(TypeError, match=r"^attention: q must be float32 .*; got float32 of another byte order, \(1, 1, 4, 8\)$"):
        fm.attention(other, q, q)


def test_unsigned_ids_never_become_negative(rng):
    table, logits = rng.standard_normal((5, 4), dtype=np.float32), rng.standard_normal((2, 5), dtype=np.float32)
    with pytest.raises(IndexError, match=r"^embedding: ids\[1\] = 18446744073709551613 is out of range; expected 0..4$"):
        fm.embedding(table, np.array([0, 2**64 - 3], np.uint64))
    with pytest.raises(IndexError, match=r"^cross_entropy: targets\[1\] = 18446744073709551516 is out of range"):
        fm.cross_entropy(logits, np.array([1, 2**64 - 100], np.uint64))  # as int64 it would be -100, which is ignored
    np.testing.assert_array_equal(fm.embedding(table, np.array([3], np.uint64)), table[3:4])
