"""Weight gradients that are written instead of added to: the same numbers as added to zeros, whatever was there."""

import numpy as np
import pytest

from fastmixer.kernels.select import implementations, use_kernels
from fastmixer.ops.bfloat16 import round_weight
from fastmixer.ops.cross_entropy import head_loss
from fastmixer.ops.feedforward import FeedForwardRounded, feedforward, feedforward_backward
from fastmixer.ops.matmul import linear_backward


@pytest.fixture(params=implementations("matmul"), autouse=True)
def rank(request):
    with use_kernels(request.param):
        yield request.param


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def added_and_written(run, *shapes):
    """The gradients of these shapes: run(gradients, overwrite) adds them to zeros, and writes them over NaN."""
    zeros, poison = [np.zeros(shape, np.float32) for shape in shapes], [np.full(shape, np.nan, np.float32) for shape in shapes]
    run(zeros, False)
    run(poison, True)
    return zip(zeros, poison, strict=True)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 37, 800])
def test_linear(rng, transpose, rounds, tokens):
    x, d_out, weight = normal(rng, tokens, 50), normal(rng, tokens, 100), normal(rng, *((100, 50) if transpose else (50, 100)))
    rounded = round_weight(weight) if rounds else None

    def run(gradients, overwrite):
        linear_backward(d_out, x, weight, gradients[0], transpose_weight=transpose, rounded=rounded, overwrite_d_weight=overwrite)

    for expected, found in added_and_written(run, weight.shape):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rounds", [False, True])
def test_feedforward(rng, gated, rounds):
    x, d_out, w_up, w_down = normal(rng, 30, 20), normal(rng, 30, 20), normal(rng, 20, 70), normal(rng, 70, 20)
    w_gate = normal(rng, 20, 70) if gated else None
    weights = [w_up, w_down, w_gate] if gated else [w_up, w_down]
    rounded = FeedForwardRounded(*(round_weight(weight) for weight in weights)) if rounds else None
    _, saved = feedforward(x, w_up, None, w_down, None, w_gate=w_gate, rounded=rounded, return_saved=True)

    def run(gradients, overwrite):
        named = dict(zip(("d_w_up", "d_w_down", "d_w_gate"), gradients, strict=False))
        feedforward_backward(
            d_out, x, w_up, w_down, saved, w_gate=w_gate, rounded=rounded, overwrite_d_weights=overwrite, **named
        )

    for expected, found in added_and_written(run, *(weight.shape for weight in weights)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("chunk", [4, 11])
def test_head(rng, rounds, chunk):
    x, weight, targets = normal(rng, 11, 24), normal(rng, 101, 24), rng.integers(0, 101, 11)
    rounded = round_weight(weight) if rounds else None

    def run(gradients, overwrite):
        head_loss(x, weight, targets, d_weight=gradients[0], chunk=chunk, rounded=rounded, overwrite_d_weight=overwrite)

    for expected, found in added_and_written(run, weight.shape):
        np.testing.assert_array_equal(found, expected)
