"""fm.head_loss and fm.cross_entropy: means, scales, layouts, memory and exact errors."""

import tracemalloc

import numpy as np
import pytest

from fastmixer.ops.cross_entropy import cross_entropy, head_loss


def example(rng, tokens=9, dim=5, vocab=11):
    x, weight = rng.standard_normal((tokens, dim), np.float32), rng.standard_normal((vocab, dim), np.float32)
    targets = rng.integers(0, vocab, tokens)
    targets[2] = -100
    return x, weight, targets


def expected_loss(logits, targets, ignore_index=-100):
    logits = logits.astype(np.float64)
    counted = targets != ignore_index
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(probabilities[counted, targets[counted]]).mean()


def test_uniform_logits_cost_log_vocab():
    loss, d_logits = cross_entropy(np.zeros((2, 8), np.float32), np.array([3, 0]))
    assert loss == pytest.approx(np.log(8), rel=1e-6)
    assert d_logits[0, 3] == pytest.approx((1 / 8 - 1) / 2)
    assert d_logits[0, 4] == pytest.approx(1 / 16)


def test_both_faces_agree(rng):
    x, weight, targets = example(rng)
    d_x, d_weight = np.full_like(x, np.nan), np.zeros_like(weight)
    loss = head_loss(x, weight, targets, d_x=d_x, d_weight=d_weight)
    other, d_logits = cross_entropy(x @ weight.T, targets)
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected_loss(x @ weight.T, targets), rel=1e-5)
    assert loss == pytest.approx(other, rel=1e-5)
    np.testing.assert_allclose(d_x, d_logits @ weight, atol=1e-6)
    np.testing.assert_allclose(d_weight, d_logits.T @ x, atol=1e-6)


def test_loss_scale_moves_gradients_and_not_the_loss(rng):
    x, weight, targets = example(rng)
    d_x, d_x_scaled, d_weight = np.empty_like(x), np.empty_like(x), np.ones_like(weight)
    loss = head_loss(x, weight, targets, d_x=d_x)
    assert head_loss(x, weight, targets, d_x=d_x_scaled, d_weight=d_weight, loss_scale=0.25) == loss
    np.testing.assert_allclose(d_x_scaled, d_x / 4, rtol=1e-6)


def test_gradients_of_halves_add_up(rng):
    x, weight, targets = example(rng, tokens=8)
    targets[2] = 3
    whole, halves = np.zeros_like(weight), np.zeros_like(weight)
    loss = head_loss(x, weight, targets, d_weight=whole)
    first, second = (
        head_loss(x[part], weight, targets[part], d_weight=halves, loss_scale=0.5) for part in (slice(0, 4), slice(4, 8))
    )
    assert (first + second) / 2 == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(halves, whole, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_the_chunk_changes_nothing(rng, chunk):
    x, weight, targets = example(rng)
    assert head_loss(x, weight, targets, chunk=chunk) == pytest.approx(head_loss(x, weight, targets), rel=1e-6)


def test_the_logits_of_all_tokens_never_exist(rng):
    tokens, dim, vocab, chunk = 2048, 8, 3000, 32
    x, weight = rng.standard_normal((tokens, dim), np.float32), rng.standard_normal((vocab, dim), np.float32)
    targets, d_x, d_weight = rng.integers(0, vocab, tokens), np.empty_like(x), np.zeros_like(weight)
    head_loss(x[:1], weight, targets[:1])  # modules are loaded, Numba has compiled
    tracemalloc.start()
    head_loss(x, weight, targets, d_x=d_x, d_weight=d_weight, chunk=chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * chunk * vocab * 4 < tokens * vocab * 4 / 4


def test_inputs_may_be_read_only_and_strided(rng):
    x, weight, targets = example(rng)
    strided_x, strided_weight = np.repeat(x, 2, axis=0)[::2], weight.T.copy().T
    strided_targets = np.repeat(targets, 3)[::3].astype(np.int32)
    for array in (strided_x, strided_weight, strided_targets):
        array.flags.writeable = False
    assert head_loss(strided_x, strided_weight, strided_targets) == head_loss(x, weight, targets)


def test_another_ignore_index(rng):
    x, weight, targets = example(rng)
    targets[2], targets[5] = 7, 0
    loss = head_loss(x, weight, targets, ignore_index=7)
    assert loss == pytest.approx(expected_loss(x @ weight.T, targets, 7), rel=1e-5)


def test_an_ignore_index_among_unsigned_targets(rng):
    x, weight, targets = example(rng)
    targets[2] = 65535
    expected = head_loss(x, weight, targets, ignore_index=65535)
    assert head_loss(x, weight, targets.astype(np.uint16), ignore_index=65535) == expected
    with pytest.raises(IndexError, match=r"targets\[2\] = 65535 is out of range"):
        head_loss(x, weight, targets.astype(np.uint16))


def bad(**changes):
    """Arguments of a good call with some replaced."""
    good = {"x": np.zeros((3, 2), np.float32), "weight": np.zeros((4, 2), np.float32), "targets": np.array([0, 1, 3])}
    return good | changes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            bad(targets=np.array([-100] * 3)), ValueError,
            "head_loss: targets must hold at least one that counts; got 3 targets, all -100 (ignore_index)",
        ),
        (
            bad(x=np.zeros((0, 2), np.float32), targets=np.zeros(0, np.int64)), ValueError,
            "head_loss: targets must hold at least one that counts; got no targets",
        ),
        (
            bad(targets=np.array([0, 4, 1])), IndexError,
            "head_loss: targets[1] = 4 is out of range; expected 0..3",
        ),
        (
            bad(targets=np.array([0, 1, -1])), IndexError,
            "head_loss: targets[2] = -1 is out of range; expected 0..3",
        ),
        (
            bad(targets=np.array([0, 1])), ValueError,
            "head_loss: targets must be integer [tokens=3]; got int64 (2,)",
        ),
        (
            bad(weight=np.zeros((4, 3), np.float32)), ValueError,
            "head_loss: weight must be float32 [vocab, dim=2]; got float32 (4, 3)",
        ),
        (
            bad(weight=np.zeros((4, 2))), TypeError,
            "head_loss: weight must be float32 [vocab, dim=2]; got float64 (4, 2)",
        ),
        (
            bad(d_x=np.zeros((3, 3), np.float32)), ValueError,
            "head_loss: d_x must be float32 [tokens=3, dim=2]; got float32 (3, 3)",
        ),
        (
            bad(d_weight=np.zeros((4, 2))), TypeError,
            "head_loss: d_weight must be float32 [vocab=4, dim=2]; got float64 (4, 2)",
        ),
        (
            bad(d_weight=np.zeros((2, 4), np.float32).T), ValueError,
            "head_loss: d_weight is written in place and must be C-contiguous; got strides (4, 16)",
        ),
        (bad(chunk=0), ValueError, "head_loss: chunk must be >= 1; got 0"),
        (bad(chunk=1.5), TypeError, "head_loss: chunk must be an integer; got float"),
        (bad(loss_scale=float("inf")), ValueError, "head_loss: loss_scale must be finite; got inf"),
        (bad(ignore_index=None), TypeError, "head_loss: ignore_index must be an integer; got NoneType"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error) as caught:
        head_loss(**arguments)
    assert str(caught.value) == message


def test_bad_arguments_of_cross_entropy_are_named():
    with pytest.raises(ValueError, match="cross_entropy: targets must hold at least one that counts"):
        cross_entropy(np.zeros((1, 3), np.float32), np.array([-100]))
    with pytest.raises(IndexError, match=r"cross_entropy: targets\[0\] = 3 is out of range; expected 0..2"):
        cross_entropy(np.zeros((1, 3), np.float32), np.array([3]))
