"""Products in bfloat16: rounding bit by bit, and each kernel that takes rounded weights, at every level (those without
the instructions compute it in float32), against float64 products of the rounded numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close_to_float64

from fastmixer.kernels import threads
from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.bfloat16 import PANEL_COLUMNS, from_panels, panels_over_columns, panels_over_rows, round_bfloat16
from fastmixer.kernels.select import implementations, kernel_module, kernels, use_kernels

SIZES = [1, 2, 7, 16, 17, 33, 48, 95, 130]
SUM_ULP = 64.0  # of a sum's terms: the instruction rounds every pair on its way


@pytest.fixture(scope="module", params=implementations("matmul"))
def rank(request):
    return request.param


def new_panels(rows, columns):
    """Of a weight [rows, columns], over rows and over columns: what no weight is written to stays 0."""
    return tuple(
        np.zeros((-(-n // PANEL_COLUMNS), -(-k // 2), PANEL_COLUMNS), np.uint32) for k, n in ((rows, columns), (columns, rows))
    )


def panels_of(kernel, x):
    panels = new_panels(*x.shape)
    kernel.to_panels(x, *panels)
    return panels


def test_rounding_is_to_nearest_ties_to_even():
    one, ulp = 1.0, 2.0**-7
    cases = {
        one + ulp / 2: one, one + 1.5 * ulp: one + 2 * ulp, one + 0.51 * ulp: one + ulp, -one - 0.49 * ulp: -one,
        3.4e38: np.inf, 3.385e38: 3.3895314e38, 0.0: 0.0, np.inf: np.inf, 1e-40: round_bfloat16(np.float32(1e-40)),
    }  # fmt: skip
    for value, expected in cases.items():
        assert round_bfloat16(np.float32(value)) == np.float32(expected), value
    assert np.isnan(round_bfloat16(np.float32(np.nan))) and np.signbit(round_bfloat16(np.float32(-0.0)))
    bits = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)  # NaN whose upper bits would round to infinity
    assert np.isnan(round_bfloat16(bits)).all()


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("columns", SIZES)
def test_panels_of_pairs(rank, rng, rows, columns):
    x = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-20, 20, (rows, columns))).astype(np.float32)
    x.flat[:: max(1, x.size // 3)] = [np.inf, np.nan, -0.0, 1e-39][: len(x.flat[:: max(1, x.size // 3)])]
    over_rows, over_columns = panels_of(kernel_module("matmul", rank), x)
    assert np.array_equal(over_rows, panels_over_rows(x)) and np.array_equal(over_columns, panels_over_columns(x))
    rounded = round_bfloat16(x)
    np.testing.assert_array_equal(from_panels(over_rows, rows, columns), rounded)
    np.testing.assert_array_equal(from_panels(over_columns, columns, rows), rounded.T)


def linear(module, case, dtype):
    """All results of a linear layer forward and backward in bfloat16."""
    tokens, inputs, outputs, transpose, gated, activation = case
    rng = np.random.default_rng(1)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, d_out, weight = normal(tokens, inputs), normal(tokens, outputs), normal(inputs, outputs)
    bias, residual, multiplier, pre = normal(outputs), normal(tokens, outputs), normal(tokens, outputs), normal(tokens, inputs)
    x_multiplier, d_weight = normal(tokens, inputs), normal(inputs, outputs)
    if transpose:
        weight, d_weight = np.ascontiguousarray(weight.T), np.ascontiguousarray(d_weight.T)
    over_rows, over_columns = panels_of(kernel_module("matmul", "reference"), weight)
    found = {name: np.full((tokens, outputs), np.nan, dtype) for name in ("out", "pre_activation")}
    found |= {name: np.full((tokens, inputs), np.nan, dtype) for name in ("d_x", "d_pre", "d_multiplier")}
    found["d_weight"] = d_weight.astype(dtype)

    def as_dtype(*arrays):
        return [array.astype(dtype) for array in arrays]

    x, d_out, bias, residual, multiplier, pre, x_multiplier = as_dtype(x, d_out, bias, residual, multiplier, pre, x_multiplier)
    module.linear_forward_bfloat16(
        x, over_columns if transpose else over_rows, bias, multiplier if gated else None, residual, found["pre_activation"],
        found["out"], activation,
    )  # fmt: skip
    weight = over_rows if transpose else over_columns
    module.linear_backward_bfloat16(
        d_out, x, weight, None, None, found["d_x"], None, found["d_weight"], transpose, 0, False
    )
    module.linear_backward_bfloat16(
        d_out, None, weight, pre, x_multiplier if gated else None, found["d_pre"], found["d_multiplier"] if gated else None,
        None, transpose, activation, False,
    )  # fmt: skip
    if not gated:
        del found["d_multiplier"]
    return found


def assert_linear(rank, case):
    module, reference = kernel_module("matmul", rank), kernel_module("matmul", "reference")
    found, plain, truth = linear(module, case, np.float32), linear(reference, case, np.float32), linear(reference, case, np.float64)
    for name in truth:
        assert_close_to_float64(
            found[name], plain[name], truth[name], gradient=name.startswith("d_"), ulp=SUM_ULP, name=f"{name} of {case}"
        )


@given(
    st.tuples(
        st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(SIZES), st.booleans(), st.booleans(),
        st.sampled_from(list(ACTIVATIONS.values())),
    )
)  # fmt: skip
def test_linear(rank, case):
    assert_linear(rank, case)


@pytest.mark.parametrize("transpose", [False, True])
def test_linear_over_several_blocks(rank, transpose):
    assert_linear(rank, (70, 1000, 830, transpose, False, 0))
    assert_linear(rank, (1700, 40, 130, transpose, False, 0))


def head(module, dtype, tokens, dim, vocab, chunk):
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((tokens, dim)).astype(np.float32), rng.standard_normal((vocab, dim)).astype(np.float32)
    targets = rng.integers(0, vocab, tokens)
    targets[tokens // 2] = -100
    over_rows, over_columns = panels_of(kernel_module("matmul", "reference"), weight)
    losses, d_x = np.full(tokens, np.nan, dtype), np.full((tokens, dim), np.nan, dtype)
    d_weight, logits = np.ones((vocab, dim), dtype), np.full((chunk, vocab), np.nan, dtype)
    module.head_loss_bfloat16(x.astype(dtype), over_columns, over_rows, targets, -100, 0.5, logits, losses, d_x, d_weight)
    return {"losses": losses, "d_x": d_x, "d_weight": d_weight}


@pytest.mark.parametrize(("tokens", "dim", "vocab", "chunk"), [(1, 1, 1, 1), (5, 7, 33, 3), (17, 33, 530, 8), (9, 64, 9001, 9)])
def test_head_loss(rank, tokens, dim, vocab, chunk):
    """d_logits is rounded on its way: where the rounding of float32's last bit decides, the two may differ by an ulp of
    bfloat16 in single terms, so gradients are held to that."""
    sizes = (tokens, dim, vocab, chunk)
    found = head(kernel_module("cross_entropy", rank), np.float32, *sizes)
    truth = head(kernel_module("cross_entropy", "reference"), np.float64, *sizes)
    np.testing.assert_allclose(found["losses"], truth["losses"], rtol=1e-5, atol=1e-5)
    for name in ("d_x", "d_weight"):
        assert np.abs(found[name] - truth[name]).max() <= 2.0**-9 * np.abs(truth[name]).max(), name


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (37, 53), (5, 40_000), (401, 130)])
def test_adamw_writes_the_rounded_copies_of_what_it_writes(rank, rng, rows, columns):
    with use_kernels(rank):  # the optimizer has no code of its own at some levels
        module, reference = kernels("optimizer"), kernel_module("optimizer", "reference")
    start = {name: rng.standard_normal((rows, columns)).astype(np.float32) for name in "pmg"}
    start["v"] = np.abs(rng.standard_normal((rows, columns))).astype(np.float32)
    results = []
    for kernel in (module, reference):
        p, m, v, g = (start[name].copy() for name in "pmvg")
        over_rows, over_columns = new_panels(rows, columns)
        kernel.adamw_bfloat16(p, m, v, g, over_rows, over_columns, 1e-2, 0.9, 0.95, 1e-8, 0.1, 3, 0.7, True)
        assert np.array_equal(over_rows, panels_over_rows(p)) and np.array_equal(over_columns, panels_over_columns(p))
        assert not g.any()
        flat = [start[name].copy().reshape(-1) for name in "pmvg"]
        kernel.adamw(*flat, 1e-2, 0.9, 0.95, 1e-8, 0.1, 3, 0.7, True)
        assert np.array_equal(p.reshape(-1), flat[0])  # the same bits as without copies
        results.append(p)
    np.testing.assert_allclose(results[0], results[1], rtol=2e-6, atol=2e-7)


def test_threads_do_not_show_in_the_bits(rank):
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        found = linear(kernel_module("matmul", rank), (130, 250, 390, False, False, 2), np.float32)
        found |= head(kernel_module("cross_entropy", rank), np.float32, 70, 64, 900, 32)
        results.append(found)
    for other in results[1:]:
        for name in other:
            assert np.array_equal(results[0][name], other[name]), name
