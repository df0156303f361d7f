"""Model folders: what is saved comes back bit for bit; what is damaged is named; nothing else is ever deleted."""

import errno
import json
import os
import re

import numpy as np
import pytest
import safetensors

import fastmixer as fm
from fastmixer.model import ModelConfig
from fastmixer.weights import files
from fastmixer.weights.folder import write_tensors

CONFIG = {"context": 8, "dim": 16, "layers": 1, "heads": 2, "kv_heads": 1, "positions": "rotary"}


@pytest.fixture
def model():
    tokenizer = fm.train_tokenizer("the cat sat on the mat", "words")
    return fm.Transformer(ModelConfig(vocab=tokenizer.vocab_size, **CONFIG), seed=2, tokenizer=tokenizer)


@pytest.fixture
def folder(tmp_path, model):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(folder, model):
    again = fm.Transformer.load(folder)
    assert again.config == model.config and again.tokenizer.to_json() == model.tokenizer.to_json()
    assert np.array_equal(again.parameters.data, model.parameters.data)
    assert again.generate("the cat", temperature=0) == model.generate("the cat", temperature=0)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_saving_again_replaces(folder, model):
    model.parameters["final_norm.weight"][...] = 2
    model.save(folder)
    assert (fm.Transformer.load(folder).parameters["final_norm.weight"] == 2).all()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_full_disk_leaves_the_old_model(folder, model, monkeypatch):
    before = fm.Transformer.load(folder).parameters.data.copy()
    model.parameters.data[:] = 7

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space left on device"):
        model.save(folder)
    monkeypatch.undo()
    assert np.array_equal(fm.Transformer.load(folder).parameters.data, before)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_nothing_else_is_deleted(tmp_path, model):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.txt', which is no part of a model; choose another folder"):
        model.save(tmp_path)
    with pytest.raises(FileExistsError, match="is a file; a model is saved as a folder"):
        model.save(tmp_path / "thesis.txt")


def test_a_model_without_a_tokenizer(tmp_path):
    fm.Transformer(ModelConfig(vocab=9, **CONFIG)).save(tmp_path / "bare")
    assert fm.load(tmp_path / "bare").tokenizer is None


def _config(folder, **changes):
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def _tensors(folder, change):
    tensors = {name: value.copy() for name, value in files_tensors(folder).items()}
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)


def files_tensors(folder):
    from fastmixer.weights.folder import read_tensors

    return read_tensors(folder / "model.safetensors")


def _narrow(tensors):
    tensors["final_norm.weight"] = tensors["final_norm.weight"][:4]


def _half(tensors):
    tensors["final_norm.weight"] = tensors["final_norm.weight"].astype(np.float16)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "{f}/config.json does not exist"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "{f}/config.json is not JSON: "),
        (lambda f: (f / "config.json").write_text("[1]"), ValueError, "{f}/config.json must hold a JSON object; got list"),
        (lambda f: _config(f, model_type="bert"), ValueError, "{f}/config.json: model_type must be 'fastmixer'; got 'bert'"),
        (lambda f: _config(f, colour="red"), ValueError, "ModelConfig: unknown field 'colour'"),
        (lambda f: _config(f, dim=None), ValueError, "ModelConfig: field 'dim' is missing"),
        (lambda f: _config(f, heads=3), ValueError, "ModelConfig: heads must divide dim; got 3 heads for dim 16"),
        (lambda f: _config(f, layers=2), ValueError, "{f}: tensor 'layers.1.attention.output.bias' is missing"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "{f}/model.safetensors does not exist"),
        (lambda f: os.truncate(f / "model.safetensors", 400), ValueError, "{f}/model.safetensors is damaged or not a safetensors file: "),
        (lambda f: os.truncate(f / "model.safetensors", 3), ValueError, "{f}/model.safetensors is damaged or not a safetensors file: "),
        (lambda f: _tensors(f, lambda t: t.pop("final_norm.weight")), ValueError, "{f}: tensor 'final_norm.weight' is missing"),
        (lambda f: _tensors(f, lambda t: t.update(extra=np.zeros(2))), ValueError, "{f}: tensor 'extra' is unknown"),
        (lambda f: _tensors(f, _narrow), ValueError, "{f}: tensor 'final_norm.weight' must be float32 (16,); got float32 (4,)"),
        (lambda f: _tensors(f, _half), ValueError, "{f}: tensor 'final_norm.weight' must be float32 (16,); got float16 (16,)"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), ValueError, "{f}/tokenizer.json is not a tokenizer.json"),
    ],
)  # fmt: skip
def test_damage_is_named(folder, damage, error, text):
    damage(folder)
    with pytest.raises(error, match=f"^{re.escape(text.format(f=folder))}"):
        fm.Transformer.load(folder)


def test_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent is not a folder; a model folder holds config.json and model.safetensors"):
        fm.Transformer.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("message", "number", "text"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", errno.ENOSPC, "[Errno 28] No space left on device: '{p}'"),
        ("Error while serializing: something new", errno.EIO, "[Errno 5] Error while serializing: something new: '{p}'"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_written_name_their_file(tmp_path, monkeypatch, message, number, text):
    def full(*arguments):
        raise safetensors.SafetensorError(message)

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match=f"^{re.escape(text.format(p=path))}$") as caught:
        write_tensors(path, {"a": np.zeros(3, np.float32)})
    assert caught.value.errno == number


def test_a_real_file_that_grows_too_large(tmp_path):
    resource = pytest.importorskip("resource")
    before, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "model.safetensors"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'$"):
            write_tensors(path, {"a": np.zeros(3000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
