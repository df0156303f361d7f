"""Dense stages: forward by its formula, gradients against slopes in float64, first values as the files have them."""

import numpy as np
import pytest
from tolerances import assert_gradient_matches, central_differences

from fastmixer.model.parameters import Parameters
from fastmixer.train.dense import DenseStages, first_values
from fastmixer.weights.encoder_recipe import DenseStage


class Stored:
    """What a StoredTensor is asked for."""

    def __init__(self, values):
        self._values = values

    def values(self):
        return self._values


def make(rng, activations, widths):
    """(stages, their parameters in float64); the first stage has no bias."""
    stages = [
        DenseStage(
            Stored(rng.standard_normal((outputs, inputs))), Stored(rng.standard_normal(outputs)) if index else None,
            activation,
        )
        for index, (activation, inputs, outputs) in enumerate(zip(activations, widths, widths[1:], strict=False))
    ]  # fmt: skip
    first = first_values(stages)
    parameters = Parameters([(name, value.shape) for name, value in first.items()], np.float64)
    for name, value in first.items():
        parameters[name][...] = value
    return DenseStages(stages, parameters), parameters


def test_forward_by_its_formula(rng):
    stages, parameters = make(rng, ("tanh", "none"), (5, 4, 3))
    assert list(parameters) == ["dense.0.weight", "dense.1.weight", "dense.1.bias"]
    x = rng.standard_normal((6, 5))
    hidden = np.tanh(x @ parameters["dense.0.weight"].T)
    expected = hidden @ parameters["dense.1.weight"].T + parameters["dense.1.bias"]
    np.testing.assert_allclose(stages.forward(x), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "none", "relu", "gelu", "silu"])
def test_gradients_are_slopes(rng, activation):
    stages, parameters = make(rng, (activation, "tanh"), (5, 4, 3))
    x, d = rng.standard_normal((6, 5)), rng.standard_normal((6, 3))

    def objective():
        return float((stages.forward(x) * d).sum())

    objective()
    parameters.gradient("dense.1.bias")[...] = 2  # gradients are added to
    d_x = stages.backward(d.copy())
    parameters.gradient("dense.1.bias")[...] -= 2
    assert_gradient_matches(d_x, central_differences(objective, x), name="d_x")
    for name in parameters:
        assert_gradient_matches(parameters.gradient(name), central_differences(objective, parameters[name]), name=name)
