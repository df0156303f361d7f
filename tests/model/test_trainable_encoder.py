"""An encoder's hidden states against what it is loaded for, its gradients against slopes in float64, and every
implementation against the reference; what freezes, what rounds, what is refused."""

from itertools import pairwise

import numpy as np
import pytest
from tiny_encoders import TINY

from fastmixer.kernels import threads
from fastmixer.kernels.select import use_kernels
from fastmixer.model import precision
from fastmixer.model.trainable_encoder import TrainableEncoder
from fastmixer.weights.encoder_folder import open_encoder

NAMES = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "modernbert")
HIDDEN_DIFFERENCE = 1e-5  # float32 against transformers' float32; measured 3e-6
GRADIENT_SHARE = 2e-5  # of a tensor's largest gradient, float32 against float64; measured 4e-6
LOSS_SHARE = 1e-5  # of what a sum of random signs comes to
BFLOAT16_SHARE = 0.1
STEP = 1e-5  # of central differences
SLOPE_SHARE = 1e-6  # of a tensor's largest gradient
SAMPLES = 3  # places a tensor
STARTS = np.array([0, 3, 4, 17, 17 + 40])
FEW = np.array([0, 3, 4, 11])


def encoder(name="bert", **options):
    source = open_encoder(TINY / name)
    return TrainableEncoder(source.config, source.tensors, **options)


def batch(config, starts=STARTS):
    """(ids, token types or None) of these sequences."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab, starts[-1])
    return ids, rng.integers(0, config.token_types, starts[-1]) if config.token_types > 1 else None


def loss_of(model, starts=STARTS, **options):
    """(a loss that weighs every number of the hidden states by its own amount, the weights)."""
    ids, types = batch(model.config, starts)
    weights = np.random.default_rng(1).standard_normal((len(ids), model.config.dim)).astype(model.dtype)
    return float((model.forward(ids, starts, types, **options) * weights).sum()), weights


def run(model, starts=STARTS, **options):
    """(that loss, every gradient)."""
    model.parameters.zero_gradients()
    loss, weights = loss_of(model, starts, **options)
    model.backward(weights)
    return loss, {name: model.parameters.gradient(name).copy() for name in model.parameters}


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_those_of_transformers(name, implementation):
    model, goldens = encoder(name), np.load(TINY / name / "goldens.npz")
    ids, expected, types = (
        np.concatenate([goldens[f"{what}_9"], goldens[f"{what}_45"]]) for what in ("ids", "hidden", "types")
    )
    starts = np.array([0, 9, 54])
    with use_kernels(implementation):
        for hidden in (model.forward(ids, starts, types), model.infer(ids, starts, types)):
            assert np.abs(hidden - expected).max() <= HIDDEN_DIFFERENCE


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_out_as_they_went_in(name):
    source = open_encoder(TINY / name)
    tensors = TrainableEncoder(source.config, source.tensors).tensors()
    assert list(tensors) == list(source.tensors)
    for key, tensor in tensors.items():
        assert tensor.flags.c_contiguous and (tensor == source.tensors[key].values()).all(), key


@pytest.mark.parametrize(
    ("name", "rate"),
    [("bert", 0.0), ("bert", 0.3), ("roberta", 0.0), ("mpnet", 0.0), ("mpnet", 0.3), ("modernbert", 0.0), ("modernbert", 0.3)],
)
def test_gradients_are_slopes(name, rate):
    rng, how = np.random.default_rng(2), {"dropout_rate": rate, "dropout_seed": 5}
    with use_kernels("reference"):
        model = encoder(name, dtype="float64")
        _, gradients = run(model, FEW, **how)
        assert {key for key, gradient in gradients.items() if not gradient.any()} == set()
        for key, gradient in gradients.items():
            weights, flat = model.parameters[key].reshape(-1), gradient.reshape(-1)
            used = np.flatnonzero(flat)
            for place in [*rng.choice(used, min(SAMPLES, len(used)), replace=False), rng.integers(weights.size)]:
                before, losses = weights[place], []
                for change in (STEP, -STEP):
                    weights[place] = before + change
                    losses.append(loss_of(model, FEW, **how)[0])
                weights[place] = before
                slope = (losses[0] - losses[1]) / (2 * STEP)
                assert abs(slope - flat[place]) <= SLOPE_SHARE * max(1, np.abs(flat).max()), (key, place)


@pytest.mark.parametrize(("name", "rate"), [("bert", 0.0), ("bert", 0.2), ("mpnet", 0.2), ("modernbert", 0.2)])
def test_every_implementation_against_float64(implementation, name, rate):
    how = {"dropout_rate": rate, "dropout_seed": 7}
    with use_kernels("reference"):
        loss, gradients = run(encoder(name, dtype="float64"), **how)
    with use_kernels(implementation):
        found, found_gradients = run(encoder(name), **how)
    terms = STARTS[-1] * encoder(name).config.dim  # of the loss, each about as large as 1, of either sign
    assert abs(found - loss) <= LOSS_SHARE * terms**0.5
    for key, gradient in gradients.items():
        difference = np.abs(found_gradients[key] - gradient).max()
        assert difference <= GRADIENT_SHARE * np.abs(gradient).max(), key


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_the_number_of_threads_changes_no_bit(name):
    found = []
    for count in (1, 2, 3):
        threads.set_threads(count)
        found.append(run(encoder(name), dropout_rate=0.1, dropout_seed=3))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        assert all((gradients[name] == found[0][1][name]).all() for name in gradients)


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_gradients_add_up_and_sequences_are_apart(name):
    model = encoder(name)
    ids, types = batch(model.config)
    whole, (_, gradients) = model.forward(ids, STARTS, types).copy(), run(model)
    weights = np.random.default_rng(1).standard_normal((len(ids), model.config.dim)).astype(np.float32)
    model.parameters.zero_gradients()
    for start, stop in pairwise(STARTS):
        own_types = None if types is None else types[start:stop]
        alone = model.forward(ids[start:stop], np.array([0, stop - start]), own_types)
        np.testing.assert_allclose(alone, whole[start:stop], atol=1e-5)
        model.backward(weights[start:stop].copy())
    for key, gradient in gradients.items():
        difference = np.abs(model.parameters.gradient(key) - gradient).max()
        assert difference <= GRADIENT_SHARE * np.abs(gradient).max(), key


def test_frozen_embeddings_are_no_parameters():
    free, frozen = encoder(), encoder(freeze_embeddings=True)
    gone = {name for name in free.parameters if name not in frozen.parameters}
    assert gone == {
        "embedding.weight", "positions.weight", "token_types.weight", "embedding_norm.weight", "embedding_norm.bias",
    }  # fmt: skip
    (loss, gradients), (frozen_loss, frozen_gradients) = run(free), run(frozen)
    assert frozen_loss == loss
    assert all((frozen_gradients[name] == gradients[name]).all() for name in frozen_gradients)
    tensors = frozen.tensors()
    assert all((tensors[name] == free.tensors()[name]).all() for name in tensors)


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_bfloat16_is_near(name):
    _, gradients = run(encoder(name))
    _, rounded = run(encoder(name, precision="bfloat16", force_precision=True))
    for key, gradient in gradients.items():
        assert np.linalg.norm(rounded[key] - gradient) <= BFLOAT16_SHARE * np.linalg.norm(gradient), key
    assert (rounded["layers.0.attention.qkv.weight"] != gradients["layers.0.attention.qkv.weight"]).any()


def test_bfloat16_without_instructions_is_float32(monkeypatch):
    monkeypatch.setattr(precision, "is_fast", lambda: False)
    with pytest.warns(RuntimeWarning, match=r"precision 'bfloat16' has no instructions here .* force_precision=True computes it"):
        assert encoder(precision="bfloat16").precision == "float32"
    assert encoder(precision="bfloat16", force_precision=True).precision == "bfloat16"
    with pytest.raises(ValueError, match="^TrainableEncoder: precision must be one of 'float32', 'bfloat16'; got 'half'$"):
        encoder(precision="half")


def test_what_is_called_wrongly():
    model = encoder()
    ids, _ = batch(model.config)
    with pytest.raises(ValueError, match="backward: a forward must come first; each is good for one backward"):
        model.backward(np.zeros((4, 32), np.float32))
    model.forward(ids, STARTS)
    model.infer(ids, STARTS)
    with pytest.raises(ValueError, match="backward: a forward must come first"):
        model.backward(np.zeros((len(ids), 32), np.float32))
    with pytest.raises(IndexError, match=r"embedding: ids\[1\] = 96 is out of range; expected 0\.\.95"):
        model.forward(np.array([1, 96]), np.array([0, 2]))
    with pytest.raises(IndexError, match=r"add_positions: positions\[64\] = 64 is out of range; expected 0\.\.63"):
        model.forward(np.ones(65, np.int64), np.array([0, 65]))
    with pytest.raises(ValueError, match="forward: dropout_rate must be >= 0 and < 1; got 1"):
        model.forward(ids, STARTS, dropout_rate=1)
