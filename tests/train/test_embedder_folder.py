"""What training an encoder writes: whole folders that transformers and sentence-transformers open, or nothing."""

import json
import stat

import numpy as np
import pytest
from pair_models import QUICK, TEXTS, embed, made_pairs, tune, write_random_encoder
from safetensors.numpy import load_file, save_file
from tiny_encoders import write_json, write_modules, write_pooling, write_tokenizer

import fastmixer as fm
from fastmixer.weights import encoder_export


@pytest.fixture
def model(tmp_path):
    return write_random_encoder(tmp_path / "model")


def test_the_folder_is_whole(model, tmp_path):
    (model / "onnx").mkdir()
    for name in ("onnx/model.onnx", "pytorch_model.bin.index.json", "vocab.txt", "LICENSE", "notes.md"):
        (model / name).write_text("{}")
    _, result = tune(model, tmp_path / "tuned")
    out = tmp_path / "tuned"
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert files == [
        "1_Pooling", "1_Pooling/config.json", "2_Normalize", "LICENSE", "config.json", "model.safetensors", "modules.json",
        "tokenizer.json", "training.json", "vocab.txt",
    ]  # fmt: skip
    for name in ("1_Pooling/config.json", "modules.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    record = json.loads((out / "training.json").read_text())
    assert (record["from"], record["pairs"], record["steps"], record["reason"]) == ("model", 40, 4, "finished")
    assert record["losses"] == result.losses and record["settings"]["learning_rate"] == 3e-3
    mode = stat.S_IMODE((out / "model.safetensors").stat().st_mode)
    assert mode == stat.S_IMODE((out / "training.json").stat().st_mode)
    assert not list(tmp_path.glob(".writing-*"))


def test_tensors_keep_their_names_and_what_is_not_trained_its_values(tmp_path):
    model = write_random_encoder(tmp_path / "model", "roberta")
    tensors = load_file(model / "model.safetensors")
    prefixed = {f"roberta.{name}": value for name, value in tensors.items()}
    prefixed["lm_head.bias"] = np.arange(96, dtype=np.float16)
    save_file({**prefixed, "roberta.embeddings.position_ids": np.arange(66)[None]}, str(model / "model.safetensors"))
    tune(model, tmp_path / "tuned")
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    assert set(after) == set(prefixed)
    assert (after["lm_head.bias"] == np.arange(96)).all()
    positions = "roberta.embeddings.position_embeddings.weight"
    assert (after[positions][:2] == prefixed[positions][:2]).all() and (
        after[positions][2:8] != prefixed[positions][2:8]
    ).any()
    name = "roberta.encoder.layer.1.attention.self.value.weight"
    assert after[name].dtype == np.float32 and (after[name] != prefixed[name]).any()


def test_a_folder_without_modules_gets_them(tmp_path):
    model = write_random_encoder(tmp_path / "model", mode=None)
    tune(model, tmp_path / "tuned")
    out = tmp_path / "tuned"
    assert [module["path"] for module in json.loads((out / "modules.json").read_text())] == ["", "1_Pooling"]
    assert json.loads((out / "sentence_bert_config.json").read_text()) == {"max_seq_length": 64}
    assert fm.load(out).recipe.pooling == "mean" and fm.load(out).max_length == 64


def test_a_transformer_in_a_folder_of_its_own_stays_there(tmp_path):
    inner = write_random_encoder(tmp_path / "model" / "0_Transformer", mode=None)
    model = inner.parent
    write_modules(model, ("Pooling", "1_Pooling"))
    listed = json.loads((model / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    write_json(model / "modules.json", listed)
    write_pooling(model, "cls_token")
    tune(model, tmp_path / "tuned")
    assert (tmp_path / "tuned" / "0_Transformer" / "model.safetensors").is_file()
    assert fm.load(tmp_path / "tuned").recipe.pooling == "cls"
    assert np.abs(embed(tmp_path / "tuned") - embed(model)).max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "mpnet", "modernbert"])
def test_the_result_opens_in_transformers(tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tune(write_random_encoder(tmp_path / "model", name), tmp_path / "tuned")
    loaded = fm.load(tmp_path / "tuned", weights="float32")
    model = transformers.AutoModel.from_pretrained(tmp_path / "tuned").eval()
    assert model.dtype == torch.float32
    for text, vector in zip(TEXTS, loaded.embed(TEXTS), strict=True):
        ids = loaded.tokenizer.encode("test", [text]).ids[0]
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(ids[None])).last_hidden_state[0].mean(0).numpy()
        assert vector @ expected / np.linalg.norm(expected) >= 0.99999


def test_the_result_opens_in_sentence_transformers(model, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    write_tokenizer(model, 64)
    write_json(
        model / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "pad_token": "[PAD]"},
    )
    tune(model, tmp_path / "tuned", steps=20)
    theirs = library.SentenceTransformer(str(tmp_path / "tuned"), device="cpu").encode(TEXTS)
    ours = embed(tmp_path / "tuned")
    assert (theirs * ours).sum(axis=1).min() >= 0.99999
    assert (embed(model) * ours).sum(axis=1).max() < 0.999  # and it is another model than before


@pytest.mark.parametrize(
    ("options", "old", "expected"),
    [
        ({}, {"STS": "old : "}, {"STS": "old : "}),
        ({}, {"query": "old : "}, {"query": "old : ", "document": ""}),
        ({}, {"corpus": "old : "}, {"corpus": "old : ", "query": "", "document": "old : "}),
        ({"anchor_prompt": ""}, {"query": "old : ", "passage": "by "}, {"query": "", "passage": "by ", "document": "by "}),
        ({"anchor_prompt": "query : "}, {"query": "old : ", "STS": "x"}, {"query": "query : ", "STS": "x", "document": ""}),
        ({"text_prompt": "passage : "}, None, {"query": "", "document": "passage : "}),
        (
            {"anchor_prompt": "query : ", "text_prompt": "passage : "}, {"passage": "old : "},
            {"passage": "old : ", "query": "query : ", "document": "passage : "},
        ),
    ],
)  # fmt: skip
def test_prompts_are_those_of_the_new_model(model, tmp_path, options, old, expected):
    if old is not None:
        write_json(model / "config_sentence_transformers.json", {"prompts": old, "similarity_fn_name": "cosine"})
    tune(model, tmp_path / "tuned", **options)
    tuned = fm.load(tmp_path / "tuned")
    assert tuned.prompts == expected
    if "text_prompt" in options:
        assert tuned.prompt_for("document") == "passage : " and tuned.prompt_for("query") == expected["query"]
    if old is not None:
        values = json.loads((tmp_path / "tuned" / "config_sentence_transformers.json").read_text())
        assert values["similarity_fn_name"] == "cosine"


def test_prompts_that_are_null_take_new_ones(model, tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"prompts": None, "x": 1})
    encoder_export._add_prompts(path, {"query": "q: "})
    assert json.loads(path.read_text()) == {"prompts": {"query": "q: "}, "x": 1}


def test_sentence_transformers_finds_the_prompts(model, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    write_json(
        model / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "pad_token": "[PAD]"},
    )
    tune(model, tmp_path / "tuned", anchor_prompt="query : ", text_prompt="passage : ")
    theirs, ours = (
        library.SentenceTransformer(str(tmp_path / "tuned"), device="cpu"),
        fm.load(tmp_path / "tuned", weights="float32"),
    )
    for use, vectors in (("query", theirs.encode_query(TEXTS)), ("document", theirs.encode_document(TEXTS))):
        assert (vectors * ours.embed(TEXTS, prompt=ours.prompt_for(use))).sum(axis=1).min() >= 0.99999


def test_nothing_is_left_when_writing_fails(model, tmp_path, monkeypatch):
    trainer = fm.EmbedderTrainer(model, made_pairs(8), out=tmp_path / "tuned", **QUICK)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastmixer.weights.encoder_export._write_weights", full)
    with pytest.raises(OSError, match="No space left on device"):
        trainer.fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
