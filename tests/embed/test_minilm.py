"""The real all-MiniLM-L6-v2 on real sentences, against transformers' float32 vectors."""

from pathlib import Path

import numpy as np
import pytest
from alice_sentences import sentences

from fastmixer.embed import load_sentence_model
from fastmixer.kernels import select

# What each kind must keep of transformers' float32 vectors, as cosine, the worst of 100 sentences.
LEAST = {"float32": 0.99999, "bfloat16": 0.9995, "int8": 0.995}


@pytest.fixture(scope="module")
def expected():
    """float32 [100, 384]."""
    vectors = np.load(Path(__file__).parent / "goldens" / "minilm.npz")["vectors"].astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(params=[name for name in select.implementations("encoder") if name != "reference"])
def implementation(request):
    with select.use_kernels(request.param):
        yield request.param


@pytest.mark.parametrize("weights", LEAST)
def test_vectors_are_those_of_transformers(implementation, minilm_folder, expected, weights):
    model = load_sentence_model(minilm_folder, weights)
    assert (model.dim, model.max_length, model.recipe.pooling, model.recipe.normalize) == (384, 256, "mean", True)
    texts = sentences(100)
    if implementation == "jit" and weights == "int8":
        texts = texts[:30]
    cosines = (model.embed(texts) * expected[: len(texts)]).sum(axis=1)
    assert cosines.min() >= LEAST[weights]


def test_reference(minilm_folder, expected):
    with select.use_kernels("reference"):
        vectors = load_sentence_model(minilm_folder, "float32").embed(sentences(12))
    assert (vectors * expected[:12]).sum(axis=1).min() >= LEAST["float32"]


def test_meanings_that_are_alike_lie_close(minilm_folder):
    model = load_sentence_model(minilm_folder)
    river, water, money = model.embed(
        ["The bank by the river", "Grass along the edge of the stream", "Interest rates on savings accounts"]
    )
    assert river @ water > river @ money
