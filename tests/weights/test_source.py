"""One way in: which reader a path goes to, and our own folders and runs as open models."""

from pathlib import Path

import numpy as np
import pytest
from plain_forward import plain_logits
from random_models import random_source

from fastmixer.model import ModelConfig, Transformer
from fastmixer.weights.convert import convert
from fastmixer.weights.source import open_source
from fastmixer.weights.stored import expected_tensors

TINY = Path(__file__).parents[1] / "model" / "tiny"
SIZES = {"vocab": 50, "context": 16, "dim": 16, "layers": 2, "heads": 4, "hidden": 24}
OWN = {
    "gpt2": {},
    "llama": {
        "kv_heads": 2, "norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True, "bias": False,
        "tied_head": False, "window": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OWN)
def test_our_own_folders(kind, tmp_path):
    model = Transformer(ModelConfig(**{**SIZES, **OWN[kind]}), seed=3)
    for name in model.parameters:  # norms and biases that say something
        model.parameters[name][...] += np.random.default_rng(1).standard_normal(model.parameters[name].shape) * 0.2
    model.save(tmp_path / "model")
    source = open_source(tmp_path / "model")
    assert source.config == model.config and source.tokenizer is None
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == expected_tensors(model.config)
    ids = np.random.default_rng(0).integers(0, 50, 12)
    assert np.abs(plain_logits(source, ids) - model.logits(ids[None])[0]).max() < 1e-4
    shorter = open_source(str(tmp_path / "model"), context=12)
    assert np.abs(plain_logits(shorter, ids) - plain_logits(source, ids)).max() == 0
    with pytest.raises(ValueError, match="context must be an integer from 1 to context 16; got 17"):
        open_source(tmp_path / "model", context=17)


def test_a_run_opens_its_newest_checkpoint(tmp_path):
    for step, layers in ((5, 1), (10, 2)):
        model = Transformer(ModelConfig(**{**SIZES, "layers": layers}))
        model.save(tmp_path / "checkpoints" / f"step-{step:08d}")
    source = open_source(tmp_path)
    assert source.config.layers == 2 and source.path.name == "step-00000010"


def test_our_own_folders_are_checked(tmp_path):
    Transformer(ModelConfig(**SIZES)).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"layers": 2', '"layers": 3'))
    with pytest.raises(ValueError, match="tensor layers.2.attention_norm.weight .* is missing"):
        open_source(tmp_path / "model")
    path.write_text(text.replace('"layers": 2', '"depth": 2'))
    with pytest.raises(ValueError, match="config.json: ModelConfig: unknown field 'depth'"):
        open_source(tmp_path / "model")


def test_gguf_files_go_to_their_reader(tmp_path):
    path = convert(random_source("llama"), tmp_path / "m.gguf")
    assert open_source(path).config.layers == open_source(path, context=8).config.layers == 3
    path.rename(tmp_path / "blob")
    assert open_source(tmp_path / "blob").config.layers == 3
    (tmp_path / "blob").rename(path)
    with pytest.raises(FileNotFoundError, match=r"holds no config.json; open .*m.gguf itself"):
        open_source(tmp_path)


def test_other_files_are_refused(tmp_path):
    for name, data, message in (
        ("m.pt", b"PK\x03\x04rest", "m.pt is a pickle"),
        ("archive", b"PK\x03\x04rest", "archive is a pickle"),
        ("m.onnx", b"\x08\x07abc", "must be a .gguf file or a model's folder; it begins with"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / name)
    with pytest.raises(ValueError, match="holds weights alone; open the folder"):
        open_source(TINY / "llama" / "model.safetensors")
    for name in ("nothing", tmp_path / "nothing", "org/model.gguf"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            open_source(name)
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        open_source(tmp_path)
