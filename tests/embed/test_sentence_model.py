"""Sentences to vectors: order, batches, pooling, prompts, limits and streams; and what is refused."""

import json
import warnings

import numpy as np
import pytest
from tiny_encoders import TEXTS, write_dense, write_json, write_modules, write_pooling, write_tokenizer
from tokenizers import Tokenizer

from fastmixer.embed import load_sentence_model, sentence_model
from fastmixer.embed.batches import longest_first
from fastmixer.model.encoder import Encoder
from fastmixer.opening import load
from fastmixer.weights.encoder_folder import open_encoder

pytestmark = pytest.mark.usefixtures("reference_kernels")


def hidden_of(folder, text):
    """float32 [tokens, dim] of one text alone."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = np.array(tokenizer.encode(text).ids)
    return Encoder(open_encoder(folder), "float32").forward(ids, np.array([0, len(ids)]))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- vectors ----


@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "modernbert"])
def test_vectors_are_the_mean_of_each_text_alone_in_order(tiny_folder, name):
    folder = tiny_folder(name)
    model = load_sentence_model(folder, "float32")
    expected = np.stack([unit(hidden_of(folder, text).mean(axis=0)) for text in TEXTS])
    vectors = model.embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), model.dim) == (7, 32)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("mean_tokens", lambda hidden: hidden.mean(axis=0)),
        ("cls_token", lambda hidden: hidden[0]),
        ("max_tokens", lambda hidden: hidden.max(axis=0)),
        ("lasttoken", lambda hidden: hidden[-1]),
        ("weightedmean_tokens", lambda hidden: np.average(hidden, axis=0, weights=np.arange(1, len(hidden) + 1))),
        ("mean_sqrt_len_tokens", lambda hidden: hidden.sum(axis=0) / np.sqrt(len(hidden))),
    ],
)
def test_pooling(tiny_folder, mode, pooled):
    folder = tiny_folder("bert", mode)
    model = load_sentence_model(folder, "float32")
    expected = np.stack([pooled(hidden_of(folder, text)) for text in TEXTS])
    np.testing.assert_allclose(model.embed(TEXTS, normalize=False), expected, atol=1e-5)
    np.testing.assert_allclose(model.embed(TEXTS), unit(expected), atol=1e-5)


def test_a_folder_without_modules_is_pooled_by_the_mean(tiny_folder):
    folder = tiny_folder("roberta", None)
    expected = unit(hidden_of(folder, TEXTS[0]).mean(axis=0))
    np.testing.assert_allclose(load_sentence_model(folder, "float32").embed(TEXTS[0]), expected, atol=1e-5)


def test_dense_stages(tiny_folder):
    folder = tiny_folder()
    write_modules(
        folder, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense"), ("Normalize", "4_Normalize")
    )
    weight, bias = write_dense(folder, "2_Dense", 32, 20)
    second, _ = write_dense(folder, "3_Dense", 20, 5, bias=False, activation="torch.nn.modules.linear.Identity")
    model = load_sentence_model(folder, "float32")
    pooled = np.stack([hidden_of(folder, text).mean(axis=0) for text in TEXTS])
    expected = np.tanh(pooled @ weight.T + bias) @ second.T
    assert model.dim == 5
    np.testing.assert_allclose(model.embed(TEXTS, normalize=False), expected, atol=1e-4)
    np.testing.assert_allclose(model.embed(TEXTS), unit(expected), atol=1e-5)


def test_several_poolings_are_one_vector(tiny_folder):
    folder = tiny_folder()
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": ["max", "cls"]})
    write_modules(folder, ("Pooling", "1_Pooling"))
    model = load_sentence_model(folder, "float32")
    hidden = [hidden_of(folder, text) for text in TEXTS]
    expected = np.stack([np.concatenate([one.max(axis=0), one[0]]) for one in hidden])
    assert model.dim == 64 and model.info()["pooling"] == "max+cls"
    np.testing.assert_allclose(model.embed(TEXTS, normalize=False), expected, atol=1e-5)
    write_modules(folder, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    weight, bias = write_dense(folder, "2_Dense", 64, 5)
    vectors = load_sentence_model(folder, "float32").embed(TEXTS, normalize=False)
    np.testing.assert_allclose(vectors, np.tanh(expected @ weight.T + bias), atol=1e-4)


@pytest.mark.parametrize("outputs", [32, 20])
def test_dense_stages_may_add_their_input(tiny_folder, outputs):
    folder = tiny_folder()
    write_modules(folder, ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    weight, bias, residual = write_dense(folder, "2_Dense", 32, outputs, use_residual=True)
    pooled = np.stack([hidden_of(folder, text).mean(axis=0) for text in TEXTS])
    expected = np.tanh(pooled @ weight.T + bias) + (pooled if residual is None else pooled @ residual.T)
    vectors = load_sentence_model(folder, "float32").embed(TEXTS, normalize=False)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


@pytest.mark.parametrize(("truncate_dim", "dim"), [(7, 7), (32, 32), (100, 32)])
def test_vectors_may_be_cut_and_then_have_unit_length(tiny_folder, tmp_path, truncate_dim, dim):
    folder = tiny_folder()
    whole = load_sentence_model(folder, "float32").embed(TEXTS, normalize=False)
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": truncate_dim})
    model = load_sentence_model(folder, "float32")
    assert model.dim == model.info()["dim"] == dim
    np.testing.assert_allclose(model.embed(TEXTS, normalize=False), whole[:, :dim], atol=1e-6)
    np.testing.assert_allclose(model.embed(TEXTS), unit(whole[:, :dim]), atol=1e-6)
    assert model.embed_to(tmp_path / "vectors.npy", TEXTS).shape == (len(TEXTS), dim)


def test_one_string_gives_one_vector(tiny_folder):
    model = load_sentence_model(tiny_folder(), "float32")
    vector = model.embed(TEXTS[1])
    assert vector.shape == (32,)
    np.testing.assert_allclose(vector, model.embed(TEXTS)[1], atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 3, 17, 10_000])
def test_batches_change_nothing(tiny_folder, batch_tokens):
    model = load_sentence_model(tiny_folder(), "float32")
    np.testing.assert_allclose(model.embed(TEXTS, batch_tokens=batch_tokens), model.embed(TEXTS), atol=1e-6)


def test_batches_hold_so_many_tokens_and_longest_texts_come_first():
    lengths = np.array([3, 9, 1, 4, 4, 20, 2])
    batches = [lengths[batch].tolist() for batch in longest_first(lengths, 10)]
    assert batches == [[20], [9], [4, 4], [3, 2, 1]]
    assert list(longest_first(lengths[:0], 10)) == []


def test_many_windows_keep_the_order(tiny_folder, monkeypatch, rng):
    model = load_sentence_model(tiny_folder(), "float32")
    words = "the bank by river was flooded and water came".split()
    texts = [" ".join(rng.choice(words, rng.integers(0, 30))) for _ in range(50)]
    whole = model.embed(texts)
    monkeypatch.setattr(sentence_model, "WINDOW", 7)
    np.testing.assert_allclose(model.embed(texts), whole, atol=1e-6)
    np.testing.assert_allclose(model.embed(tuple(texts)), whole, atol=1e-6)
    np.testing.assert_allclose(model.embed(text for text in texts), whole, atol=1e-6)
    np.testing.assert_allclose(model.embed(np.array(texts)), whole, atol=1e-6)


def test_nothing_gives_no_rows(tiny_folder):
    model = load_sentence_model(tiny_folder())
    assert model.embed([]).shape == (0, 32) and model.embed([]).dtype == np.float32


def test_the_result_may_be_float16(tiny_folder):
    model = load_sentence_model(tiny_folder())
    vectors = model.embed(TEXTS, dtype="float16")
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors.astype(np.float32), model.embed(TEXTS), atol=1e-3)
    for name in (np.float16, np.dtype(np.float16), "f2"):
        np.testing.assert_array_equal(model.embed(TEXTS, dtype=name), vectors)
    assert model.embed(TEXTS[0], dtype=np.float32).dtype == np.float32
    for name, told in (("int8", "'int8'"), (np.float64, "'float64'"), (None, "None"), ("x", "'x'"), (">f4", "'>f4'")):
        with pytest.raises(ValueError) as caught:
            model.embed(TEXTS, dtype=name)
        assert str(caught.value) == f"embed: dtype must be one of 'float32', 'float16'; got {told}"


# ---- prompts ----


@pytest.mark.parametrize("show_progress", [None, False, True])
def test_one_string_is_one_vector_and_a_list_of_one_a_row(tiny_folder, show_progress):
    model = load_sentence_model(tiny_folder(), "float32")
    one = model.embed("the bank", show_progress=show_progress)
    assert one.shape == (32,)
    np.testing.assert_array_equal(model.embed(["the bank"], show_progress=show_progress), one[None])


def test_prompts(tiny_folder):
    folder = tiny_folder()
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "passage": "passage: "}})
    model = load_sentence_model(folder, "float32")
    assert model.prompts == {"query": "query: ", "passage": "passage: "}
    expected = model.embed(["query: the bank"])
    assert np.abs(model.embed(["the bank"]) - expected).max() > 0.01
    np.testing.assert_array_equal(model.embed(["the bank"], prompt_name="query"), expected)
    np.testing.assert_array_equal(model.embed(["the bank"], prompt="query: "), expected)
    np.testing.assert_array_equal(model.embed("the bank", prompt="query: "), expected[0])
    with pytest.raises(ValueError, match="prompt_name must be one of 'query', 'passage'; got 'qeury'"):
        model.embed(["the bank"], prompt_name="qeury")
    with pytest.raises(ValueError, match="give prompt or prompt_name, not both"):
        model.embed(["the bank"], prompt="a", prompt_name="query")
    with pytest.raises(TypeError, match="prompt must be a string; got int"):
        model.embed(["the bank"], prompt=3)


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({}, "", ""),
        ({"query": "Q ", "passage": "P ", "corpus": "C "}, "Q ", "P "),
        ({"query": "Q ", "passage": "P ", "document": ""}, "Q ", ""),
        ({"corpus": "C ", "STS": "S "}, "", "C "),
    ],
)
def test_the_prompt_for_a_use(tiny_folder, prompts, query, document):
    folder = tiny_folder()
    fields = {"prompts": prompts, "default_prompt_name": next(iter(prompts), None)}
    write_json(folder / "config_sentence_transformers.json", {name: value for name, value in fields.items() if value})
    model = load_sentence_model(folder, "float32")
    assert (model.prompt_for("query"), model.prompt_for("document")) == (query, document)
    with pytest.raises(ValueError, match="^prompt_for: use must be one of 'query', 'document'; got 'passage'$"):
        model.prompt_for("passage")


def test_a_default_prompt_is_used_unless_told(tiny_folder):
    folder = tiny_folder()
    fields = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write_json(folder / "config_sentence_transformers.json", fields)
    model = load_sentence_model(folder, "float32")
    np.testing.assert_array_equal(model.embed(["the bank"]), model.embed(["query: the bank"], prompt=""))
    with pytest.raises(ValueError, match="got 'passage'"):
        model.embed(["the bank"], prompt_name="passage")


def test_a_prompt_may_be_no_part_of_the_vector(tiny_folder):
    folder = tiny_folder()
    pooling = {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": False}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    model = load_sentence_model(folder, "float32")
    for text in TEXTS:  # [CLS] query : stand before it
        expected = hidden_of(folder, "query: " + text)[3:].mean(axis=0)
        np.testing.assert_allclose(model.embed(text, prompt="query: ", normalize=False), expected, atol=1e-5)
    np.testing.assert_allclose(
        model.embed(TEXTS, normalize=False), [hidden_of(folder, text).mean(axis=0) for text in TEXTS], atol=1e-5
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"^embed: texts\[1\] has no tokens behind its prompt, whose tokens"):
        load_sentence_model(folder).embed(["the bank", ""], prompt="query: ")


# ---- limits ----


def test_long_texts_are_cut_with_one_warning(tiny_folder):
    folder = tiny_folder()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": False})
    model = load_sentence_model(folder, "float32")
    assert model.max_length == 10
    long, fits = "the bank " * 40, "the bank " * 4
    with pytest.warns(UserWarning, match=r"^embed: texts\[1\] is longer than 10 tokens") as caught:
        vectors = model.embed([fits, long, long])
    assert len(caught) == 1 and caught[0].filename == __file__
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)  # 8 words and 2 special tokens remain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed([long])
        model.embed(long)
        model.embed([fits], truncate=False)
    with pytest.raises(ValueError, match=r"^embed: texts\[1\] has 82 tokens; at most 10 are possible"):
        model.embed([fits, long], truncate=False)


def test_which_limit_counts(tiny_folder):
    folder = tiny_folder()
    assert load_sentence_model(folder).max_length == 64  # the model's positions
    write_tokenizer(folder, 30)
    assert load_sentence_model(folder).max_length == 30
    write_tokenizer(folder, 1e30)
    assert load_sentence_model(folder).max_length == 64
    write_tokenizer(folder, 30)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 40})  # which has the last word
    assert load_sentence_model(folder).max_length == 40
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 90})
    assert load_sentence_model(folder).max_length == 64
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 2})
    with pytest.raises(ValueError, match="tokenizer.json: a text of 2 tokens has no room beside 3 special ones"):
        load_sentence_model(folder)


def test_texts_are_lowered_where_the_folder_says_so(tiny_folder):
    folder = tiny_folder()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})
    model = load_sentence_model(folder, "float32")
    assert np.abs(model.embed("THE BANK") - model.embed("the bank")).max() > 0.01
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    model = load_sentence_model(folder, "float32")
    np.testing.assert_array_equal(model.embed(["THE BANK"]), model.embed(["the bank"]))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("error", "match", "texts"),
    [
        (TypeError, r"^embed: texts\[1\] must be a string; got NoneType$", ["a", None]),
        (TypeError, r"^embed: texts\[2\] must be a string; got bytes$", ["a", "b", b"c"]),
        (TypeError, r"^embed: texts\[0\] must be a string; got list$", [["a"]]),
        (TypeError, "^embed: texts must be a list of strings; got NoneType$", None),
        (TypeError, "^embed: texts must be a list of strings; got bytes$", b"text"),
        (TypeError, "^embed: texts must be a list of strings; got int$", 3),
        (TypeError, "^embed: texts must be a list of strings; got dict$", {"a": 1}),
        (TypeError, r"^embed: texts must be a list of strings; got ndarray of shape \(\)$", np.array("abc")),
        (ValueError, r"^embed: character 1 of texts\[1\] is '\\ud800', half a surrogate pair", ["a", "b\ud800"]),
        (ValueError, r"^embed: character 0 of texts\[0\] is '\\ud800', half a surrogate pair", "\ud800"),
    ],
)
def test_texts_that_are_none(tiny_folder, error, match, texts):
    with pytest.raises(error, match=match):
        load_sentence_model(tiny_folder()).embed(texts)


def test_a_wrong_text_in_a_later_window_is_named(tiny_folder, monkeypatch):
    monkeypatch.setattr(sentence_model, "WINDOW", 3)
    with pytest.raises(TypeError, match=r"texts\[7\] must be a string; got NoneType"):
        load_sentence_model(tiny_folder()).embed_to("unused.npy", iter([*TEXTS, None]))


@pytest.mark.parametrize("batch_tokens", [0, -1, 2.5, True, None])
def test_batch_tokens_must_be_a_count(tiny_folder, batch_tokens):
    with pytest.raises((TypeError, ValueError), match="embed: batch_tokens must be (an integer|>= 1); got"):
        load_sentence_model(tiny_folder()).embed(TEXTS, batch_tokens=batch_tokens)


def test_a_folder_without_its_tokenizer(tiny_folder):
    folder = tiny_folder()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json does not exist; without it texts cannot become tokens"):
        load_sentence_model(folder)


def test_a_tokenizer_of_another_model(tiny_folder):
    folder = tiny_folder()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["beyond"] = 96
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="has 97 pieces, the model's vocab is 96: they do not belong together"):
        load_sentence_model(folder)


def test_a_text_without_tokens(tiny_folder):
    folder = tiny_folder()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"^embed: texts\[2\] has no tokens$"):
        load_sentence_model(folder).embed(TEXTS)


# ---- streams ----


def test_embed_to_writes_what_embed_gives(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sentence_model, "WINDOW", 3)
    model = load_sentence_model(tiny_folder(), "float32")
    path = tmp_path / "vectors.npy"
    for dtype in ("float32", "float16"):
        vectors = model.embed_to(path, (text for text in TEXTS), dtype=dtype)
        assert isinstance(vectors, np.memmap) and vectors.dtype == dtype and not vectors.flags.writeable
        np.testing.assert_array_equal(np.load(path), model.embed(TEXTS, dtype=dtype))
    assert model.embed_to(path, []).shape == (0, 32) and np.load(path).shape == (0, 32)
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["vectors.npy"]


def test_embed_to_reads_no_more_than_it_needs_at_once(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sentence_model, "WINDOW", 4)
    model = load_sentence_model(tiny_folder(), "float32")
    taken, done = [0], [0]
    original = model._embed_window

    def stream():
        for index in range(40):
            taken[0] = index + 1
            assert taken[0] - done[0] <= 12
            yield "the bank"

    def counted(encoded, *rest):
        result = original(encoded, *rest)
        done[0] += len(encoded.ids)
        return result

    monkeypatch.setattr(model, "_embed_window", counted)
    assert model.embed_to(tmp_path / "v.npy", stream()).shape == (40, 32)


def test_an_error_leaves_the_old_file(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sentence_model, "WINDOW", 2)
    model, path = load_sentence_model(tiny_folder()), tmp_path / "vectors.npy"
    model.embed_to(path, TEXTS)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"^embed_to: texts\[7\] must be a string; got NoneType$"):
        model.embed_to(path, [*TEXTS, None])
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["vectors.npy"]
    with pytest.raises(ValueError, match="path must end with .npy; got 'vectors.bin'"):
        model.embed_to("vectors.bin", TEXTS)


# ---- the model itself ----


def test_a_pickle_of_an_earlier_form_opens(tiny_folder):
    folder = tiny_folder("bert")
    assert sentence_model._reopen(folder, "float32", None, True, None, "x").name == "x"
    assert sentence_model._reopen(folder, "float32", {"name": "y"}).name == "y"


def test_repr(tiny_folder):
    assert repr(load_sentence_model(tiny_folder(), "int8")) == "SentenceModel('bert', dim=32, weights='int8')"


def test_info(tiny_folder):
    folder = tiny_folder()
    write_pooling(folder, "cls_token")
    info = load_sentence_model(folder, "int8").info()
    assert info["name"] == "bert" and info["pooling"] == "cls" and info["dim"] == 32 and info["max_length"] == 64
    assert info["weights"]["asked"] == "int8" and info["weights"]["matrices"] == {"int8": 1, "int8_channel": 12}


def test_what_is_for_decoders_is_refused_of_an_encoder(tiny_folder):
    folder = tiny_folder()
    for options in ({"context": 32}, {"packed_cache": True}):
        with pytest.raises(ValueError, match="is an encoder; context and packed_cache are for decoders"):
            load(folder, **options)
    with pytest.raises(ValueError, match="is a model of vectors; cache_tokens is for models that write text"):
        load(folder, cache_tokens=64)
    with pytest.raises(ValueError, match="load: weights must be .*; got 'int2'"):
        load("no/such-model", weights="int2", offline=True)
