"""Folders of transformers: logits as transformers' own, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from plain_forward import plain_logits

from fastmixer.generate.options import LARGEST_PENALTY, Options
from fastmixer.text import train_tokenizer
from fastmixer.weights.hf_folder import _generation, open_folder
from fastmixer.weights.stored import expected_tensors

TINY = Path(__file__).parents[1] / "model" / "tiny"
NAMES = sorted(path.parent.name for path in TINY.glob("*/config.json"))


def test_as_much_is_advised_as_may_be_asked(tmp_path):
    path = tmp_path / "generation_config.json"
    for value in (LARGEST_PENALTY, 1 / LARGEST_PENALTY):
        path.write_text(json.dumps({"repetition_penalty": value}))
        assert Options(**_generation(tmp_path)).repetition_penalty == value
    path.write_text(json.dumps({"repetition_penalty": LARGEST_PENALTY * 1.01}))
    with pytest.raises(ValueError, match="repetition_penalty must be a number from 1e-06 to"):
        _generation(tmp_path)


def test_every_architecture_is_here():
    assert len(NAMES) == 12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tokens", "context"), [(9, None), (40, 64)])
def test_logits_are_those_of_transformers(name, tokens, context):
    source, goldens = open_folder(TINY / name, context), np.load(TINY / name / "goldens.npz")
    found = plain_logits(source, goldens[f"ids_{tokens}"])
    assert np.abs(found - goldens[f"logits_{tokens}"]).max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_all_tensors_are_there_with_their_shapes(name):
    source = open_folder(TINY / name)
    assert {n: t.shape for n, t in source.tensors.items()} == expected_tensors(source.config)
    assert source.name == name and source.tokenizer is None


def test_a_shorter_context_takes_fewer_positions():
    source = open_folder(TINY / "gpt2", 10)
    assert source.tensors["positions.weight"].shape == (10, 32) and source.config.context == 10
    with pytest.raises(ValueError, match="context must be an integer from 1 to max_position_embeddings 64; got 65"):
        open_folder(TINY / "gpt2", 65)


def test_matrices_are_views_of_the_file():
    tensor = open_folder(TINY / "phi3").tensors["layers.1.attention.k.weight"]
    assert tensor.type.name == "BF16" and not tensor.raw.flags.writeable and not tensor.raw.flags.owndata


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(TINY / "llama", tmp_path / "model"))


@pytest.fixture
def shards(tmp_path):
    return Path(shutil.copytree(TINY / "qwen3", tmp_path / "shards"))


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_sampling_advice_is_read_and_checked(folder):
    path = folder / "generation_config.json"
    path.write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [1, 2]}')
    assert open_folder(folder).generation == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    path.write_text('{"do_sample": false, "temperature": 0.6}')
    assert open_folder(folder).generation == {"temperature": 0.0}
    path.write_text('{"do_sample": false, "max_new_tokens": 2048}')
    assert open_folder(folder).generation == {"temperature": 0.0, "max_new_tokens": 2048}
    for text, message in (
        ('{"top_p": 1.5}', "top_p must be a number from 0 to 1; got 1.5"),
        ('{"max_new_tokens": 0}', "max_new_tokens must be an integer from 1 to .*; got 0"),
        ('{"repetition_penalty": 1e20}', "repetition_penalty must be a number from 1e-06 to 1e\\+06; got 1e\\+20"),
        ('{"top_k": -1}', "top_k must be an integer from 0 to .*; got -1"),
        ('{"temperature": "hot"}', "temperature must be a finite number >= 0; got 'hot'"),
        ('{"temperature": NaN}', " is not JSON: NaN"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}"):
            open_folder(folder)


def test_a_tokenizer_that_does_not_belong_is_refused(folder):
    train_tokenizer("hello there, hello you", "bpe", 265).save(folder)
    with pytest.raises(ValueError, match=r"tokenizer.json has \d+ pieces, the model's vocab is 96"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_by_name(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is a pickle, .*use the model's .safetensors files instead"):
        open_folder(folder)


def test_a_pickle_under_another_name_is_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x02ctorch._utils\n_rebuild")
    with pytest.raises(ValueError, match="model.safetensors is a pickle"):
        open_folder(folder)


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor model.safetensors.index.json$"):
        open_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 4}, "model.safetensors: tensor layers.3.input_layernorm.weight .* is missing"),
        ({"num_hidden_layers": 2}, "model.safetensors: tensor layers.2.* is not known in llama"),
        ({"vocab_size": 97}, r"tensor embed_tokens.weight must have shape \[97, 32\]; got \[96, 32\]"),
        ({"vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_hidden_layers": 4096}, "parameters; expected at most"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing, and tie_word_embeddings is false: the body of"),
    ],
)
def test_config_and_tensors_must_agree(folder, fields, message):
    change(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=message):
        open_folder(folder)


def test_models_that_are_neither_kind_are_told_both(folder):
    change(folder / "config.json", model_type="albert")
    with pytest.raises(
        ValueError, match="model_type must be a decoder's, gpt2, llama.*, or an encoder's, bert, .*; got 'albert'$"
    ):
        open_folder(folder)


@pytest.mark.parametrize(
    "name", ["../model/config.json", "/etc/passwd", "a/b.safetensors", "..", "", 3, None, "C:\\x.safetensors"]
)
def test_shards_lie_in_the_folder(shards, name):
    index = shards / "model.safetensors.index.json"
    change(index, weight_map={**json.loads(index.read_text())["weight_map"], "lm_head.weight": name})
    with pytest.raises(
        ValueError, match=r"weight_map.lm_head.weight (must be|is missing; expected) the name of a file in"
    ):
        open_folder(shards)


def test_damaged_indices_are_named(shards):
    index, last = shards / "model.safetensors.index.json", shards / "model-00004-of-00004.safetensors"
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**weight_map, "extra.weight": last.name})
    with pytest.raises(ValueError, match="tensor 'extra.weight' is missing, which .* says is there"):
        open_folder(shards)
    change(index, weight_map={})
    with pytest.raises(ValueError, match="weight_map must name a file for each tensor; got none"):
        open_folder(shards)
    change(index, weight_map=weight_map)
    shutil.copy(last, shards / "model-00001-of-00004.safetensors")
    with pytest.raises(ValueError, match="is missing, which"):
        open_folder(shards)
    last.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match="does not exist|is missing"):
        open_folder(shards)
