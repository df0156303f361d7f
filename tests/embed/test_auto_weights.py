"""weights="auto": what is tried, what is chosen, and how the model tells."""

import numpy as np
import pytest
from pair_models import write_random_encoder
from safetensors.numpy import load_file, save_file

from fastmixer.embed import auto_weights, load_sentence_model
from fastmixer.embed.auto_weights import GATES, SENTENCES, faster_kinds
from fastmixer.kernels import select


def kinds_of(told):
    """As people ask for them: how a kind is laid out is the encoder's choice."""
    return {kind.split("_")[0] for kind in told["matrices"]}


@pytest.fixture
def on(monkeypatch):
    """on(implementation): as if the kernels were that one's."""
    return lambda name: monkeypatch.setattr(auto_weights, "implementation", lambda op: name)


@pytest.mark.parametrize(
    ("implementation", "kinds"),
    [
        ("native-x86_64_v4_amx", ["bfloat16", "int8"]),
        ("native-x86_64_v4_bf16", ["int8", "bfloat16"]),
        ("native-x86_64_v4_vnni", ["int8"]),
        ("native-x86_64_v4", []),
        ("jit", []),
        ("reference", []),
    ],
)
def test_what_the_processor_multiplies_faster_is_tried_fastest_first(
    tiny_folder, on, monkeypatch, implementation, kinds
):
    on(implementation)
    monkeypatch.setattr(auto_weights, "GATES", dict.fromkeys(GATES, 1.1))  # nothing passes
    told = load_sentence_model(tiny_folder(), progress=False).info()["weights"]
    assert list(told["tried"]) == kinds and all(0.9 < least < 1.001 for least in told["tried"].values())
    assert (told["asked"], told["chosen"]) == ("auto", "float32") and kinds_of(told) == {"float32"}


def test_the_first_that_passes_is_taken(tiny_folder, on, monkeypatch):
    on("native-x86_64_v4_bf16")
    monkeypatch.setattr(auto_weights, "GATES", {"int8": 1.1, "bfloat16": 0.5})
    folder = tiny_folder()
    model = load_sentence_model(folder, progress=False)
    told = model.info()["weights"]
    assert (told["chosen"], list(told["tried"])) == ("bfloat16", ["int8", "bfloat16"])
    assert kinds_of(told) == {"bfloat16"} and told["bytes"] == model.encoder.nbytes
    monkeypatch.setattr(auto_weights, "GATES", {"int8": 0.5, "bfloat16": 0.5})
    told = load_sentence_model(folder, progress=False).info()["weights"]
    assert (told["chosen"], list(told["tried"])) == ("int8", ["int8"])


def test_the_least_cosine_is_that_of_the_vectors(tiny_folder, on):
    on("native-x86_64_v4_vnni")
    folder = tiny_folder()
    tried = load_sentence_model(folder, progress=False).info()["weights"]["tried"]
    plain, rounded = (load_sentence_model(folder, weights).embed(list(SENTENCES)) for weights in ("float32", "int8"))
    np.testing.assert_allclose(tried["int8"], (plain * rounded).sum(axis=1).min(), atol=1e-6)


def test_a_classifier_is_tried_by_what_its_head_reads(tiny_folder, on):
    on("native-x86_64_v4_bf16")
    told = load_sentence_model(tiny_folder("bert-classifier", None), progress=False).info()["weights"]
    assert told["chosen"] in ("int8", "bfloat16", "float32") and 0 < told["tried"]["int8"] < 1


def test_a_weight_that_is_no_number_is_named(tmp_path, on):
    on("native-x86_64_v4_vnni")
    folder = write_random_encoder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][3] = np.nan
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_sentence_model(folder, progress=False)
    assert str(caught.value) == f"{folder}: weights must be finite; embedding_norm.weight[3] = nan"
    tensors["embeddings.LayerNorm.weight"][3] = 3e38
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ValueError, match="vectors must be finite; its weights are, but some hidden state is too large"):
        load_sentence_model(folder, progress=False)


def test_what_is_asked_for_is_not_tried(tiny_folder):
    told = load_sentence_model(tiny_folder(), "float32").info()["weights"]
    assert told["asked"] == "float32" and "tried" not in told
    with pytest.raises(ValueError, match=r"^load: weights must be one of 'auto', 'float32'.*; got 'int3'"):
        load_sentence_model(tiny_folder("mpnet"), "int3")


def test_minilm_passes_in_the_fastest_kind_here(minilm_folder):
    model = load_sentence_model(minilm_folder, progress=False)
    told = model.info()["weights"]
    expected = next(iter(faster_kinds(select.implementation("encoder"))), "float32")
    assert told["chosen"] == expected and all(told["tried"][kind] >= GATES[kind] for kind in told["tried"])
