"""Training in bfloat16: gradients near float32's, losses that follow float32's, resumes bit for bit."""

import json

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.data import write_dataset
from fastmixer.kernels.levels import MULTIPLY_BFLOAT16
from fastmixer.kernels.select import implementations, use_kernels
from fastmixer.model import ModelConfig
from fastmixer.ops.bfloat16 import round_weight
from fastmixer.text.assets import alice_text

GRADIENT_SHARE = 0.05  # of the gradients' norm, tensor by tensor; measured 0.02
GRADIENT_REST = 2e-3  # of the norm of all, for tensors whose gradients are a rest of larger ones
LOSS_DIFFERENCE = 0.05  # nats, between the two loss curves, each a mean of 20 steps; measured 0.01


def _pair(config, **options):
    return [
        fm.Transformer(config, seed=1, precision=precision, force_precision=True, **options)
        for precision in ("float32", "bfloat16")
    ]


def test_gradients_are_near_those_of_float32(kind, implementation, small, batch_for):
    config = small(kind, dim=32, hidden=64)
    ids, targets = batch_for(config, time=12)
    with use_kernels(implementation):
        plain, rounded = _pair(config)
        losses = [model.forward_backward(ids, targets, dropout_seed=3) for model in (plain, rounded)]
        assert losses[0] == pytest.approx(losses[1], abs=0.01) and losses[0] != losses[1]
        assert np.abs(plain.logits(ids) - rounded.logits(ids)).max() < 0.01
    rest = GRADIENT_REST * np.linalg.norm(plain.parameters.gradients_data)
    for name in plain.parameters:
        expected = plain.parameters.gradient(name)
        error = np.linalg.norm(rounded.parameters.gradient(name) - expected)
        assert error <= GRADIENT_SHARE * np.linalg.norm(expected) + rest, name


def test_the_optimizer_keeps_the_copies_fresh(small, batch_for):
    config = small("llama")
    model = _pair(config)[1]
    optimizer = fm.AdamW(model.parameters, 1e-2)
    ids, targets = batch_for(config)
    for _ in range(3):
        model.forward_backward(ids, targets)
        optimizer.step()
    names = [name for name in model.parameters if model.parameters.rounded(name) is not None]
    assert len(names) == 2 * 5 + 1 and "head.weight" in names and "embedding.weight" not in names
    for name in names:
        fresh = round_weight(model.parameters[name])
        assert all(np.array_equal(a, b) for a, b in zip(fresh, model.parameters.rounded(name), strict=True))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gated-biases"])
def test_update_segments_cover_everything_once(small, kind):
    parameters = _pair(small(kind))[1].parameters
    seen = np.zeros(parameters.size, int)
    for start, stop, decayed, name in parameters.update_segments():
        seen[start:stop] += 1
        names = {parameters.locate(start)} if name else {parameters.locate(i) for i in range(start, stop)}
        assert all(parameters.decayed(n) == decayed or parameters.rounded(n) is not None for n in names)
        assert name is None or parameters[name].size == stop - start
    assert (seen == 1).all()


def test_the_same_bits_on_any_number_of_threads(small, batch_for):
    config = small("llama", dim=48, hidden=96, context=40)
    ids, targets = batch_for(config, batch=3, time=37)
    results = []
    for threads in (1, 2, 4):
        fm.set_threads(threads)
        model = _pair(config)[1]
        results.append((model.forward_backward(ids, targets), model.parameters.gradients_data.copy()))
    assert all(other[0] == results[0][0] and np.array_equal(other[1], results[0][1]) for other in results[1:])


def test_where_there_are_no_instructions_it_says_so_and_takes_float32(small):
    level = next((i for i in implementations("matmul") if i.startswith("native") and not i.endswith(MULTIPLY_BFLOAT16)), "jit")
    with use_kernels(level):
        with pytest.warns(RuntimeWarning, match="precision 'bfloat16' has no instructions here"):
            assert fm.Transformer(small(), precision="bfloat16").precision == "float32"
        assert fm.Transformer(small(), precision="bfloat16", force_precision=True).precision == "bfloat16"
    with pytest.raises(ValueError, match="Transformer: precision must be one of 'float32', 'bfloat16'; got 'half'"):
        fm.Transformer(small(), precision="half")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(tokenizer, dataset) of some pages of Alice."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "pages.txt").write_text(alice_text()[:40_000], encoding="utf-8")
    tokenizer = fm.train_tokenizer(alice_text()[:40_000], "bpe", 400)
    return tokenizer, write_dataset(folder / "pages.txt", tokenizer, folder / "data")


def _train(text, folder, precision, steps, **settings):
    tokenizer, data = text
    config = ModelConfig(vocab=tokenizer.vocab_size, context=32, dim=64, layers=2, heads=4)
    model = fm.Transformer(config, seed=0, tokenizer=tokenizer, precision=precision, force_precision=True)
    options = {"batch": 4, "time": 32, "learning_rate": 3e-3, "warmup": 10, "evaluate_every": 0, "save_every": 0, **settings}
    return fm.Trainer(model, tokenizer, data, folder=folder, steps=steps, progress=False, **options)


def test_the_loss_falls_as_in_float32(text, tmp_path):
    """Real text, the same batches: a smaller form of benchmarks/bfloat16_loss.py."""
    curves = []
    for precision in ("float32", "bfloat16"):
        losses = [loss for _, loss in _train(text, tmp_path / precision, precision, 120).fit().losses]
        curves.append(np.reshape(losses, (-1, 20)).mean(axis=1))
    assert curves[0][-1] < curves[0][0] - 0.4
    assert np.abs(curves[0] - curves[1]).max() < LOSS_DIFFERENCE and (curves[0] != curves[1]).any()


@pytest.mark.filterwarnings("ignore:precision 'bfloat16' has no instructions here")  # and a run goes on in float32
def test_a_resumed_run_makes_the_same_bits(text, tmp_path):
    straight = _train(text, tmp_path / "straight", "bfloat16", 8)
    straight.fit()
    first = _train(text, tmp_path / "stopped", "bfloat16", 8, save_every=3)
    one_step = first._one_step

    def stopping():
        first._interrupted = first.step + 1 == 3
        return one_step()

    first._one_step = stopping
    assert first.fit().step == 3
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["model"]["precision"] == "bfloat16"
    with use_kernels(implementations("matmul")[2]):  # the best level: where it lacks bfloat16, resuming in it would warn
        second = fm.Trainer.resume(tmp_path / "stopped", progress=False)
        if second.model.precision == "bfloat16":
            second.fit()
            assert np.array_equal(second.model.parameters.data, straight.model.parameters.data)
