"""Dense stages: forward by its formula, gradients against slopes in float64, first values as the files have them."""

import numpy as np
import pytest
from pair_models import made_pairs, write_random_encoder
from safetensors.numpy import load_file
from tiny_encoders import write_dense, write_json, write_modules
from tolerances import assert_gradient_matches, central_differences

import fastmixer as fm
from fastmixer.model.parameters import Parameters
from fastmixer.train.dense import DenseStages, first_values
from fastmixer.weights.encoder_recipe import DenseStage


class Stored:
    """What a StoredTensor is asked for."""

    def __init__(self, values):
        self._values = values

    def values(self):
        return self._values


def make(rng, activations, widths, adds_input=False):
    """(stages, their parameters in float64); the first stage has no bias."""
    stages = [
        DenseStage(
            Stored(rng.standard_normal((outputs, inputs))), Stored(rng.standard_normal(outputs)) if index else None,
            activation, adds_input,
            Stored(rng.standard_normal((outputs, inputs))) if adds_input and inputs != outputs else None,
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


def test_a_stage_may_add_its_input(rng):
    stages, parameters = make(rng, ("tanh", "none"), (5, 5, 3), adds_input=True)
    assert [name for name in parameters if "residual" in name] == ["dense.1.residual.weight"]
    x = rng.standard_normal((6, 5))
    hidden = np.tanh(x @ parameters["dense.0.weight"].T) + x
    expected = hidden @ (parameters["dense.1.weight"] + parameters["dense.1.residual.weight"]).T
    np.testing.assert_allclose(stages.forward(x), expected + parameters["dense.1.bias"], rtol=1e-12)


@pytest.mark.parametrize("adds_input", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "none", "relu", "gelu", "silu"])
def test_gradients_are_slopes(rng, activation, adds_input):
    stages, parameters = make(rng, (activation, "tanh"), (5, 5, 3), adds_input)
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


def test_what_adds_its_input_is_written_as_it_was_trained(tmp_path):
    model = write_random_encoder(tmp_path / "model")
    write_modules(model, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense"))
    write_dense(model, "2_Dense", 32, 32, use_residual=True)
    write_dense(model, "3_Dense", 32, 12, use_residual=True)
    options = {"batch": 8, "steps": 3, "dropout": 0, "holdout": 0, "progress": False}
    trainer = fm.EmbedderTrainer(model, made_pairs(40), out=tmp_path / "tuned", **options)
    trainer.fit()
    before, after = (load_file(folder / "3_Dense" / "model.safetensors") for folder in (model, tmp_path / "tuned"))
    assert set(before) == set(after) and (before["residual.weight"] != after["residual.weight"]).any()
    vectors = trainer.vectors(trainer.pairs, trainer.pairs.anchors[:8])
    found = fm.load(tmp_path / "tuned", weights="float32").embed([pair[0] for pair in made_pairs(40)[:8]])
    assert ((found * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)).min() >= 0.99999


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"pooling_mode": "weightedmean"}, "pooling must be one of mean, cls, max, last to train it; got weightedmean"),
        ({"pooling_mode": ["mean", "cls"]}, "got mean[+]cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, "got mean without the prompt"),
    ],
)
def test_poolings_without_a_way_back_are_not_trained(tmp_path, fields, match):
    model = write_random_encoder(tmp_path / "model")
    write_json(model / "1_Pooling" / "config.json", fields)
    with pytest.raises(ValueError, match=f"{match}$"):
        fm.EmbedderTrainer(model, made_pairs(8), out=tmp_path / "tuned")
