"""Logits, loss, every gradient and ten AdamW steps against PyTorch and transformers: stored goldens always, fresh random
models where both are installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.kernels.select import use_kernels
from fastmixer.model import ModelConfig

_spec = importlib.util.spec_from_file_location("make_goldens", Path(__file__).with_name("make_goldens.py"))
make_goldens = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_goldens)

CONFIGS = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": {
        "kv_heads": 2, "hidden": 48, "norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True,
        "bias": False, "tied_head": False,
    },
}  # fmt: skip
LOGITS_DIFFERENCE = 1e-5  # float32 against float32, measured 1.1e-6
LOSS_DIFFERENCE = 2e-6  # measured 5e-7
GRADIENT_SHARE = 2e-5  # of a tensor's largest gradient; measured 8e-7
LOSSES_DIFFERENCE = 1e-4  # after ten steps at a high rate; measured 7e-6


def _model(kind, expected):
    config = ModelConfig(
        vocab=make_goldens.VOCAB, context=make_goldens.CONTEXT, dim=32, layers=make_goldens.LAYERS, heads=4, **CONFIGS[kind]
    )
    model = fm.Transformer(config, seed=None)
    names = {name.removeprefix("weight.") for name in expected if name.startswith("weight.")}
    assert names == set(model.parameters.names)
    for name in names:
        model.parameters[name][...] = expected[f"weight.{name}"]
    return model


def _check(kind, expected):
    model = _model(kind, expected)
    ids, targets = expected["ids"], expected["targets"]
    assert np.abs(model.logits(ids) - expected["logits"]).max() <= LOGITS_DIFFERENCE
    assert abs(model.forward_backward(ids, targets) - expected["loss"]) <= LOSS_DIFFERENCE
    for name in model.parameters:
        gradient = expected[f"gradient.{name}"]
        difference = np.abs(model.parameters.gradient(name) - gradient).max()
        assert difference <= GRADIENT_SHARE * np.abs(gradient).max(), name

    model.parameters.zero_gradients()
    settings = dict(make_goldens.ADAMW)
    optimizer = fm.AdamW(model.parameters, settings.pop("learning_rate"), **settings)
    losses = []
    for _ in range(make_goldens.STEPS):
        losses.append(model.forward_backward(ids, targets))
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=LOSSES_DIFFERENCE)


def _golden(kind):
    with np.load(make_goldens.GOLDENS / f"{kind}.npz") as golden:
        return dict(golden)


@pytest.mark.parametrize("kind", make_goldens.KINDS)
def test_goldens(kind, implementation):
    with use_kernels(implementation):
        _check(kind, _golden(kind))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", make_goldens.KINDS)
def test_fresh_models(kind, seed, implementation):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with use_kernels(implementation):
        _check(kind, make_goldens.oracle(kind, seed))


@pytest.mark.parametrize("kind", make_goldens.KINDS)
def test_the_goldens_are_what_torch_gives(kind):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    again, stored = make_goldens.oracle(kind), _golden(kind)
    assert again.keys() == stored.keys()
    for name, value in again.items():
        np.testing.assert_allclose(stored[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
