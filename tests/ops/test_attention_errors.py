"""What the faces of attention refuse, and what they say."""

import numpy as np
import pytest
from attention_arrays import make

from fastmixer.ops.attention import attention, attention_backward, attention_weights


@pytest.fixture
def arrays(rng):
    return make(rng)


def raises(kind, message, function, *arguments, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message


def test_errors_name_the_array(arrays):
    q, k, v, _ = arrays
    raises(
        TypeError,
        "attention: k must be float32 [batch=2, kv_heads, keys, head_dim=6]; got float64 (2, 2, 9, 6)",
        attention, q, k.astype(np.float64), v,
    )  # fmt: skip
    raises(
        TypeError,
        "attention: q must be a NumPy array, float32 [batch, heads, queries, head_dim]; got list",
        attention, [1.0], k, v,
    )  # fmt: skip
    raises(
        ValueError,
        "attention: q must be float32 [batch, heads, queries, head_dim]; got float32 (4, 7, 6)",
        attention, q[0], k, v,
    )  # fmt: skip
    raises(
        ValueError,
        "attention: k must be float32 [batch=2, kv_heads, keys, head_dim=6]; got float32 (2, 2, 9, 5)",
        attention, q, k[..., :5], v,
    )  # fmt: skip
    raises(
        ValueError,
        "attention: v must be float32 [batch=2, kv_heads=2, keys=9, head_dim=6]; got float32 (2, 2, 8, 6)",
        attention, q, k, v[:, :, 1:],
    )  # fmt: skip
    raises(
        ValueError,
        "attention: out must be float32 [batch=2, heads=4, queries=7, head_dim=6]; got float32 (2, 4, 6, 6)",
        attention, q, k, v, out=np.empty_like(q[:, :, 1:]),
    )  # fmt: skip
    frozen = np.empty_like(q)
    frozen.flags.writeable = False
    raises(
        ValueError,
        "attention: out is written in place and must be writable; got a read-only array",
        attention, q, k, v, out=frozen,
    )  # fmt: skip
    raises(
        ValueError,
        "attention: out is written in place and must be contiguous along its last axis; got strides (1344, 336, 48, 8)",
        attention, q, k, v, out=np.repeat(q, 2, axis=3)[..., ::2],
    )  # fmt: skip


def test_errors_of_sizes(arrays):
    q, k, v, _ = arrays
    message = "attention: kv_heads must divide heads; got {} kv_heads for {} heads"
    raises(ValueError, message.format(2, 3), attention, q[:, :3], k, v)
    raises(ValueError, message.format(0, 4), attention, q, k[:, :0], v[:, :0])
    raises(ValueError, message.format(4, 2), attention, k, q, q)
    raises(
        ValueError, message.format(2, 3).replace("attention", "attention_weights"), attention_weights, q[:, :3], k
    )  # fmt: skip
    wide = np.zeros((1, 1, 2, 257), np.float32)
    raises(ValueError, "attention: head_dim must be 1..256; got 257", attention, wide, wide, wide)
    raises(ValueError, "attention: head_dim must be 1..256; got 0", attention, *[wide[..., :0]] * 3)


@pytest.mark.parametrize(
    "option, value, kind, problem",
    [
        ("window", 0, ValueError, "must be >= 1; got 0"),
        ("window", 2.5, TypeError, "must be an integer; got float"),
        ("window", True, TypeError, "must be an integer; got bool"),
        ("around", -1, ValueError, "must be >= 0; got -1"),
        ("around", 1.5, TypeError, "must be an integer; got float"),
        ("dropout", 1.0, ValueError, "must be >= 0 and < 1; got 1.0"),
        ("dropout", -0.1, ValueError, "must be >= 0 and < 1; got -0.1"),
        ("dropout", "half", TypeError, "must be a number; got str"),
        ("seed", -1, ValueError, "must be in [0, 2^64); got -1"),
        ("seed", 2**64, ValueError, f"must be in [0, 2^64); got {2**64}"),
        ("seed", 1.5, TypeError, "must be an integer; got float"),
        ("scale", np.inf, ValueError, "must be finite; got inf"),
        ("scale", "big", TypeError, "must be a number; got str"),
        ("key_counts", [3], TypeError, "must be integer [batch=2]; got int64 (1,)"),
        ("key_counts", [1.0, 2.0], TypeError, "must be integer [batch=2]; got float64 (2,)"),
        ("key_counts", [[3], [1, 2]], ValueError, "must be lists of one length; got different lengths"),
        ("key_counts", [3, 10], ValueError, "must be 0..9; got [3, 10]"),
        ("key_counts", [-1, 9], ValueError, "must be 0..9; got [-1, 9]"),
    ],
)
def test_errors_of_options(arrays, option, value, kind, problem):
    q, k, v, d_out = arrays
    raises(kind, f"attention: {option} {problem}", attention, q, k, v, **{option: value})
    if option != "key_counts":
        saved = q, np.zeros(q.shape[:3], np.float32)
        message = f"attention_backward: {option} {problem}"
        raises(kind, message, attention_backward, d_out, q, k, v, *saved, **{option: value})


def test_errors_of_sight_and_bias(arrays):
    q, k, v, d_out = arrays
    for options in ({"causal": True}, {"window": 3}):
        raises(
            ValueError, "attention: around must be None with causal or window, which hide what is behind; got 2",
            attention, q, k, v, around=2, **options,
        )  # fmt: skip
    raises(
        ValueError, "attention: bias must be float32 [heads=4, distances]; got float32 (2, 3)",
        attention, q, k, v, bias=np.zeros((2, 3), np.float32),
    )  # fmt: skip
    raises(
        ValueError, "attention: bias must have an odd number of distances, -reach..reach; got 4",
        attention, q, k, v, bias=np.zeros((4, 4), np.float32),
    )  # fmt: skip
    saved, bias = (q, np.zeros(q.shape[:3], np.float32)), np.zeros((4, 3), np.float32)
    raises(
        ValueError, "attention_backward: d_bias is the gradient of bias, which must be given; got None",
        attention_backward, d_out, q, k, v, *saved, d_bias=bias,
    )  # fmt: skip
    raises(
        ValueError, "attention_backward: d_bias must be float32 [heads=4, distances=3]; got float32 (4, 5)",
        attention_backward, d_out, q, k, v, *saved, bias=bias, d_bias=np.zeros((4, 5), np.float32),
    )  # fmt: skip


def test_errors_of_precision(arrays):
    q, k, v, d_out = arrays
    saved = q, np.zeros(q.shape[:3], np.float32)
    message = "precision must be one of 'float32', 'bfloat16'; got 'float16'"
    raises(ValueError, f"attention: {message}", attention, q, k, v, precision="float16")
    raises(
        ValueError, f"attention_backward: {message}", attention_backward, d_out, q, k, v, *saved, precision="float16"
    )


def test_errors_of_packed_sequences(rng, arrays):
    q, k, v, _ = make(rng, queries=7, keys=7, batch=1)
    raises(
        ValueError, "attention: packed sequences (query_starts) need a batch of 1; got 2",
        attention, *arrays[:3], query_starts=[0, 7],
    )  # fmt: skip
    raises(ValueError, "attention: key_starts needs query_starts; got None", attention, q, k, v, key_starts=[0, 7])
    raises(
        ValueError, "attention: query_starts and key_starts must have one length; got 2 and 3",
        attention, q, k, v, query_starts=[0, 7], key_starts=[0, 3, 7],
    )  # fmt: skip
    raises(
        ValueError, "attention: key_counts is for batches, key_starts for packed sequences; got both",
        attention, q, k, v, query_starts=[0, 7], key_counts=[7],
    )  # fmt: skip
    raises(
        ValueError, "attention: query_starts must be lists of one length; got different lengths",
        attention, q, k, v, query_starts=[[0, 7], [0]],
    )  # fmt: skip
    for starts, found in (([0.0, 7.0], "float64 (2,)"), ([[0, 7]], "int64 (1, 2)"), (np.zeros(0, int), "int64 (0,)")):
        message = f"attention: query_starts must be integer [sequences + 1]; got {found}"
        raises(TypeError, message, attention, q, k, v, query_starts=starts)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint8, np.int8])
@pytest.mark.parametrize("starts", [[0, 5, 3, 7], [0, 100, 7], [1, 7], [0, 6], [0, 8]])
def test_starts_must_rise_from_0_to_the_end(rng, starts, dtype):
    # unsigned differences are never negative, and those of small integers wrap around
    q, k, v, _ = make(rng, queries=7, keys=7, batch=1)
    message = f"must rise from 0 to 7; got {starts}"
    starts = np.array(starts, dtype)
    raises(ValueError, f"attention: query_starts {message}", attention, q, k, v, query_starts=starts)
    options = {"query_starts": [0] * (len(starts) - 1) + [7], "key_starts": starts}
    raises(ValueError, f"attention: key_starts {message}", attention, q, k, v, **options)


def test_starts_that_wrap_around_int8(rng):
    q, k, v, _ = make(rng, queries=7, keys=7, batch=1)
    starts = np.array([0, 100, -100, -20, 7], np.int8)
    message = "attention: query_starts must rise from 0 to 7; got [0, 100, -100, -20, 7]"
    raises(ValueError, message, attention, q, k, v, query_starts=starts)


def test_errors_of_backward(arrays):
    q, k, v, d_out = arrays
    out, log_sum_exp = attention(q, k, v, return_saved=True)
    raises(
        ValueError,
        "attention_backward: d_out must be float32 [batch=2, heads=4, queries=7, head_dim=6]; got float32 (2, 4, 6, 6)",
        attention_backward, d_out[:, :, 1:], q, k, v, out, log_sum_exp,
    )  # fmt: skip
    raises(
        ValueError,
        "attention_backward: log_sum_exp must be float32 [batch=2, heads=4, queries=7]; got float32 (2, 4, 7, 6)",
        attention_backward, d_out, q, k, v, out, out,
    )  # fmt: skip
    raises(
        TypeError,
        "attention_backward: out must be float32 [batch=2, heads=4, queries=7, head_dim=6]; got float64 (2, 4, 7, 6)",
        attention_backward, d_out, q, k, v, out.astype(np.float64), log_sum_exp,
    )  # fmt: skip
    raises(
        ValueError,
        "attention_backward: d_k must be float32 [batch=2, kv_heads=2, keys=9, head_dim=6]; got float32 (2, 4, 7, 6)",
        attention_backward, d_out, q, k, v, out, log_sum_exp, d_k=np.empty_like(q),
    )  # fmt: skip
