"""Decoders as embedders: last-token vectors of sentence-transformers' folders, and of language models that are told how."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from random_models import random_source, tiny_tokenizer
from tiny_encoders import write_json, write_modules, write_pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fastmixer.embed import SentenceModel, decoder_states, load_sentence_model
from fastmixer.generate import LanguageModel
from fastmixer.kernels import select
from fastmixer.model.decoder import Decoder
from fastmixer.opening import load
from fastmixer.text.conventions import Conventions
from fastmixer.weights.source import open_source

TINY = Path(__file__).parents[1] / "model" / "tiny"
VOCAB, END = 96, 2
TEXTS = ["t05 t17 t09", "t05", "t60 t03 t04 t05 t17 t09 t33 t21 t08 t40 t41 t42", "t09 t17 t05", "t11 t90"]
CLOSE = 1e-4  # absolute, of logits, as tests/model/test_decoder.py has it


@pytest.fixture
def decoder_folder(tmp_path):
    """make(name, mode="lasttoken"): a tiny decoder as Qwen3-Embedding is laid out. Its words are "t00" to "t95", and with
    an_end a text ends with token 2; mode None: without sentence-transformers' files."""

    def make(name="qwen3", mode="lasttoken", an_end=True):
        folder = tmp_path / name
        shutil.copytree(TINY / name, folder)
        tokenizer = Tokenizer(models.WordLevel({f"t{i:02}": i for i in range(VOCAB)}, unk_token="t00"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if an_end:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=["$A", "t02"], special_tokens=[("t02", END)]
            )
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t02", "pad_token": "t00"}
        write_json(folder / "tokenizer_config.json", settings)
        if mode is not None:
            write_modules(folder, ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
            write_pooling(folder, mode)
        return folder

    return make


def text_of(ids):
    return " ".join(f"t{i:02}" for i in ids)


@pytest.mark.parametrize("tokens", [9, 40])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_last_tokens_are_those_that_transformers_makes_logits_of(decoder_folder, name, tokens):
    folder = decoder_folder(name, an_end=False)
    goldens, tensors = np.load(TINY / name / "goldens.npz"), open_source(folder).tensors
    model = load(folder, weights="float32")
    assert isinstance(model, SentenceModel) and (model.dim, model.max_length) == (32, 64)
    vector = model.embed(text_of(goldens[f"ids_{tokens}"]), normalize=False)
    head = tensors["head.weight" if "head.weight" in tensors else "embedding.weight"].values()
    np.testing.assert_allclose(head @ vector, goldens[f"logits_{tokens}"][-1], atol=CLOSE)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens", "max_tokens", "cls_token", "weightedmean_tokens"])
def test_vectors_are_those_of_sentence_transformers(decoder_folder, name, mode):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is the oracle here")
    folder = decoder_folder(name, mode)
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "t07 t08 "}, "default_prompt_name": None}
    )
    oracle = theirs.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    model = load(folder, weights="float32")
    np.testing.assert_allclose(model.embed(TEXTS), oracle.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        model.embed(TEXTS, prompt_name="query"), oracle.encode(TEXTS, prompt_name="query"), atol=1e-5
    )


@pytest.mark.parametrize("implementation", select.implementations("decoder"))
def test_a_text_does_not_see_its_neighbours(decoder_folder, implementation, monkeypatch):
    folder = decoder_folder("gemma3")  # layers with a window, and layers without
    with select.use_kernels(implementation):
        model = load(folder, weights="float32")
        alone = np.stack([model.embed(text) for text in TEXTS])
        np.testing.assert_allclose(model.embed(TEXTS), alone, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
        # so little room for keys and values that each call of the decoder holds two texts
        monkeypatch.setattr(decoder_states, "CACHE_BYTES", 2 * page_bytes(model) + 1)
        np.testing.assert_allclose(load(folder, weights="float32").embed(TEXTS), alone, atol=1e-5)


def page_bytes(model):
    decoder = model.encoder._decoder
    return sum(decoder.page_bytes(group, decoder_states.CACHE_DTYPE) for group in range(len(decoder.windows)))


def test_texts_of_many_pages(monkeypatch):
    """Sequences of 0, 1, 2 and 3 pages in calls of at most two."""
    decoder = Decoder(random_source("qwen3", context=192), "float32")
    rng = np.random.default_rng(3)
    lengths = [150, 64, 1, 0, 65, 192, 30]
    ids, starts = rng.integers(0, 320, sum(lengths)), np.concatenate([[0], np.cumsum(lengths)])
    whole = decoder_states.DecoderStates(decoder).forward(ids, starts)
    for index, length in enumerate(lengths):
        part = slice(starts[index], starts[index + 1])
        alone = decoder_states.DecoderStates(decoder).forward(ids[part], np.array([0, length]))
        np.testing.assert_allclose(whole[part], alone, atol=1e-4)
    small = decoder_states.DecoderStates(decoder)
    small._most = 2
    np.testing.assert_allclose(small.forward(ids, starts), whole, atol=1e-4)


def test_a_folder_without_a_head_opens(decoder_folder):
    from safetensors.numpy import load_file, save_file

    folder = decoder_folder("mistral")
    whole = load(folder, weights="float32").embed(TEXTS)
    tensors = {name.removeprefix("model."): value for name, value in _bfloat16_as_float32(folder).items()}
    del tensors["lm_head.weight"]
    save_file(tensors, str(folder / "model.safetensors"))
    assert "embed_tokens.weight" in load_file(str(folder / "model.safetensors"))
    np.testing.assert_allclose(load(folder, weights="float32").embed(TEXTS), whole, atol=1e-6)


def _bfloat16_as_float32(folder):
    """Every tensor of a folder; NumPy has no bfloat16, so that safetensors' own loader refuses it."""
    from fastmixer.weights.hf_folder import weight_files

    files = weight_files(folder)
    return {name: np.ascontiguousarray(files.tensor(name).values()) for name in files.shapes()}


def test_context_limits_texts(decoder_folder):
    folder = decoder_folder()
    model = load(folder, context=8)
    assert model.max_length == 8
    with pytest.raises(ValueError, match=r"^embed: texts\[0\] has 12 tokens; at most 8 are possible"):
        model.embed([text_of(range(3, 14))], truncate=False)
    with pytest.warns(UserWarning, match=r"^embed: texts\[0\] is longer than 8 tokens, the model's limit; it is cut"):
        cut = model.embed([text_of(range(3, 14))])
    np.testing.assert_allclose(cut[0], model.embed(text_of(range(3, 10))), atol=1e-6)  # the end stays


def test_packed_weights_of_a_decoder_are_kept(decoder_folder, tmp_path):
    folder, kept = decoder_folder(), tmp_path / "packed"
    vectors = load(folder, weights="int8", packed_cache=kept).embed(TEXTS)
    assert list(kept.iterdir())
    again = load(folder, weights="int8", packed_cache=kept)
    np.testing.assert_array_equal(again.embed(TEXTS), vectors)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).embed(TEXTS), vectors)


def test_an_end_that_the_tokenizer_does_not_write_is_refused(decoder_folder):
    folder = decoder_folder(an_end=False)
    settings = {"eos_token": "t02", "add_eos_token": True}
    write_json(folder / "tokenizer_config.json", settings)
    with pytest.raises(
        ValueError, match=r"tokenizer_config.json: add_eos_token is true, but tokenizer.json puts no token"
    ):
        load(folder)


def test_decoders_that_do_not_only_look_back_are_refused(decoder_folder):
    folder = decoder_folder()
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**values, "is_causal": False})
    with pytest.raises(ValueError, match=r"config.json: is_causal must be true \(nothing else is known\); got False"):
        load(folder)


def test_decoders_that_classify_are_refused(decoder_folder):
    folder = decoder_folder()
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    write_modules(folder)
    with pytest.raises(ValueError, match="qwen3: the classification heads of decoders are not supported"):
        load(folder)
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**values, "architectures": ["Qwen3ForSequenceClassification"]})
    for name in ("modules.json", "sentence_bert_config.json"):
        with pytest.raises(ValueError, match=r"architectures must be .*classification heads are not supported"):
            load(folder)
        (folder / name).unlink()


def test_what_a_folder_of_vectors_refuses(decoder_folder):
    folder = decoder_folder()
    with pytest.raises(ValueError, match="qwen3 is a model of vectors; cache_tokens is for models that write text"):
        load(folder, cache_tokens=100)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="1_Pooling/config.json"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"qwen3/config.json"):
        load(folder)


# ---- language models ----


def test_a_language_model_must_be_told_how(decoder_folder):
    model = load(decoder_folder("qwen3", None), weights="float32")
    assert isinstance(model, LanguageModel)
    with pytest.raises(ValueError) as caught:
        model.embed(TEXTS)
    assert str(caught.value) == (
        "embed: qwen3 is a language model without pooling files (modules.json, 1_Pooling); give pooling='last' or 'mean', or "
        "load a model that is made for vectors"
    )
    with pytest.raises(ValueError, match="^embed: pooling must be one of 'mean', 'cls', 'max', 'last', .*; got 'first'$"):
        model.embed(TEXTS, pooling="first")


@pytest.mark.parametrize("an_end", [False, True])
def test_a_language_model_that_is_told_how(decoder_folder, an_end):
    folder = decoder_folder("llama", None, an_end)
    model = load(folder, weights="float32")
    write_modules(folder, ("Pooling", "1_Pooling"))
    for pooling, mode in (("last", "lasttoken"), ("mean", "mean_tokens"), ("weightedmean", "weightedmean_tokens")):
        write_pooling(folder, mode)
        np.testing.assert_allclose(
            model.embed(TEXTS, pooling=pooling), load_sentence_model(folder, "float32").embed(TEXTS), atol=1e-6
        )
    assert model.embed(TEXTS[0], pooling="last", normalize=False, dtype="float16").dtype == np.float16


@pytest.mark.parametrize("adds_begin", [False, True])
def test_texts_begin_as_prompts_do(adds_begin):
    source = random_source("llama")
    tokenizer = tiny_tokenizer()
    if adds_begin:
        inner = Tokenizer.from_str(tokenizer.to_json())
        tokenizer = type(tokenizer)(inner, Conventions((tokenizer.end_id,), begin_id=5, adds_begin=True))
    decoder = Decoder(source, "float32")
    vector = LanguageModel(decoder, tokenizer, "random").embed("the bank by the river", pooling="last", normalize=False)
    ids = tokenizer.encode("the bank by the river", begin=True)
    assert (int(ids[0]) == 5) is adds_begin
    states = decoder_states.DecoderStates(decoder).forward(ids, np.array([0, len(ids)]))
    np.testing.assert_allclose(vector, states[-1], atol=1e-5)


def test_info(decoder_folder):
    info = load(decoder_folder(), weights="int8").info()
    assert info["pooling"] == "last" and info["dim"] == 32 and info["architecture"]["qk_norm"] is True
    assert set(info["weights"]["matrices"]) == {"int8"} and info["weights"]["bytes"] > 0
    assert json.dumps(info["prompts"]) == "{}"
