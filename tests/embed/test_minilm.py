"""The real all-MiniLM-L6-v2 on 500 real sentences, against transformers' float32 vectors: stored, and live.

Neighbours of a sentence are the ten others of the 500 whose vectors have the largest cosines with its own; queries and
texts have vectors of the same kind. The best kernel meets all 500, the others as many as their speed allows.
"""

from pathlib import Path

import numpy as np
import pytest
from alice_sentences import sentences
from neighbours import agreement, nearest

from fastmixer.embed import load_sentence_model
from fastmixer.kernels import select

ALL, NEIGHBOURS = 500, 10
LEAST = {"float32": 0.99999, "bfloat16": 0.9995, "int8": 0.995}  # cosine, of the worst sentence
SAME_NEIGHBOURS = {"float32": 0.999, "bfloat16": 0.99, "int8": 0.97}
OTHERS = [name for name in select.implementations("encoder") if name != select.implementation("encoder")]
FEW = {"reference": 8, "jit": 8}


@pytest.fixture(scope="module")
def goldens():
    """(vectors float32 [500, 384], neighbours int64 [500, 10])."""
    stored = np.load(Path(__file__).parent / "goldens" / "minilm.npz")
    vectors = stored["vectors"] * np.float32(stored["scale"])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (ALL, 384) and stored["neighbours"].shape == (ALL, NEIGHBOURS)
    return vectors, stored["neighbours"].astype(np.int64)


def test_goldens_hold_together(goldens):
    vectors, neighbours = goldens
    assert agreement(nearest(vectors, NEIGHBOURS), neighbours) >= 0.9999  # as rounded, and as they were


@pytest.mark.parametrize("weights", LEAST)
def test_vectors_and_neighbours_are_those_of_transformers(minilm_folder, goldens, weights):
    expected, neighbours = goldens
    model = load_sentence_model(minilm_folder, weights)
    assert (model.dim, model.max_length, model.recipe.pooling, model.recipe.normalize) == (384, 256, "mean", True)
    vectors = model.embed(sentences(ALL))
    assert (vectors * expected).sum(axis=1).min() >= LEAST[weights]
    assert agreement(nearest(vectors, NEIGHBOURS), neighbours) >= SAME_NEIGHBOURS[weights]


def test_short_texts_keep_a_little_less_in_int8(minilm_folder):
    texts = ["", "?", "No, no!", "wow!", "ok", "thank you", "Alice", "hello world", "1"]
    plain, rounded = (load_sentence_model(minilm_folder, weights).embed(texts) for weights in ("float32", "int8"))
    assert 0.985 <= (plain * rounded).sum(axis=1).min()


@pytest.mark.parametrize("implementation", OTHERS)
@pytest.mark.parametrize("weights", LEAST)
def test_every_kernel_has_those_vectors(minilm_folder, goldens, implementation, weights):
    if implementation in FEW and weights != "float32":
        pytest.skip("it takes long here; test_encoder.py holds its kinds to float32 on tiny models")
    count = FEW.get(implementation, 24)
    with select.use_kernels(implementation):
        vectors = load_sentence_model(minilm_folder, weights).embed(sentences(count))
    assert (vectors * goldens[0][:count]).sum(axis=1).min() >= LEAST[weights]


def test_transformers_says_so_itself(minilm_folder, goldens):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    texts = sentences(ALL)[::10]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    model = transformers.AutoModel.from_pretrained(minilm_folder, dtype=torch.float32).eval()
    inputs = tokenizer(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, keep = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        theirs = torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=1).numpy()
    ours = load_sentence_model(minilm_folder, "float32").embed(texts)
    assert (ours * theirs).sum(axis=1).min() >= LEAST["float32"]
    assert (goldens[0][::10] * theirs).sum(axis=1).min() >= 0.999999  # nor are the stored ones of another model


def test_meanings_that_are_alike_lie_close(minilm_folder):
    model = load_sentence_model(minilm_folder)
    river, water, money = model.embed(
        ["The bank by the river", "Grass along the edge of the stream", "Interest rates on savings accounts"]
    )
    assert river @ water > river @ money
