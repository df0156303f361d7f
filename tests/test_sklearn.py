"""fm.sklearn.Embedder as scikit-learn uses it: cloned, searched over, pickled, in pipelines; and what it refuses."""

import copy
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_encoders import TINY, make_sentence_folder, write_tokenizer

import fastmixer as fm
from fastmixer.embed import load_sentence_model

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

# Of the tiny tokenizer's words; those of a class share some.
WATER = [
    "the river was flooded",
    "water came up",
    "the bank by the river",
    "the river came up to the door",
    "flooded by water",
]
PEOPLE = [
    "alice introduced bob",
    "bob introduced chloe",
    "alice introduced chloe at a networking event",
    "chloe and bob",
    "bob and alice",
]
TEXTS, CLASSES = WATER + PEOPLE, np.repeat([0, 1], 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_sentence_folder(tmp_path_factory.mktemp("models") / "tiny", {"query": "query : "})


@pytest.fixture(scope="module")
def vectors(folder):
    return load_sentence_model(folder).embed(TEXTS)


@pytest.mark.parametrize(
    "make", [list, np.array, lambda texts: np.array(texts, object), lambda texts: np.array(texts)[::-1][::-1]]
)
def test_texts_become_vectors(folder, vectors, make):
    embedder = fm.sklearn.Embedder(folder)
    np.testing.assert_array_equal(embedder.transform(make(TEXTS)), vectors)  # nothing has to be learned first
    np.testing.assert_array_equal(embedder.fit_transform(make(TEXTS), CLASSES), vectors)
    assert embedder.fit(TEXTS) is embedder and embedder.transform([]).shape == (0, 32)


def test_options_are_those_of_embed(folder):
    model = load_sentence_model(folder, "int8")
    options = {"normalize": False, "prompt_name": "query", "dtype": "float16", "batch_tokens": 9}
    embedder = fm.sklearn.Embedder(str(folder), weights="int8", **options)
    np.testing.assert_array_equal(embedder.transform(TEXTS), model.embed(TEXTS, **options))
    with pytest.raises(ValueError, match=r"^embed: texts\[0\] has 202 tokens; at most 64 are possible"):
        fm.sklearn.Embedder(folder, truncate=False).transform(["the bank " * 100])


def test_parameters(folder, vectors):
    embedder = fm.sklearn.Embedder(folder, normalize=False)
    names = {
        "model", "weights", "pooling", "normalize", "prompt", "prompt_name", "truncate", "batch_tokens", "dtype", "show_progress",
        "offline",
    }  # fmt: skip
    assert set(embedder.get_params()) == names and embedder.get_params()["normalize"] is False
    assert embedder.set_params(normalize=True) is embedder
    np.testing.assert_array_equal(embedder.transform(TEXTS), vectors)
    for weights in ("float32", "int8"):  # another model is opened
        embedder.set_params(weights=weights)
        np.testing.assert_array_equal(embedder.transform(TEXTS), load_sentence_model(folder, weights).embed(TEXTS))
        assert embedder._sentence_model().encoder.weights == weights
    assert repr(fm.sklearn.Embedder("a", prompt="x")) == "Embedder(model='a', prompt='x')"
    model = load_sentence_model(folder, "float32")
    assert repr(fm.sklearn.Embedder(model)) == "Embedder(model=SentenceModel('tiny', dim=32, weights='float32'))"


def test_clones_share_the_open_model(folder, vectors):
    first = fm.sklearn.Embedder(folder).fit(TEXTS)
    second = clone(first)
    assert second is not first and second.get_params() == first.get_params()
    np.testing.assert_array_equal(second.transform(TEXTS), vectors)
    assert second._sentence_model() is first._sentence_model()
    model = load_sentence_model(folder)
    assert clone(fm.sklearn.Embedder(model)).model is model and copy.deepcopy(fm.sklearn.Embedder(model)).model is model


@pytest.mark.parametrize("is_open", [False, True])
def test_pickles_hold_no_weights(folder, vectors, is_open):
    embedder = fm.sklearn.Embedder(load_sentence_model(folder) if is_open else folder).fit(TEXTS)
    data = pickle.dumps(embedder)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).transform(TEXTS), vectors)


def test_a_model_without_a_folder_cannot_be_pickled(folder):
    from random_models import random_source

    from fastmixer.generate import LanguageModel
    from fastmixer.model.decoder import Decoder

    source = random_source("llama")
    model = LanguageModel(Decoder(source), source.tokenizer, "random").embedder("mean")
    assert fm.sklearn.Embedder(model).transform(TEXTS).shape == (10, 64)
    with pytest.raises(TypeError, match="^random was not opened from a folder of its own, so it cannot be pickled$"):
        pickle.dumps(fm.sklearn.Embedder(model))


def test_a_pipeline(folder, vectors):
    pipeline = make_pipeline(fm.sklearn.Embedder(folder), LogisticRegression(C=100))
    pipeline.fit(TEXTS, CLASSES)
    expected = LogisticRegression(C=100).fit(vectors, CLASSES)
    new = ["the river came up", "alice and chloe"]
    np.testing.assert_allclose(
        pipeline.predict_proba(new), expected.predict_proba(load_sentence_model(folder).embed(new)), atol=1e-6
    )
    assert pipeline.score(TEXTS, CLASSES) == 1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pipeline)).predict(new), pipeline.predict(new))


def test_a_grid_search_over_the_classifier(folder, vectors):
    pipeline = make_pipeline(fm.sklearn.Embedder(folder), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [1e-4, 1.0, 100.0]}, cv=2, error_score="raise").fit(
        TEXTS, CLASSES
    )
    expected = GridSearchCV(LogisticRegression(), {"C": [1e-4, 1.0, 100.0]}, cv=2).fit(vectors, CLASSES)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"])
    assert search.best_params_["logisticregression__C"] == expected.best_params_["C"]
    assert search.predict(TEXTS).tolist() == expected.predict(vectors).tolist()


def test_names_of_features(folder, vectors):
    embedder = fm.sklearn.Embedder(folder)
    names = embedder.get_feature_names_out()
    assert names.dtype == object and names.tolist() == [f"embedder{i}" for i in range(32)]
    assert make_pipeline(embedder).get_feature_names_out(["text"]).tolist() == names.tolist()


def test_a_column_of_a_table(folder, vectors):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"text": TEXTS, "size": range(10)})
    mixed = ColumnTransformer([("vector", fm.sklearn.Embedder(folder), "text")], remainder="passthrough").fit_transform(
        table
    )
    np.testing.assert_allclose(mixed, np.column_stack([vectors, range(10)]), atol=1e-6)
    out = fm.sklearn.Embedder(folder).set_output(transform="pandas").fit_transform(table["text"])
    assert list(out.columns)[-1] == "embedder31" and out.shape == (10, 32)
    with pytest.raises(
        ValueError, match=r"^Embedder: X must be texts \[n\], such as one column of a table; got shape \(10, 1\)$"
    ):
        fm.sklearn.Embedder(folder).transform(table[["text"]])


def test_tags(folder):
    tags = get_tags(fm.sklearn.Embedder(folder))
    assert tags.input_tags.string and tags.input_tags.one_d_array and not tags.input_tags.two_d_array
    assert not tags.requires_fit and not tags.target_tags.required
    check_is_fitted(fm.sklearn.Embedder(folder))


@pytest.mark.parametrize(
    ("error", "match", "texts"),
    [
        (TypeError, r"^embed: texts\[1\] must be a string; got NoneType$", ["a", None]),
        (TypeError, r"^embed: texts\[0\] must be a string; got bytes$", [b"a"]),
        (TypeError, r"^embed: texts\[2\] must be a string; got float$", np.array(["a", "b", np.nan], object)),
        (ValueError, r"^Embedder: X must be texts \[n\], .*; got shape \(2, 1\)$", np.array([["a"], ["b"]])),
        (TypeError, "^Embedder: X must be a list of texts; got one string$", "a text"),
    ],
)
def test_what_are_no_texts(folder, error, match, texts):
    with pytest.raises(error, match=match):
        fm.sklearn.Embedder(folder).fit_transform(texts)


def test_models_that_are_none(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fm.sklearn.Embedder(tmp_path / "none").fit(TEXTS)
    with pytest.raises(
        TypeError, match="^Embedder: model must be a folder, a name on .* or a SentenceModel; got NoneType$"
    ):
        fm.sklearn.Embedder(None).fit(TEXTS)
    cross = tmp_path / "cross"
    shutil.copytree(TINY / "bert-classifier", cross)
    write_tokenizer(cross)
    for model in (cross, fm.load(cross)):
        with pytest.raises(
            ValueError, match="^Embedder: cross is a cross-encoder or classifier, which gives no vectors"
        ):
            fm.sklearn.Embedder(model).fit(TEXTS)
    with pytest.raises(ValueError, match="^Embedder: tiny says itself how it makes vectors; pooling must be None$"):
        fm.sklearn.Embedder(folder, pooling="last").fit(TEXTS)
    with pytest.raises(ValueError, match="^Embedder: tiny says itself how it makes vectors; pooling must be None$"):
        fm.sklearn.Embedder(fm.load(folder), pooling="last").fit(TEXTS)


def test_it_is_loaded_when_it_is_asked_for():
    code = (
        "import sys; sys.modules['sklearn'] = None; import fastmixer as fm; print('sklearn' in dir(fm), 'sklearn' in fm.__all__)\n"
        "try: fm.sklearn\nexcept ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'True False\nfastmixer.sklearn needs scikit-learn: pip install "fastmixer[sklearn]"\n'
    code = (
        "import sys, fastmixer as fm; print('sklearn' in sys.modules); fm.sklearn.Embedder; print(fm.sklearn.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nfastmixer.sklearn\n"
