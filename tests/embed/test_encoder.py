"""The encoder of an opened model: hidden states of transformers' tiny models, kinds of weights, and what it refuses."""

import numpy as np
import pytest
from tiny_encoders import TINY

from fastmixer.kernels import select
from fastmixer.model.encoder import Encoder
from fastmixer.model.relative import RELATIVE_DISTANCE, relative_table
from fastmixer.weights.encoder_folder import open_encoder

MODELS = sorted(path.name for path in TINY.iterdir() if path.is_dir())
HIDDEN = 1e-4  # absolute, float32 against transformers


def goldens_of(name):
    """[(ids, token types, hidden, logits or None)] of each length."""
    goldens = np.load(TINY / name / "goldens.npz")
    lengths = [key.removeprefix("ids_") for key in goldens if key.startswith("ids_")]
    assert len(lengths) >= 2
    return [
        (goldens[f"ids_{n}"], goldens[f"types_{n}"], goldens[f"hidden_{n}"], goldens.get(f"logits_{n}"))
        for n in lengths
    ]


def starts_of(*lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_have_the_hidden_states_of_transformers(implementation, name):
    encoder = Encoder(open_encoder(TINY / name), "float32")
    assert {kind.split("_")[0] for kind in encoder.kinds.values()} == {"float32"}
    runs = goldens_of(name)
    for ids, types, expected, _ in runs:
        assert np.abs(encoder.forward(ids, starts_of(len(ids)), types) - expected).max() <= HIDDEN
    together = encoder.forward(
        *(np.concatenate([run[0] for run in runs]), starts_of(*(len(run[0]) for run in runs))),
        np.concatenate([run[1] for run in runs]),
    )
    assert np.abs(together - np.concatenate([run[2] for run in runs])).max() <= HIDDEN


@pytest.mark.parametrize("name", [name for name in MODELS if "classifier" in name])
def test_tiny_classifiers_have_the_logits_of_transformers(implementation, name):
    encoder = Encoder(open_encoder(TINY / name), "float32")
    for ids, types, _, expected in goldens_of(name):
        hidden = encoder.forward(ids, starts_of(len(ids)), types)
        pooled = hidden[:1] if encoder.config.head.pooling == "cls" else hidden.mean(axis=0, keepdims=True)
        logits = encoder.classify(pooled)[0]
        assert logits.shape == expected.shape == (encoder.config.head.classes,)
        assert np.abs(logits - expected).max() <= HIDDEN


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_all_kinds_stay_near_float32(implementation, name):
    ids, types, truth, _ = goldens_of(name)[1]
    for weights, limit in (("bfloat16", 0.03), ("int8", 0.05), ("int4", 0.5)):
        hidden = Encoder(open_encoder(TINY / name), weights).forward(ids, starts_of(len(ids)), types)
        assert np.sqrt(np.mean((hidden - truth) ** 2)) <= limit * truth.std(), weights


def test_how_weights_are_kept():
    source = open_encoder(TINY / "modernbert")
    for weights in ("float32", "bfloat16"):
        encoder = Encoder(source, weights)
        assert {kind.split("_")[0] for kind in encoder.kinds.values()} == {weights} and len(encoder.kinds) == 1 + 3 * 7
    kinds = Encoder(source, "int4").kinds
    assert kinds.pop("embedding.weight") == "int8" and set(kinds.values()) == {"int4"}
    with select.use_kernels("reference"):  # which pads the least: these matrices are small
        sizes = [Encoder(source, weights).nbytes for weights in ("float32", "bfloat16", "int8")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_relative_positions_have_buckets_as_t5():
    table = relative_table(np.arange(32, dtype=np.float32)[:, None])[0]
    at = {offset: table[offset + RELATIVE_DISTANCE] for offset in range(-RELATIVE_DISTANCE, RELATIVE_DISTANCE + 1)}
    assert [at[-i] for i in range(8)] == list(range(8)) and [at[i] for i in range(1, 8)] == list(range(17, 24))
    # powers of two are the edges of buckets: 8 * log2(n / 8) / 4 of them beyond the first 8
    assert [at[-n] for n in (8, 11, 12, 16, 32, 64, 113, 128)] == [8, 8, 9, 10, 12, 14, 15, 15]
    assert [at[n] - at[-n] for n in range(1, 129)] == [16] * 128


def test_token_types_of_a_model_without_them_are_ignored():
    encoder = Encoder(open_encoder(TINY / "distilbert"), "float32")
    ids = np.arange(3, 9)
    np.testing.assert_array_equal(
        encoder.forward(ids, starts_of(6)), encoder.forward(ids, starts_of(6), np.zeros(6, np.int64))
    )


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (IndexError, r"ids\[1\] = 96 is out of range", {"ids": np.array([1, 96, 2])}),
        (ValueError, "ids must be int64 with one axis; got float64", {"ids": np.ones(3)}),
        (ValueError, "ids must be int64 with one axis; got list", {"ids": [1, 2, 3]}),
        (ValueError, "starts must rise from 0 to 3 tokens", {"starts": np.array([0, 4])}),
        (ValueError, "starts must rise from 0 to 3 tokens", {"starts": np.array([0, 5, 3])}),
        (ValueError, "starts must rise from 0 to 3 tokens", {"starts": np.array([], np.int64)}),
        (ValueError, "token_types must be one of each of 3 tokens; got 2", {"token_types": np.zeros(2, np.int64)}),
        (IndexError, r"token_types\[2\] = 2 is out of range", {"token_types": np.array([0, 1, 2])}),
        (
            ValueError,
            "at most 64 tokens, the model's context; got 65",
            {"ids": np.ones(65, np.int64), "starts": np.array([0, 65])},
        ),
    ],
)
def test_forward_refuses(error, match, changes):
    encoder = Encoder(open_encoder(TINY / "bert"), "float32")
    arguments = {"ids": np.array([1, 2, 3]), "starts": np.array([0, 3]), "token_types": None, **changes}
    with pytest.raises(error, match=match):
        encoder.forward(**arguments)


def test_choices_are_named():
    with pytest.raises(ValueError, match="weights must be one of 'float32', 'bfloat16'.*got 'int3'"):
        Encoder(open_encoder(TINY / "bert"), "int3")
    with pytest.raises(ValueError, match="this encoder has no classification head"):
        Encoder(open_encoder(TINY / "bert")).classify(np.zeros((1, 32), np.float32))
