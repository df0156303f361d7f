"""The decoder of an opened model: logits of transformers' tiny models, of our own Transformer, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from random_models import CONFIGS, random_source

from fastmixer.kernels import select
from fastmixer.kernels.decoder.pages import PAGE, RUN
from fastmixer.model.config import ModelConfig
from fastmixer.model.decoder import Decoder
from fastmixer.model.transformer import Transformer
from fastmixer.ops.bfloat16 import is_fast
from fastmixer.weights.quantized import BY_NAME
from fastmixer.weights.source import ModelSource, open_source
from fastmixer.weights.stored import StoredTensor

TINY = Path(__file__).parent / "tiny"
MODELS = sorted(path.name for path in TINY.iterdir() if path.is_dir())
LOGITS = 1e-4  # absolute, float32 against transformers


@pytest.fixture(params=select.implementations("decoder"))
def implementation(request):
    with select.use_kernels(request.param):
        yield request.param


def all_logits(decoder, ids, chunks=None, dtype="float32"):
    """float32 [tokens, vocab] after each of ids, fed in chunks, in pages that lie in no order."""
    count = -(-len(ids) // PAGE)
    pages = decoder.new_pages(count + 2, dtype)
    table = np.arange(count + 1, 1, -1, dtype=np.int32)
    tables = np.tile(table, (len(decoder.windows), 1, 1))
    found, fed = [], 0
    for size in chunks or [len(ids)]:
        logits, _ = decoder.forward(
            np.asarray(ids[fed : fed + size], np.int64),
            np.array([0, size]),
            np.array([fed]),
            pages,
            tables,
            np.arange(size),
        )
        found.append(logits)
        fed += size
    return np.concatenate(found)


# ---- transformers' models ----


def open_tiny(name, tokens):
    # Phi-3's rotation depends on the context that is asked for
    return open_source(TINY / name, context=16 if name == "phi3" and tokens == 9 else 64)


@pytest.mark.parametrize("tokens", [9, 40])
@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_have_the_logits_of_transformers(implementation, name, tokens):
    goldens = np.load(TINY / name / "goldens.npz")
    decoder = Decoder(open_tiny(name, tokens), "float32")
    ids, expected = goldens[f"ids_{tokens}"], goldens[f"logits_{tokens}"]
    assert set(decoder.kinds.values()) == {"float32"}
    assert np.abs(all_logits(decoder, ids) - expected).max() <= LOGITS
    assert np.abs(all_logits(decoder, ids, [5, 1, 1, tokens - 7]) - expected).max() <= LOGITS


# ---- our own ----


def source_of(model):
    """A ModelSource with the parameters of a Transformer: matrices [out, in], q, k and v apart."""
    config, tensors = model.config, {}

    def keep(name, values):
        values = np.ascontiguousarray(values, np.float32)
        raw = values.reshape(1, -1) if values.ndim == 1 else values
        tensors[name] = StoredTensor(BY_NAME["F32"], raw.view(np.uint8), values.shape)

    for name in model.parameters:
        values = model.parameters[name]
        if ".qkv." in name:
            widths = np.cumsum([config.heads * config.head_dim, config.kv_heads * config.head_dim])
            for part, columns in zip("qkv", np.split(values, widths, axis=-1), strict=True):
                keep(name.replace("qkv", part), columns.T)
        elif values.ndim == 2 and (".attention." in name or ".feedforward." in name):
            keep(name, values.T)
        else:
            keep(name, values)
    return ModelSource(name="own", path=Path("own"), config=config, tensors=tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "sinusoidal", "activation": "relu"},
        {"positions": "none", "tied_head": False},
        {"positions": "rotary", "norm": "rmsnorm", "gated": True, "activation": "silu", "bias": False, "kv_heads": 2},
        {"positions": "rotary", "window": 7, "bias": False},
    ],
)
def test_logits_of_our_own_transformer(implementation, rng, changes):
    config = ModelConfig(**{"vocab": 61, "context": 90, "dim": 48, "layers": 2, "heads": 4, "hidden": 72, **changes})
    model = Transformer(config, seed=3)
    for name in model.parameters:  # so that biases and norms say something
        view = model.parameters[name]
        view += rng.standard_normal(view.shape, dtype=np.float32) * np.float32(0.1)
    ids = rng.integers(0, 61, 90)
    expected = model.logits(ids[None])[0]
    decoder = Decoder(source_of(model), "float32")
    for chunks in ([90], [1, 64, 1, 24]):
        assert np.abs(all_logits(decoder, ids, chunks) - expected).max() <= LOGITS


# ---- how weights are kept ----


def test_auto_keeps_blocks_as_they_are():
    plain = "bfloat16" if is_fast() else "float32"
    for type_name, kind in {"F32": plain, "F16": plain, "BF16": plain, "Q4_0": "int4", "Q8_0": "int8"}.items():
        decoder = Decoder(random_source("llama", type_name))
        assert set(decoder.kinds.values()) == {kind}
        assert "layers.0.attention.q.weight" in decoder.kinds
        assert len(decoder.kinds) == 2 + 3 * 7


def test_int4_keeps_embedding_and_head_in_int8():
    kinds = Decoder(random_source("llama", "F32"), "int4").kinds
    assert kinds.pop("embedding.weight") == kinds.pop("head.weight") == "int8"
    assert set(kinds.values()) == {"int4"}


def test_nbytes_shrinks_with_the_kind(implementation):
    sizes = [
        Decoder(random_source("llama", "F32"), weights).nbytes for weights in ("float32", "bfloat16", "int8", "int4")
    ]
    if not implementation.startswith("native"):
        sizes.pop()  # reference and jit keep a number of four bits in a byte
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_a_tied_head_is_kept_once(weights):
    decoder = Decoder(random_source("qwen3"), weights)
    assert decoder.spec.head.weight is decoder.spec.embedding


@pytest.mark.parametrize("kind", CONFIGS)
def test_all_kinds_stay_near_float32(implementation, kind, rng):
    ids = rng.integers(0, 320, 40)
    truth = all_logits(Decoder(random_source(kind), "float32"), ids)
    # relative to the spread of the logits; random weights round worst
    for weights, limit in (("bfloat16", 0.03), ("int8", 0.06), ("int4", 0.6)):
        logits = all_logits(Decoder(random_source(kind), weights), ids)
        assert np.sqrt(np.mean((logits - truth) ** 2)) <= limit * truth.std(), weights
    for dtype, limit in (("bfloat16", 0.02), ("int8", 0.03)):
        logits = all_logits(Decoder(random_source(kind), "float32"), ids, dtype=dtype)
        assert np.sqrt(np.mean((logits - truth) ** 2)) <= limit * truth.std(), dtype


# ---- groups of layers and their pages ----


def test_groups_follow_windows():
    assert Decoder(random_source("llama")).windows == (0,)
    assert Decoder(random_source("llama", window=9)).windows == (9,)
    assert Decoder(random_source("mistral")).windows == (0,)  # as long as the context: it hides nothing
    gemma = Decoder(random_source("gemma2"))
    assert gemma.windows == (0, 5)
    assert [(layer.group, layer.index) for layer in gemma.spec.layers] == [(1, 0), (0, 0), (1, 1)]
    pages = gemma.new_pages((3, 2), "int8")
    assert [keys.shape for keys in pages.keys] == [(1, 1, 2, RUN, 32, PAGE), (1, 2, 2, RUN, 32, PAGE)]
    assert pages.nbytes == 3 * gemma.page_bytes(0, "int8") + 2 * gemma.page_bytes(1, "int8")


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_last_tokens_are_wanted_unless_told_and_hidden_is_given(dtype, atol):
    """Pages of bfloat16 are multiplied in bfloat16, by another path for two rows than for seven."""
    decoder = Decoder(random_source("llama"), "float32")
    pages, tables = decoder.new_pages(2, dtype), np.array([[[0], [1]]], np.int32)
    ids, starts, first = np.arange(7), np.array([0, 3, 7]), np.zeros(2, np.int64)
    logits, hidden = decoder.forward(ids, starts, first, pages, tables, hidden=True)
    every, _ = decoder.forward(ids, starts, first, pages, tables, np.arange(7))
    np.testing.assert_allclose(logits, every[[2, 6]], atol=atol)
    assert hidden.shape == (2, 64)
    assert decoder.forward(ids, starts, first, pages, tables, logits=False) == (None, None)


# ---- what is refused, before anything is written ----


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (IndexError, r"ids\[1\] = 320 is out of range", {"ids": np.array([1, 320, 2])}),
        (ValueError, "ids must be int64 with one axis; got float64", {"ids": np.ones(3)}),
        (ValueError, "ids must be int64 with one axis; got list", {"ids": [1, 2, 3]}),
        (ValueError, "starts must rise from 0 to 3 tokens", {"starts": np.array([0, 4])}),
        (ValueError, "starts must rise from 0 to 3 tokens", {"starts": np.array([0, 5, 3]), "sequences": 2}),
        (ValueError, "starts must rise", {"starts": np.array([0, 1, 3])}),
        (ValueError, r"positions must be 0..63.*got 62..64", {"first_positions": np.array([62])}),
        (ValueError, "positions must be 0..63", {"first_positions": np.array([-1])}),
        (IndexError, r"wanted\[0\] = 3 is out of range", {"wanted": np.array([3])}),
        (ValueError, r"tables must be int32 \[groups=1, sequences=1", {"tables": np.zeros((1, 1, 1))}),
        (ValueError, r"tables must be int32 \[groups=1", {"tables": np.zeros((2, 1, 1), np.int32)}),
        (ValueError, r"tables\[0, 0, 0\] must be a page, 0..1; got -1", {"tables": np.full((1, 1, 1), -1, np.int32)}),
        (ValueError, r"tables\[0, 0, 0\] must be a page, 0..1; got 2", {"tables": np.full((1, 1, 1), 2, np.int32)}),
        (ValueError, "tables must hold 1 pages; got 0", {"tables": np.zeros((1, 1, 0), np.int32)}),
    ],
)
def test_forward_refuses(error, match, changes):
    decoder = Decoder(random_source("llama"), "float32")
    sequences = changes.pop("sequences", 1) if "sequences" in changes else 1
    pages = decoder.new_pages(2)
    arguments = {
        "ids": np.array([1, 2, 3]), "starts": np.array([0, 3]), "first_positions": np.zeros(sequences, np.int64),
        "pages": pages, "tables": np.zeros((1, sequences, 1), np.int32), **changes,
    }  # fmt: skip
    with pytest.raises(error, match=match):
        decoder.forward(**arguments)
    assert not any(array.any() for array in (*pages.keys, *pages.values))


def test_pages_of_another_model_are_refused():
    decoder = Decoder(random_source("llama"), "float32")
    other = Decoder(random_source("gemma2"), "float32").new_pages(2)
    with pytest.raises(ValueError, match="pages must be made by this decoder's new_pages"):
        decoder.forward(
            np.array([1]), np.array([0, 1]), np.array([0]), other, np.zeros((1, 1, 1), np.int32)
        )  # fmt: skip


def test_choices_are_named():
    with pytest.raises(ValueError, match="weights must be one of 'auto', 'float32'.*got 'int3'"):
        Decoder(random_source("llama"), "int3")
    decoder = Decoder(random_source("llama"))
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'bfloat16', 'int8'; got 'int4'"):
        decoder.new_pages(2, "int4")
    with pytest.raises(ValueError, match=r"pages_per_group must be 1 integers >= 1; got \(1, 2\)"):
        decoder.new_pages((1, 2))
