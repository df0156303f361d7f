"""Checkpointed activations: the same bits in far less memory."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.data import write_dataset
from fastmixer.kernels.select import use_kernels
from fastmixer.text.assets import alice_text

DROPOUT_SEED = 11
MOST_MEMORY = 0.4  # of what a step takes above weights and gradients when every layer's activations are kept


def _model(config, **options):
    """Weights large enough that every part of the model matters."""
    model = fm.Transformer(config, **options)
    rng = np.random.default_rng(0)
    for name in model.parameters:
        view = model.parameters[name]
        view[...] = rng.standard_normal(view.shape) * 0.3 + (name.endswith("norm.weight"))
    model.parameters.round()
    return model


def _step(model, ids, targets):
    loss = model.forward_backward(ids, targets, dropout_seed=DROPOUT_SEED)
    rows = {name: sparse.to_dense() for name, sparse in model.parameters.sparse().items()}
    return loss, model.parameters.gradients_data.copy(), rows


def _assert_same_bits(found, expected):
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    assert found[2].keys() == expected[2].keys()
    assert all(np.array_equal(found[2][name], rows) for name, rows in expected[2].items())


@pytest.mark.parametrize("layers", [1, 3])
def test_every_kind_gives_the_same_bits(kind, implementation, small, batch_for, layers):
    config = small(kind, layers=layers)
    ids, targets = batch_for(config)
    with use_kernels(implementation):
        kept, checkpointed = (_model(config, checkpoint_activations=on) for on in (False, True))
        _assert_same_bits(_step(checkpointed, ids, targets), _step(kept, ids, targets))
        assert checkpointed.loss(ids, targets) == kept.loss(ids, targets)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"precision": "bfloat16", "force_precision": True}),
        ("dropout", {"precision": "bfloat16", "force_precision": True}),
        ("llama", {"sparse_embedding": True}),
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_option_gives_the_same_bits(small, batch_for, kind, options, threads):
    config = small(kind, layers=3, dim=48, hidden=96, context=40)
    ids, targets = batch_for(config, batch=3, time=37)
    fm.set_threads(threads)
    kept, checkpointed = (_model(config, checkpoint_activations=on, **options) for on in (False, True))
    _assert_same_bits(_step(checkpointed, ids, targets), _step(kept, ids, targets))


def test_it_may_change_between_steps_and_shapes(small, batch_for):
    config = small("dropout", layers=3)
    kept, changing = _model(config), _model(config)
    optimizers = [fm.AdamW(model.parameters, 1e-2) for model in (kept, changing)]
    for step, (on, time) in enumerate([(True, 7), (False, 7), (False, 9), (True, 9), (True, 4)]):
        ids, targets = batch_for(config, time=time, seed=step)
        changing.checkpoint_activations = on
        _assert_same_bits(_step(changing, ids, targets), _step(kept, ids, targets))
        assert optimizers[0].step() == optimizers[1].step()
    assert np.array_equal(changing.parameters.data, kept.parameters.data)


def test_looking_inside_sees_the_same(small, batch_for):
    config = small("llama", layers=3)
    ids, targets = batch_for(config)
    kept, checkpointed = (_model(config, checkpoint_activations=on) for on in (False, True))
    for layer in range(3):
        seen = [model.attention_weights(ids[0], layer, 1) for model in (kept, checkpointed)]
        assert np.array_equal(*seen)
    for model in (kept, checkpointed):
        model.parameters["layers.1.feedforward.down.weight"][...] = 3e38  # finite, but not what it makes
        assert model.first_nonfinite(ids, targets) == "layers.1"


@pytest.mark.parametrize("first_half", [False, True])
def test_it_may_change_when_a_run_goes_on(tmp_path, small, first_half):
    text = tmp_path / "page.txt"
    text.write_text(alice_text()[:3000], encoding="utf-8")
    tokenizer = fm.train_tokenizer(alice_text()[:3000], "characters")
    data = write_dataset(text, tokenizer, tmp_path / "data")
    config = small("dropout", layers=3, vocab=tokenizer.vocab_size)
    settings = {"steps": 6, "batch": 2, "time": 8, "accumulate": 2, "save_every": 3, "seed": 5, "progress": False}

    def model(on):
        return fm.Transformer(config, seed=1, tokenizer=tokenizer, checkpoint_activations=on)

    straight = fm.Trainer(model(False), tokenizer, data, folder=tmp_path / "straight", **settings)
    losses = straight.fit().losses
    fm.Trainer(model(first_half), tokenizer, data, folder=tmp_path / "halves", **settings).fit()
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step-00000006")
    as_before = fm.Trainer.resume(tmp_path / "halves", progress=False)
    assert as_before.model.checkpoint_activations is first_half
    second = fm.Trainer.resume(tmp_path / "halves", checkpoint_activations=not first_half, progress=False)
    assert second.fit().losses == losses[3:] and second.model.checkpoint_activations is not first_half
    for found, expected in [
        (second.model.parameters.data, straight.model.parameters.data),
        (second.optimizer.m, straight.optimizer.m),
        (second.optimizer.v, straight.optimizer.v),
    ]:
        assert np.array_equal(found, expected)


# ---- memory ----

MEASURE = """
import sys
import numpy as np
import fastmixer as fm
from fastmixer.train.memory import peak_memory
from fastmixer.model import ModelConfig

config = ModelConfig(vocab=64, context=2048, dim=64, layers=12, heads=4)
model = fm.Transformer(config, checkpoint_activations=sys.argv[1] == "checkpointed")
ids = np.arange(2048).reshape(1, -1) % 64
model.forward_backward(ids[:, :16], ids[:, :16])  # imports, starts threads
before = peak_memory()
model.forward_backward(ids, ids)
print((peak_memory() - before) / 1e6)
"""


def _megabytes(how):
    """How far the peak memory of a new process rises by one long step."""
    found = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    print(f"{how}: {float(found.stdout):.0f} MB")
    return float(found.stdout)


def test_a_step_takes_less_memory():
    kept, checkpointed = _megabytes("kept"), _megabytes("checkpointed")
    config = fm.ModelConfig(vocab=64, context=2048, dim=64, layers=12, heads=4)
    saved = 12 * 2048 * (4 * 64 + config.qkv_width + 2 * config.hidden) * 4 / 1e6  # all that 12 layers keep but out
    assert 0.9 * saved < kept
    assert checkpointed < MOST_MEMORY * kept
