"""The whole model: every implementation against the reference, the reference against central differences in float64."""

import re

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.kernels.select import use_kernels
from fastmixer.model import ModelConfig

DROPOUT_SEED = 11
LOGITS_DIFFERENCE = 1e-5  # float32 against float64; measured 1.7e-6
GRADIENT_SHARE = 2e-5  # of a tensor's largest gradient; measured 1.7e-6
STEP = 1e-4  # of central differences; errors are of order STEP**2
SLOPE_SHARE = 2e-6  # of the largest gradient; measured 6e-7
SAMPLES = 6  # places a tensor


def _random(model, seed=0):
    """Weights large enough that every part of the model matters."""
    rng = np.random.default_rng(seed)
    for name in model.parameters:
        view = model.parameters[name]
        view[...] = rng.standard_normal(view.shape) * 0.3 + (name.endswith("norm.weight"))
    return model


def _gradients(model, ids, targets):
    model.parameters.zero_gradients()
    loss = model.forward_backward(ids, targets, dropout_seed=DROPOUT_SEED)
    return loss, {name: model.parameters.gradient(name).copy() for name in model.parameters}


def test_every_implementation_against_float64(kind, implementation, small, batch_for):
    config = small(kind)
    ids, targets = batch_for(config)
    with use_kernels("reference"):
        truth = _random(fm.Transformer(config, dtype="float64"))
        logits, (loss, gradients) = truth.logits(ids), _gradients(truth, ids, targets)
    with use_kernels(implementation):
        model = _random(fm.Transformer(config))
        assert np.abs(model.logits(ids) - logits).max() <= LOGITS_DIFFERENCE
        found, model_gradients = _gradients(model, ids, targets)
    assert found == pytest.approx(loss, abs=2e-6)
    for name, gradient in gradients.items():
        assert np.abs(model_gradients[name] - gradient).max() <= GRADIENT_SHARE * np.abs(gradient).max(), name


def test_gradients_are_slopes(kind, small, batch_for):
    config = small(kind)
    ids, targets = batch_for(config)
    rng = np.random.default_rng(1)
    with use_kernels("reference"):
        model = _random(fm.Transformer(config, dtype="float64"))
        _, gradients = _gradients(model, ids, targets)
        for name, gradient in gradients.items():
            weights = model.parameters[name].reshape(-1)
            used = np.flatnonzero(gradient.reshape(-1))
            for place in [*rng.choice(used, min(SAMPLES, len(used)), replace=False), rng.integers(weights.size)]:
                before = weights[place]
                losses = []
                for change in (STEP, -STEP):
                    weights[place] = before + change
                    losses.append(model.forward_backward(ids, targets, dropout_seed=DROPOUT_SEED))
                weights[place] = before
                slope = (losses[0] - losses[1]) / (2 * STEP)
                limit = SLOPE_SHARE * max(1, np.abs(gradient).max())
                assert abs(slope - gradient.reshape(-1)[place]) <= limit, (name, place)


def test_gradients_add_up_and_scale(small, batch_for, implementation):
    config = small("llama")
    ids, targets = batch_for(config)
    with use_kernels(implementation):
        model = fm.Transformer(config)
        model.forward_backward(ids, targets)
        once = model.parameters.gradients_data.copy()
        model.forward_backward(ids, targets, loss_scale=0.5)
    np.testing.assert_allclose(model.parameters.gradients_data, 1.5 * once, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stale_gradients_are_written_over(small, batch_for, model_type, precision):
    """What an optimizer leaves behind shows nowhere: bit for bit what zeros give."""
    config = small(model_type)
    ids, targets = batch_for(config)
    gradients = []
    for stale in (False, True):
        model = fm.Transformer(config, precision=precision, force_precision=True)
        if stale:
            for name in model.parameters:
                if model.parameters.is_rewritten(name):
                    model.parameters.gradient(name).fill(np.nan)
            model.parameters.stale = True
        model.forward_backward(ids, targets)
        model.forward_backward(ids, targets, loss_scale=0.5)  # added
        gradients.append(model.parameters.gradients_data.copy())
    np.testing.assert_array_equal(*gradients)


def test_ignored_targets_count_for_nothing(small, batch_for):
    config = small()
    ids, targets = batch_for(config, batch=1, time=6)
    short = fm.Transformer(config).forward_backward(ids[:, :4], targets[:, :4])
    targets[0, 4:] = -100
    assert fm.Transformer(config).forward_backward(ids, targets) == pytest.approx(short, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "sees_order"), [("no-positions", False), ("gpt2", True), ("llama", True), ("sinusoidal", True)]
)
def test_only_positions_tell_orders_apart(small, kind, sees_order):
    """The last token looks at all others: without positions it cannot know in which order they stand."""
    model = _random(fm.Transformer(small(kind, layers=1)))
    rng = np.random.default_rng(2)
    ids = rng.integers(0, model.config.vocab, (1, 8))
    permuted = np.concatenate([rng.permutation(ids[0, :-1]), ids[0, -1:]])[None]
    difference = np.abs(model.logits(ids)[0, -1] - model.logits(permuted)[0, -1]).max()
    assert difference > 1e-3 if sees_order else difference < 1e-5


def test_no_token_sees_what_comes_after_it(kind, small):
    config = small(kind)
    model = _random(fm.Transformer(config))
    ids = np.random.default_rng(3).integers(0, config.vocab, (1, 9))
    changed = ids.copy()
    changed[0, 5:] = (changed[0, 5:] + 1) % config.vocab
    np.testing.assert_allclose(model.logits(ids)[0, :5], model.logits(changed)[0, :5], atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_thirty_six_layers_train(small, batch_for, kind):
    config = small(kind, layers=36, dim=16)
    model = fm.Transformer(config, seed=0)
    optimizer = fm.AdamW(model.parameters, 3e-3)
    ids, targets = batch_for(config, batch=4, time=12)
    losses, norms = [], []
    for _ in range(80):
        losses.append(model.forward_backward(ids, targets))
        norms.append(optimizer.step())
    assert np.isfinite(losses).all() and np.isfinite(model.parameters.data).all()
    assert losses[0] == pytest.approx(np.log(config.vocab), abs=0.3) and losses[-1] < 0.5 * losses[0]
    assert max(norms) < 50


def test_any_number_of_threads_makes_the_same_bits(kind, small, batch_for):
    config = small(kind, dim=48, hidden=96, context=40)
    ids, targets = batch_for(config, batch=3, time=37)
    results = []
    for threads in (1, 2, 4):
        fm.set_threads(threads)
        model = _random(fm.Transformer(config))
        loss = model.forward_backward(ids, targets, dropout_seed=DROPOUT_SEED)
        results.append((loss, model.logits(ids), model.parameters.gradients_data.copy()))
    for other in results[1:]:
        assert other[0] == results[0][0]
        assert np.array_equal(other[1], results[0][1]) and np.array_equal(other[2], results[0][2])


def test_dropout_is_a_function_of_its_seed(small, batch_for):
    config = small("dropout")
    ids, targets = batch_for(config)
    model = _random(fm.Transformer(config))
    loss = {seed: model.forward_backward(ids, targets, dropout_seed=seed) for seed in (1, 2, None)}
    assert loss[1] == model.forward_backward(ids, targets, dropout_seed=1) != loss[2]
    assert loss[None] == pytest.approx(model.loss(ids, targets), abs=1e-6) and loss[None] != loss[1]


def test_what_the_head_reads(small, batch_for):
    config = small("llama")
    model = fm.Transformer(config)
    ids, targets = batch_for(config)
    hidden = model.hidden(ids)
    assert hidden.shape == (*ids.shape, config.dim) and hidden.dtype == np.float32
    np.testing.assert_allclose(hidden @ model.parameters["head.weight"].T, model.logits(ids), atol=1e-6)
    logits = model.logits(ids)
    log_share = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = targets != -100
    expected = -np.take_along_axis(log_share, np.where(counted, targets, 0)[..., None], -1)[..., 0][counted].mean()
    assert model.loss(ids, targets) == pytest.approx(expected, abs=1e-6)


def test_attention_weights_are_shares_of_what_came_before(small):
    model = _random(fm.Transformer(small("llama")))
    weights = model.attention_weights(np.arange(7), layer=1, head=3)
    assert weights.shape == (7, 7) and not np.triu(weights, 1).any()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "place"),
    [("layers.1.feedforward.up.weight", "parameter layers.1.feedforward.up.weight"), ("embedding.weight", "parameter embedding.weight")],
)  # fmt: skip
def test_first_nonfinite_names_a_parameter(small, batch_for, name, place):
    model = fm.Transformer(small())
    ids, targets = batch_for(model.config)
    assert model.first_nonfinite(ids, targets) is None
    model.parameters[name][0, 0] = np.inf
    assert model.first_nonfinite(ids, targets) == place


def test_first_nonfinite_names_a_layer_or_a_gradient(small, batch_for):
    model = fm.Transformer(small())
    ids, targets = batch_for(model.config)
    model.parameters.gradient("layers.0.attention.qkv.weight")[1, 1] = np.nan
    assert model.first_nonfinite(ids, targets) == "gradient of layers.0.attention.qkv.weight"
    model.parameters["layers.1.feedforward.down.weight"][...] = 3e38  # finite, but not what it makes
    model.parameters["layers.1.feedforward.up.bias"][...] = 1e10
    assert model.first_nonfinite(ids, targets) == "layers.1"


IDS = np.zeros((2, 5), np.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.logits(np.array([[0, 1], [23, 2]])), IndexError, "hidden: ids[1, 0] = 23 is out of range; expected 0..22"),
        (lambda m: m.logits(IDS[0]), ValueError, "hidden: ids must be integer [batch, time]; got int64 (5,)"),
        (lambda m: m.logits(IDS.astype(np.float32)), TypeError, "hidden: ids must be integer [batch, time]; got float32 (2, 5)"),
        (lambda m: m.logits(np.zeros((1, 13), int)), ValueError, "hidden: 13 tokens are more than the model's context of 12"),
        (lambda m: m.logits(IDS[:0]), ValueError, "hidden: ids must hold at least one token; got (0, 5)"),
        (lambda m: m.loss(IDS, IDS[:1]), ValueError, "loss: targets must be integer [batch=2, time=5]; got int64 (1, 5)"),
        (lambda m: m.loss(IDS, IDS - 1), IndexError, "loss: targets[0, 0] = -1 is out of range; expected 0..22"),
        (lambda m: m.loss(IDS, IDS - 100), ValueError, "loss: targets must hold at least one that counts; all are -100"),
        (lambda m: m.forward_backward(IDS, IDS, dropout_seed=-1), ValueError, "forward_backward: dropout_seed must be in [0, 2^64); got -1"),
        (lambda m: m.attention_weights(IDS[0], 2, 0), ValueError, "attention_weights: layer must be 0..1; got 2"),
        (lambda m: m.nearest_tokens("a"), ValueError, "nearest_tokens: the model has no tokenizer; give one to Transformer(..., tokenizer=...)"),
    ],
)  # fmt: skip
def test_bad_input(small, call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(fm.Transformer(small()))


def test_nearest_tokens():
    tokenizer = fm.train_tokenizer("a b c d e f", "characters")
    model = fm.Transformer(ModelConfig(vocab=tokenizer.vocab_size, context=4, dim=8, layers=1, heads=2), tokenizer=tokenizer)
    table = model.parameters["embedding.weight"]
    table[tokenizer.token_to_id("c")] = 2 * table[tokenizer.token_to_id("a")]
    (piece, similarity), *others = model.nearest_tokens("a", k=3)
    assert piece == "c" and similarity == pytest.approx(1) and len(others) == 2
    assert "a" not in [piece for piece, _ in others]
    with pytest.raises(ValueError, match="text must be one piece; 'ab' is 2"):
        model.nearest_tokens("ab")
