"""Arrays that are written share no memory with what is read; where they may take its place, they take all of it."""

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.kernels.select import implementations, use_kernels
from fastmixer.ops.bfloat16 import RoundedWeight, round_weight
from fastmixer.ops.feedforward import FeedForwardSaved

HEADS, HEAD_DIM, TIME, DIM = 2, 6, 5, 12


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def neighbours(rng, *shape):
    """Two arrays of this shape, the second of which begins one row of the last axis behind the first."""
    size, row = int(np.prod(shape)), shape[-1]
    memory = normal(rng, size + row)
    return memory[:size].reshape(shape), memory[row:].reshape(shape)


def refused(message):
    return pytest.raises(ValueError, match=f"^{message}$")


def partly(op, written, read):
    return refused(f"{op}: {written} is written while {read} is read and must be the same memory or share none with it")


def shared(op, written, read):
    return refused(f"{op}: {written} is written while {read} is read and must not share memory with it")


# ---- where the same memory will do ----


@pytest.mark.parametrize("name", implementations("norm"))
def test_norms_in_place(rng, name):
    x, weight, bias = normal(rng, 70, DIM), normal(rng, DIM), normal(rng, DIM)
    with use_kernels(name):
        for op in (lambda x, **out: fm.layernorm(x, weight, bias, **out), lambda x, **out: fm.rmsnorm(x, weight, **out)):
            expected, inside = op(x), x.copy()
            op(inside, out=inside.reshape(70, DIM))  # the same memory, another object
            np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize("name", implementations("norm"))
@pytest.mark.parametrize("place", ["d_out", "x", "d_residual"])
def test_norm_gradients_in_place(rng, name, place):
    with use_kernels(name):
        arrays = {key: normal(rng, 70, DIM) for key in ("d_out", "x", "d_residual")}
        weight = normal(rng, DIM)
        for forward, backward in ((fm.layernorm, fm.layernorm_backward), (fm.rmsnorm, fm.rmsnorm_backward)):
            _, saved = forward(arrays["x"], weight, return_saved=True)

            def run(d_out, x, d_residual, d_x=None, backward=backward, saved=saved):
                return backward(d_out, x, weight, saved, np.zeros_like(weight), d_residual=d_residual, d_x=d_x)

            expected, inside = run(**arrays), {key: array.copy() for key, array in arrays.items()}
            np.testing.assert_array_equal(run(**inside, d_x=inside[place]), expected)


@pytest.mark.parametrize("name", implementations("dropout"))
@pytest.mark.parametrize("place", ["x", "residual"])
def test_dropout_in_place(rng, name, place):
    arrays = {"x": normal(rng, 40, 1000), "residual": normal(rng, 40, 1000)}
    with use_kernels(name):
        expected = fm.dropout(arrays["x"], 0.3, 7, residual=arrays["residual"])
        found = fm.dropout(arrays["x"], 0.3, 7, residual=arrays["residual"], out=arrays[place])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", implementations("positions"))
def test_rotate_in_place_and_beside(rng, name):
    """q and k as views of one array: each may turn where it lies, and q's place is not k's."""
    q, k = normal(rng, 1, TIME, 2 * HEADS, HEAD_DIM).transpose(0, 2, 1, 3).reshape(1, 2, HEADS, TIME, HEAD_DIM).swapaxes(0, 1)
    tables = fm.rotary_tables(TIME, HEAD_DIM)
    with use_kernels(name):
        expected = fm.rotate(q, *tables)
        np.testing.assert_array_equal(fm.rotate(q, *tables, out=k), expected)
        np.testing.assert_array_equal(fm.rotate(q, *tables, out=q[:]), expected)


def test_a_part_of_it_is_refused(rng):
    weight, d_weight = normal(rng, DIM), np.zeros(DIM, np.float32)
    x, out = neighbours(rng, 2, 3, DIM)
    d_out = normal(rng, 2, 3, DIM)
    with partly("layernorm", "out", "x"):
        fm.layernorm(x, weight, out=out)
    with partly("rmsnorm", "out", "x"):
        fm.rmsnorm(x, weight, out=out)
    _, saved = fm.layernorm(x, weight, return_saved=True)
    with partly("layernorm_backward", "d_x", "d_out"):
        fm.layernorm_backward(x, d_out, weight, saved, d_weight, d_x=out)
    with partly("layernorm_backward", "d_x", "x"):
        fm.layernorm_backward(d_out, x, weight, saved, d_weight, d_x=out)
    with partly("rmsnorm_backward", "d_x", "d_residual"):
        fm.rmsnorm_backward(d_out, d_out, weight, saved[0], d_weight, d_residual=x, d_x=out)
    with partly("dropout", "out", "x"):
        fm.dropout(x, 0.1, 0, out=out)
    with partly("dropout", "out", "residual"):
        fm.dropout(d_out, 0.1, 0, residual=x, out=out)
    tables = fm.rotary_tables(TIME, HEAD_DIM)
    x, out = neighbours(rng, 1, HEADS, TIME, HEAD_DIM)
    with partly("rotate", "out", "x"):
        fm.rotate(x, *tables, out=out)
    square = normal(rng, 1, 4, 4, HEAD_DIM)
    with partly("rotate", "out", "x"):  # the same memory in another order
        fm.rotate(square, *tables, out=square.transpose(0, 2, 1, 3))


def test_norms_write_apart_from_what_is_small(rng):
    memory = normal(rng, 8 * DIM)
    x, out, weight = normal(rng, 8, DIM), memory.reshape(8, DIM), memory[DIM : 2 * DIM]
    with shared("layernorm", "out", "weight"):
        fm.layernorm(x, weight, out=out)
    with shared("layernorm", "out", "bias"):
        fm.layernorm(x, weight.copy(), weight, out=out)
    with shared("rmsnorm", "out", "weight"):
        fm.rmsnorm(x, weight, out=out)
    _, saved = fm.layernorm(x, weight, return_saved=True)
    with shared("layernorm_backward", "d_x", "weight"):
        fm.layernorm_backward(x, x, weight, saved, np.zeros_like(weight), d_x=out)
    with shared("layernorm_backward", "d_x", "d_bias"):
        fm.layernorm_backward(x, x, weight.copy(), saved, np.zeros_like(weight), weight, d_x=out)
    with shared("layernorm_backward", "d_weight", "d_bias"):
        fm.layernorm_backward(x, x, weight.copy(), saved, weight, weight)
    with shared("rmsnorm_backward", "d_x", "inverse_rms"):
        fm.rmsnorm_backward(x, x, weight.copy(), memory[:8], np.zeros_like(weight), d_x=out)


# ---- where it will not ----


@pytest.mark.parametrize("name", implementations("attention"))
def test_attention_in_views_of_one_array(rng, name):
    """q, k, v and the place for out lie between one another, as a layer's do; so do their gradients."""
    options = {"causal": True}
    memory = normal(rng, 2, TIME, 4 * HEADS, HEAD_DIM).transpose(0, 2, 1, 3)
    q, k, v, out = (memory[:, i * HEADS : (i + 1) * HEADS] for i in range(4))
    gradients = np.full((2, TIME, 3 * HEADS, HEAD_DIM), np.nan, np.float32).transpose(0, 2, 1, 3)
    d_q, d_k, d_v = (gradients[:, i * HEADS : (i + 1) * HEADS] for i in range(3))
    with use_kernels(name):
        expected = fm.attention(q, k, v, **options)
        _, log_sum_exp = fm.attention(q, k, v, **options, out=out, return_saved=True)
        np.testing.assert_array_equal(out, expected)
        d_out = normal(rng, *q.shape)
        found = fm.attention_backward(d_out, q, k, v, out, log_sum_exp, **options, d_q=d_q, d_k=d_k, d_v=d_v)
        for into, alone in zip(found, fm.attention_backward(d_out, q, k, v, expected, log_sum_exp, **options), strict=True):
            np.testing.assert_array_equal(into, alone)


def test_attention(rng):
    q, k, v = (normal(rng, 1, HEADS, TIME, HEAD_DIM) for _ in range(3))
    for name, array in (("q", q), ("k", k), ("v", v)):
        with shared("attention", "out", name):
            fm.attention(q, k, v, out=array)
    behind, out = neighbours(rng, 1, HEADS, TIME, HEAD_DIM)
    with shared("attention", "out", "k"):
        fm.attention(q, behind, v, out=out)
    out, log_sum_exp = fm.attention(q, k, v, return_saved=True)
    d_out, gradient = normal(rng, *q.shape), normal(rng, *q.shape)
    read = {"d_out": d_out, "q": q, "k": k, "v": v, "out": out}
    for written in ("d_q", "d_k", "d_v"):
        for name, array in read.items():
            with shared("attention_backward", written, name):
                fm.attention_backward(**read, log_sum_exp=log_sum_exp, **{written: array})
    with shared("attention_backward", "d_v", "d_k"):
        fm.attention_backward(**read, log_sum_exp=log_sum_exp, d_k=gradient, d_v=gradient)
    bias = normal(rng, HEADS, 3)
    within = gradient.reshape(-1)[:6].reshape(HEADS, 3)
    with shared("attention", "out", "bias"):
        fm.attention(q, k, v, bias=within, out=gradient)
    for written in ("d_q", "d_k", "d_v"):
        with shared("attention_backward", written, "bias"):
            fm.attention_backward(**read, log_sum_exp=log_sum_exp, bias=within, **{written: gradient})
    with shared("attention_backward", "d_bias", "bias"):
        fm.attention_backward(**read, log_sum_exp=log_sum_exp, bias=bias, d_bias=bias)
    with shared("attention_backward", "d_bias", "d_q"):
        fm.attention_backward(
            **read, log_sum_exp=log_sum_exp, bias=bias, d_q=gradient, d_bias=gradient.reshape(-1)[:6].reshape(HEADS, 3)
        )


def test_feedforward(rng):
    x, w_up, w_down, bias = normal(rng, DIM, DIM), normal(rng, DIM, DIM), normal(rng, DIM, DIM), normal(rng, DIM)
    memory = normal(rng, DIM, DIM)
    with shared("feedforward", "out", "b_down"):
        fm.feedforward(x, w_up, None, w_down, memory[3], out=memory)
    with shared("feedforward", "saved.hidden", "saved.up"):
        fm.feedforward(x, w_up, bias, w_down, bias, saved=FeedForwardSaved(memory, memory))
    with shared("feedforward", "saved.hidden", "x"):
        fm.feedforward(x, w_up, bias, w_down, bias, saved=FeedForwardSaved(memory, x))
    out, saved = fm.feedforward(x, w_up, bias, w_down, bias, return_saved=True)
    arguments = (memory, x, w_up, w_down, saved)
    with shared("feedforward_backward", "d_x", "d_out"):
        fm.feedforward_backward(*arguments, d_x=memory)
    with shared("feedforward_backward", "d_x", "saved.up"):
        fm.feedforward_backward(*arguments, d_x=saved.up)
    with shared("feedforward_backward", "scratch.up", "saved.hidden"):
        fm.feedforward_backward(*arguments, scratch=FeedForwardSaved(saved.hidden, out))
    with shared("feedforward_backward", "d_w_down", "w_up"):
        fm.feedforward_backward(*arguments, d_w_down=w_up)
    with shared("feedforward_backward", "d_w_up", "d_x"):
        fm.feedforward_backward(*arguments, d_x=out, d_w_up=out)


def test_linear_backward(rng):
    x, d_out, weight, gradient = (normal(rng, DIM, DIM) for _ in range(4))
    with shared("linear_backward", "d_x", "d_weight"):
        fm.linear_backward(d_out, x, weight, gradient, d_x=gradient)
    with shared("linear_backward", "d_bias", "d_weight"):
        fm.linear_backward(d_out, x, weight, gradient, gradient[2])
    with shared("linear_backward", "d_bias", "weight"):
        fm.linear_backward(d_out, x, weight, None, weight[2])


def test_head_loss(rng):
    x, weight, targets, memory = normal(rng, 5, DIM), normal(rng, 5, DIM), np.arange(5), normal(rng, 5, DIM)
    with shared("head_loss", "d_x", "x"):
        fm.head_loss(x, weight, targets, d_x=x)
    with shared("head_loss", "d_weight", "weight"):
        fm.head_loss(x, weight, targets, d_weight=weight)
    with shared("head_loss", "d_weight", "d_x"):
        fm.head_loss(x, weight, targets, d_x=memory, d_weight=memory)
    with shared("head_loss", "logits", "x"):
        fm.head_loss(x, weight, targets, logits=x.reshape(-1)[:10].reshape(2, 5))
    rounded = round_weight(weight)
    for part, array in rounded._asdict().items():
        with shared("head_loss", "d_x", f"rounded.{part}"):
            within = array.view(np.float32).reshape(-1)[: x.size].reshape(x.shape)
            fm.head_loss(x, weight, targets, d_x=within, rounded=rounded)


def test_embedding_and_positions(rng):
    table, ids = normal(rng, 6, DIM), np.arange(3)
    with shared("embedding", "out", "table"):
        fm.embedding(table, ids, out=table[2:5])
    d_out = normal(rng, 3, DIM)
    with shared("embedding_backward", "values", "d_out"):
        fm.embedding_backward(d_out, ids, 6, values=d_out)
    with shared("SparseRows.add_to", "dense", "values"):
        fm.SparseRows(ids, table[1:4], 6).add_to(table)
    with shared("update_rows_sgd", "table", "sparse.values"):
        fm.update_rows_sgd(table, fm.SparseRows(ids, table[1:4], 6), 0.1)
    with shared("add_positions", "x", "table"):
        fm.add_positions(table[1:4], table, ids)
    with shared("rotate", "out", "cos"):
        cos, sin = fm.rotary_tables(TIME, HEAD_DIM)
        out = np.empty(TIME * HEAD_DIM, np.float32)
        out[: cos.size] = cos.reshape(-1)
        fm.rotate(normal(rng, 1, 1, TIME, HEAD_DIM), out[: cos.size].reshape(cos.shape), sin, out=out.reshape(1, 1, TIME, HEAD_DIM))


def test_round_weight(rng):
    rounded = round_weight(normal(rng, 10, 20))
    inside = rounded.over_rows.view(np.float32).reshape(-1)[:200].reshape(10, 20)
    with shared("round_weight", "out.over_rows", "weight"):
        round_weight(inside, RoundedWeight(*rounded))
