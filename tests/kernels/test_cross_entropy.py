"""Head loss and softmax rows: every implementation against the float64 reference, gradients against differences."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close_to_float64, assert_gradient_matches, central_differences

from fastmixer.kernels.cross_entropy import reference
from fastmixer.kernels.threads import set_threads

SIZES = (1, 7, 8, 15, 16, 17, 31, 32, 33, 127)
IGNORE = -100

relaxed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run_head(module, x, weight, targets, chunk, scale, *, with_d_x=True, with_d_weight=True):
    """losses, d_x, d_weight of the module, whose d_weight starts at 1; everything that is overwritten starts as NaN."""
    logits = np.full((chunk, len(weight)), np.nan, x.dtype)
    losses = np.full(len(x), np.nan, x.dtype)
    d_x = np.full_like(x, np.nan) if with_d_x else None
    d_weight = np.ones_like(weight) if with_d_weight else None
    module.head_loss(x, weight, targets, IGNORE, scale, logits, losses, d_x, d_weight)
    return losses, d_x, d_weight


def run_rows(module, logits, targets, scale, *, in_place=False):
    losses = np.full(len(logits), np.nan, logits.dtype)
    source = logits.copy() if in_place else logits
    d_logits = source if in_place else np.full_like(logits, np.nan)
    module.cross_entropy_rows(source, targets, IGNORE, scale, losses, d_logits)
    return losses, d_logits


def assert_parity(actual, run, *arguments, terms, **options):
    """actual, what run(reference, ...) gives in float32 and in float64 on the same arguments: as near as it must be.

    terms: for each result, by name, the magnitude of the numbers whose difference it is.
    """
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments]
    plain, truth = run(reference, *arguments, **options), run(reference, *wide, **options)
    for (name, size), got, float32, float64 in zip(terms.items(), actual, plain, truth, strict=True):
        if float64 is None:
            assert got is None
        else:
            gradient = name.startswith("d_")
            assert_close_to_float64(got, float32, float64, gradient=gradient, terms=size, name=name)


def make_targets(rng, tokens, vocab, ignored=0.2):
    targets = rng.integers(0, vocab, tokens)
    targets[rng.random(tokens) < ignored] = IGNORE
    targets.flags.writeable = False
    return targets


@relaxed
@given(
    tokens=st.sampled_from((0, *SIZES)), dim=st.sampled_from((0, *SIZES)), vocab=st.sampled_from((*SIZES, 1100)),
    chunk=st.sampled_from((1, 5, 16, 64, 200)), with_d_x=st.booleans(), with_d_weight=st.booleans(),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_head_loss(kernel, tokens, dim, vocab, chunk, with_d_x, with_d_weight, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, dim), np.float32)
    weight = rng.standard_normal((vocab, dim), np.float32) / np.float32(np.sqrt(max(1, dim)))
    x.flags.writeable = weight.flags.writeable = False
    targets = make_targets(rng, tokens, vocab)
    scale = 1 / max(1, tokens)
    arguments = (x, weight, targets, chunk, scale)
    options = {"with_d_x": with_d_x, "with_d_weight": with_d_weight}
    actual = run_head(kernel, *arguments, **options)
    terms = {
        "losses": 1 + np.abs(x @ weight.T).max(initial=0),
        "d_x": scale * np.abs(weight).max(initial=0),
        "d_weight": scale * np.abs(x).max(initial=0),
    }
    assert_parity(actual, run_head, *arguments, terms=terms, **options)
    assert not actual[0][targets == IGNORE].any()
    if with_d_x:
        assert not actual[1][targets == IGNORE].any()


@relaxed
@given(
    rows=st.sampled_from((0, *SIZES)), vocab=st.sampled_from((*SIZES, 1024, 1025, 2500)),
    size=st.sampled_from((1.0, 1e4)), in_place=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_cross_entropy_rows(kernel, rows, vocab, size, in_place, seed):
    rng = np.random.default_rng(seed)
    logits = (size * rng.standard_normal((rows, vocab))).astype(np.float32)
    logits.flags.writeable = False
    targets = make_targets(rng, rows, vocab)
    actual = run_rows(kernel, logits, targets, 0.01, in_place=in_place)
    terms = {"losses": 1.0, "d_logits": 0.01}
    assert_parity(actual, run_rows, logits, targets, 0.01, terms=terms, in_place=in_place)
    # the losses alone are the same losses
    losses = np.full(rows, np.nan, np.float32)
    kernel.cross_entropy_rows(logits, targets, IGNORE, 0.01, losses, None)
    np.testing.assert_allclose(losses, actual[0], rtol=1e-6, atol=1e-6)


@relaxed
@given(
    rows=st.sampled_from((0, *SIZES)), vocab=st.sampled_from((*SIZES, 1025)), size=st.sampled_from((1.0, 1e4)),
    in_place=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_softmax_rows(kernel, rows, vocab, size, in_place, seed):
    def run(module, logits):
        source = logits.copy() if in_place else logits
        out = source if in_place else np.full_like(logits, np.nan)
        module.softmax_rows(source, out)
        return (out,)

    logits = (size * np.random.default_rng(seed).standard_normal((rows, vocab))).astype(np.float32)
    logits.flags.writeable = False
    actual = run(kernel, logits)
    assert_parity(actual, run, logits, terms={"softmax": 0.0})
    np.testing.assert_allclose(actual[0].sum(axis=1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_extreme_logits(kernel):
    logits = np.array(
        [[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -np.inf], [3e38, -3e38, 0]], np.float32
    )  # fmt: skip
    losses, d_logits = run_rows(kernel, logits, np.array([1, 0, 0, 0]), 1.0)
    np.testing.assert_allclose(losses, [2e4, np.log(3), np.log(2), 0], rtol=1e-6)
    thirds = [-2 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(d_logits, [[1, -1, 0], thirds, [-0.5, 0.5, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("column", [0, 20, 36])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_logit_shows_in_its_row_only(kernel, rng, value, column):
    logits = rng.standard_normal((3, 37), np.float32)
    logits[1, column] = value
    losses, d_logits = run_rows(kernel, logits, np.array([4, 5, 6]), 1.0)
    assert np.isnan(losses).tolist() == [False, True, False]
    assert np.isnan(d_logits[1, 5])
    assert np.isfinite(d_logits[[0, 2]]).all()


def test_large_vocabulary(kernel, rng):
    logits = 2 * rng.standard_normal((3, 50304), np.float32)
    targets = np.array([50303, IGNORE, 0])
    actual = run_rows(kernel, logits, targets, 0.5)
    assert_parity(actual, run_rows, logits, targets, 0.5, terms={"losses": 1.0, "d_logits": 0.5})


def test_threads_change_no_bit(kernel, rng):
    x, weight = rng.standard_normal((70, 33), np.float32), rng.standard_normal((1000, 33), np.float32)
    targets = make_targets(rng, 70, 1000)
    results = []
    for threads in (1, 2, 4):
        set_threads(threads)
        results.append(run_head(kernel, x, weight, targets, 32, 1 / 70))
    for result in results[1:]:
        for first, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(first, other)


def test_gradients_are_those_of_central_differences(rng):
    x, weight = rng.standard_normal((5, 4)), rng.standard_normal((6, 4))
    targets, scale = np.array([0, 5, IGNORE, 2, 2]), 0.7

    def loss():
        return scale * run_head(reference, x, weight, targets, 2, scale)[0].sum()

    _, d_x, d_weight = run_head(reference, x, weight, targets, 2, scale)
    assert_gradient_matches(d_x, central_differences(loss, x), name="d_x")
    assert_gradient_matches(d_weight - 1, central_differences(loss, weight), name="d_weight")


def test_gradient_of_logits_is_that_of_central_differences(rng):
    logits, targets = rng.standard_normal((4, 7)), np.array([6, IGNORE, 0, 3])
    _, d_logits = run_rows(reference, logits, targets, 0.3)
    numeric = central_differences(lambda: 0.3 * run_rows(reference, logits, targets, 0.3)[0].sum(), logits)
    assert_gradient_matches(d_logits, numeric, name="d_logits")
