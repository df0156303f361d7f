"""Copies and pickles of models that are trained: they go on as the original does, and apart from it."""

import copy
import pickle

import numpy as np
import pytest
from tiny_encoders import TINY

from fastmixer.model.config import ModelConfig
from fastmixer.model.trainable_encoder import TrainableEncoder
from fastmixer.model.transformer import Transformer
from fastmixer.train.optimizer import AdamW
from fastmixer.weights.encoder_folder import open_encoder


def copied(value):
    return copy.deepcopy(value)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("again", [copied, pickled])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_a_copy_with_its_optimizer_learns_as_the_original(rng, again, precision, tied_head):
    config = ModelConfig(vocab=37, context=12, dim=32, layers=2, heads=4, tied_head=tied_head, positions="sinusoidal")
    model = Transformer(config, precision=precision, force_precision=True, sparse_embedding=not tied_head)
    optimizer = AdamW(model.parameters, learning_rate=1e-2)
    rows = rng.integers(0, config.vocab, (3, 9))

    def learn(model, optimizer, steps):
        losses = []
        for _ in range(steps):
            losses.append(model.forward_backward(rows[:, :-1], rows[:, 1:]))
            optimizer.step()
        return losses

    learn(model, optimizer, 2)
    before = model.parameters.data.copy()
    other_model, other_optimizer = again((model, optimizer))
    assert other_optimizer.parameters is other_model.parameters
    losses = learn(other_model, other_optimizer, 3)
    np.testing.assert_array_equal(model.parameters.data, before)  # the original stands still
    assert learn(model, optimizer, 3) == losses and losses[-1] < losses[0]
    np.testing.assert_array_equal(model.parameters.data, other_model.parameters.data)
    assert other_model.parameters.data.ctypes.data % 64 == 0


@pytest.mark.parametrize("again", [copied, pickled])
def test_gradients_go_with_a_copy(rng, again):
    model = Transformer(ModelConfig(vocab=20, context=8, dim=16, layers=1, heads=2))
    rows = rng.integers(0, 20, (2, 7))
    model.forward_backward(rows[:, :-1], rows[:, 1:])
    other = again(model)
    for name in model.parameters:
        np.testing.assert_array_equal(other.parameters.gradient(name), model.parameters.gradient(name))
        assert np.shares_memory(other.parameters[name], other.parameters.data)
    np.testing.assert_array_equal(other.logits(rows), model.logits(rows))


@pytest.mark.parametrize("again", [copied, pickled])
def test_an_encoder_with_frozen_embeddings(rng, again):
    source = open_encoder(TINY / "bert")
    model = TrainableEncoder(source.config, source.tensors, freeze_embeddings=True)
    optimizer = AdamW(model.parameters, learning_rate=1e-2)
    ids, starts = rng.integers(0, source.config.vocab, 9), np.array([0, 4, 9])

    def learn(model, optimizer):
        for _ in range(2):
            states = model.forward(ids, starts)
            model.backward(np.ones_like(states) + states)
            optimizer.step()
        return model.forward(ids, starts).copy()

    learn(model, optimizer)
    other_model, other_optimizer = again((model, optimizer))
    before = model.forward(ids, starts).copy()
    states = learn(other_model, other_optimizer)
    np.testing.assert_array_equal(model.forward(ids, starts), before)
    np.testing.assert_array_equal(learn(model, optimizer), states)
    assert np.abs(states - before).max() > 1e-3
