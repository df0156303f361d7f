"""Scores of pairs: cross-encoders of every maker, what becomes of their logits, and what is refused."""

import json
import warnings

import numpy as np
import pytest
from tiny_encoders import TEXTS, write_json, write_modules
from tokenizers import Tokenizer

from fastmixer.embed import load_sentence_model
from fastmixer.model.encoder import Encoder
from fastmixer.opening import load
from fastmixer.weights.encoder_folder import open_encoder

pytestmark = pytest.mark.usefixtures("reference_kernels")


@pytest.mark.parametrize("name", ["bert-classifier", "roberta-classifier", "modernbert-classifier"])
def test_rerank(tiny_folder, name):
    folder = tiny_folder(name, None)
    model = load_sentence_model(folder, "float32")
    tokenizer, encoder = Tokenizer.from_file(str(folder / "tokenizer.json")), Encoder(open_encoder(folder), "float32")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    expected = []
    for text in TEXTS:
        pair = tokenizer.encode("the river", text)
        types = np.array(pair.type_ids) if name == "bert-classifier" else None  # as transformers' classes give them
        hidden = encoder.forward(np.array(pair.ids), np.array([0, len(pair.ids)]), types)
        pooled = hidden.mean(axis=0) if model.config.head.pooling == "mean" else hidden[0]
        expected.append(1 / (1 + np.exp(-encoder.classify(pooled[None])[0, 0])))
    scores = model.score("the river", TEXTS, batch_tokens=20)
    assert scores.dtype == np.float32 and np.ptp(expected) > 0.01
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    ranked = model.rerank("the river", TEXTS, batch_tokens=20)
    assert [place.index for place in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert [place.score for place in ranked] == sorted(scores.tolist(), reverse=True)
    assert model.rerank("the river", TEXTS, top_k=2, batch_tokens=20) == ranked[:2]
    assert model.rerank("the river", []) == []


def test_scores_may_be_logits(tiny_folder):
    folder = tiny_folder("bert-classifier", None)
    scores = load_sentence_model(folder, "float32").score("the river", TEXTS)
    values = json.loads((folder / "config.json").read_text())
    values["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(values))
    logits = load_sentence_model(folder, "float32").score("the river", TEXTS)
    np.testing.assert_allclose(np.log(scores / (1 - scores)), logits, atol=1e-4)


def cross_encoder(tiny_folder, activation="Sigmoid", **settings):
    """The folder of a cross-encoder as sentence-transformers 6 writes it."""
    folder = tiny_folder("bert-classifier", None)
    write_modules(folder)
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    kind = {"Sigmoid": "torch.nn.modules.activation.Sigmoid", "Identity": "torch.nn.modules.linear.Identity"}
    values = {"model_type": "CrossEncoder", "activation_fn": kind.get(activation, activation), "prompts": {}}
    write_json(folder / "config_sentence_transformers.json", {**values, **settings})
    return folder


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_cross_encoders_of_today_score_as_their_maker_says(tiny_folder, tmp_path, activation):
    model = load(cross_encoder(tiny_folder, activation), weights="float32")
    (tmp_path / "bert-classifier" / "modules.json").unlink()
    (tmp_path / "bert-classifier" / "config_sentence_transformers.json").unlink()
    plain = load(tmp_path / "bert-classifier", weights="float32").score("the river", TEXTS)
    expected = plain if activation == "Sigmoid" else np.log(plain / (1 - plain))
    np.testing.assert_allclose(model.score("the river", TEXTS), expected, atol=1e-5)


def test_a_default_prompt_stands_before_the_query(tiny_folder):
    folder = cross_encoder(tiny_folder, prompts={"query": "query: "}, default_prompt_name="query")
    prompted = load_sentence_model(folder, "float32").score("the river", TEXTS)
    write_json(folder / "config_sentence_transformers.json", {})
    np.testing.assert_array_equal(prompted, load_sentence_model(folder, "float32").score("query: the river", TEXTS))


def test_cross_encoders_are_those_of_sentence_transformers(tiny_folder, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is the oracle here")
    folder = tiny_folder("bert-classifier", None)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 12})
    for activation in (torch.nn.Sigmoid(), torch.nn.Identity()):
        oracle = theirs.CrossEncoder(
            str(folder), device="cpu", activation_fn=activation, model_kwargs={"dtype": torch.float32},
            prompts={"query": "query : "}, default_prompt_name="query",
        )  # fmt: skip
        saved = tmp_path / type(activation).__name__
        oracle.save(str(saved))
        expected = oracle.predict([("the river", text) for text in TEXTS])
        with pytest.warns(UserWarning, match="longer than 12 tokens"):
            scores = load(saved, weights="float32").score("the river", TEXTS)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_cross_encoders_that_are_wrong(tiny_folder):
    folder = cross_encoder(tiny_folder, "mine.Sigmoid")
    with pytest.raises(ValueError, match="transformers.json: activation_fn must be torch.nn's Sigmoid or Identity"):
        load(folder)
    write_json(folder / "config_sentence_transformers.json", {})
    write_modules(folder, ("Normalize", "1_Normalize"))
    with pytest.raises(ValueError, match="a transformer whose task is sequence-classification must stand alone"):
        load(folder)
    write_modules(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match=r"architectures must be a list with a \.\.\.ForSequenceClassification"):
        load(folder)


def test_what_rerank_refuses(tiny_folder):
    cross = load_sentence_model(tiny_folder("bert-classifier", None))
    with pytest.raises(
        ValueError, match="^embed: bert-classifier is a cross-encoder or classifier, which gives no vectors"
    ):
        cross.embed(TEXTS)
    with pytest.raises(TypeError, match=r"^rerank: texts\[1\] must be a string; got NoneType$"):
        cross.rerank("a", ["b", None])
    with pytest.raises(TypeError, match="^rerank: query must be a string of UTF-8 text; got NoneType"):
        cross.rerank(None, TEXTS)
    with pytest.raises(TypeError, match="^rerank: texts must be a list of strings; got one string"):
        cross.rerank("a", "b")
    with pytest.raises(ValueError, match="^rerank: top_k must be >= 1; got 0"):
        cross.rerank("a", TEXTS, top_k=0)
    with pytest.raises(ValueError, match="^rerank: bert is no cross-encoder; use embed"):
        load_sentence_model(tiny_folder()).rerank("a", TEXTS)
    with pytest.raises(ValueError, match="must have one output; distilbert-classifier has 3 classes"):
        load_sentence_model(tiny_folder("distilbert-classifier", None)).rerank("a", TEXTS)


def test_scores_of_any_logit(tiny_folder, monkeypatch):
    model = load_sentence_model(tiny_folder("bert-classifier", None), "float32")
    logits = np.array([[-1000], [-90], [-1], [0], [2], [200], [1000]], np.float32)
    monkeypatch.setattr(model.encoder, "classify", lambda pooled: logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = model.score("the river", ["alice"] * len(logits))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0, 0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1, 1], rtol=1e-6, atol=1e-38)
