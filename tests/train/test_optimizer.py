"""fm.AdamW against the textbook in float64: decay of matrices only, clipping, zeroed gradients, nothing done on NaN."""

import numpy as np
import pytest

import fastmixer as fm


def _gradients(model, seed, size=1.0):
    gradients = np.random.default_rng(seed).standard_normal(model.parameters.size).astype(np.float32) * size
    model.parameters.gradients_data[:] = gradients
    return gradients.astype(np.float64)


@pytest.mark.parametrize("clip_norm", [None, 1.0, 1e6])
def test_five_steps_equal_the_textbook(new_model, clip_norm):
    model = new_model()
    parameters = model.parameters
    optimizer = fm.AdamW(parameters, 1e-2, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.3, clip_norm=clip_norm)
    decay = np.zeros(parameters.size)
    for start, stop, decayed in parameters.decay_segments():
        decay[start:stop] = 0.3 if decayed else 0.0
    p, m, v = parameters.data.astype(np.float64), 0.0, 0.0
    for step in range(1, 6):
        g = _gradients(model, step)
        norm = np.sqrt((g * g).sum())
        assert optimizer.step() == pytest.approx(norm, rel=1e-6)
        g *= 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        p -= 1e-2 * (m / (1 - 0.8**step) / (np.sqrt(v / (1 - 0.9**step)) + 1e-6) + decay * p)
        assert not parameters.gradients_data.any()
    np.testing.assert_allclose(parameters.data, p, rtol=2e-5, atol=2e-6)
    assert optimizer.step_count == 5


def test_moments_and_count_put_into_another_go_on_bit_for_bit(new_model):
    models = [new_model(), new_model()]
    first, second = (fm.AdamW(model.parameters, 1e-2) for model in models)
    for step in range(3):
        _gradients(models[0], step)
        first.step()
    models[1].parameters.data[:] = models[0].parameters.data
    second.m[:], second.v[:], second.step_count = first.m, first.v, first.step_count
    for step in range(3, 5):
        norms = []
        for model, optimizer in zip(models, (first, second), strict=True):
            _gradients(model, step)
            norms.append(optimizer.step(5e-3))
        assert norms[0] == norms[1]
    for ours, theirs in ((first.m, second.m), (first.v, second.v), (models[0].parameters.data, models[1].parameters.data)):
        assert np.array_equal(ours, theirs)


def test_the_rate_of_a_step_overrides_the_default(new_model):
    moved = []
    for default, rate in ((1e-3, 1e-2), (1e-2, None)):
        model = new_model()
        _gradients(model, 0)
        fm.AdamW(model.parameters, default).step(rate)
        moved.append(model.parameters.data.copy())
    assert np.array_equal(*moved)


def test_only_matrices_decay(new_model):
    parameters = new_model().parameters
    parameters["final_norm.bias"][:] = 0.25
    before = {name: parameters[name].copy() for name in parameters}
    fm.AdamW(parameters, 0.1, weight_decay=0.5).step()  # gradients are zero: what moves, moves by decay
    for name, old in before.items():
        np.testing.assert_allclose(parameters[name], old * (0.95 if old.ndim == 2 else 1.0), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("rate", [float("nan"), -1.0, "x"])
def test_a_rate_that_is_none_changes_nothing(new_model, rate):
    model = new_model()
    optimizer = fm.AdamW(model.parameters)
    _gradients(model, 1)
    before = model.parameters.data.copy()
    with pytest.raises((TypeError, ValueError), match="^AdamW: learning_rate must be"):
        optimizer.step(rate)
    assert optimizer.step_count == 0
    np.testing.assert_array_equal(model.parameters.data, before)


def test_what_is_no_set_of_parameters(new_model):
    with pytest.raises(TypeError, match=r"^AdamW: parameters must be a model's parameters \(model.parameters\); got Transformer$"):
        fm.AdamW(new_model())
    for betas in ((0.9,), (0.9, 0.95, 0.99), 0.9):
        with pytest.raises(ValueError, match="^AdamW: betas must be two numbers, of the first moment and of the second; got"):
            fm.AdamW(new_model().parameters, betas=betas)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(new_model, bad):
    model = new_model()
    optimizer = fm.AdamW(model.parameters)
    _gradients(model, 0)
    model.parameters.gradients_data[7] = bad
    before = model.parameters.data.copy()
    with pytest.raises(FloatingPointError, match=r"^AdamW: the gradients' norm is (nan|inf); nothing was updated$"):
        optimizer.step()
    assert np.array_equal(model.parameters.data, before) and not optimizer.m.any() and optimizer.step_count == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"learning_rate": -1.0}, "AdamW: learning_rate must be >= 0; got -1.0"),
        ({"betas": (0.9, 1.0)}, r"AdamW: betas\[1\] must be >= 0 and < 1; got 1.0"),
        ({"clip_norm": 0.0}, "AdamW: clip_norm must be > 0; got 0.0"),
    ],
)
def test_bad_settings(new_model, options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        fm.AdamW(new_model().parameters, **options)
