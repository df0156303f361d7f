"""A GGUF file as a model: the real SmolLM2, every architecture from tiny files, and files whose fields are wrong."""

import math
import re
import time
from dataclasses import asdict

import numpy as np
import pytest
from random_models import CONFIGS, CONTEXT, VOCAB, random_source

from fastmixer.model.config import ModelConfig
from fastmixer.train.memory import peak_memory
from fastmixer.weights.convert import convert
from fastmixer.weights.gguf import GGUFFile
from fastmixer.weights.gguf_model import ARCHITECTURES, open_gguf, unpaired_rows
from fastmixer.weights.gguf_writer import TensorToWrite, write_gguf
from fastmixer.weights.quantized import BY_NAME, quantize
from fastmixer.weights.stored import expected_tensors

# ---- the real file ----


def test_smollm2_config_and_tokenizer(smollm2_path):
    source = open_gguf(smollm2_path)
    expected = ModelConfig(
        vocab=49152, context=8192, dim=576, layers=30, heads=9, kv_heads=3, hidden=1536, norm="rmsnorm",
        norm_epsilon=float(np.float32(1e-5)), positions="rotary", rotary_base=100000.0, activation="silu", gated=True,
        bias=False, qkv_bias=False, tied_head=True,
    )  # fmt: skip
    assert source.config == expected and source.path == smollm2_path and source.generation == {}
    assert source.name == "Smollm2 135M 8k Lc100K Mix1 Ep2"
    assert source.tokenizer.vocab_size == 49152 and source.tokenizer.decode(source.tokenizer.encode("The bank")) == "The bank"
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == expected_tensors(expected)
    assert source.tensors["embedding.weight"].type.name == "Q8_0"
    assert source.tensors["layers.29.feedforward.down.weight"].type.name == "Q4_1"


def test_smollm2_tensors_are_views_and_q_and_k_are_unpaired(smollm2_path):
    source = open_gguf(smollm2_path)
    file = source.tensors._file
    for name in ("embedding.weight", "layers.3.attention.v.weight", "layers.3.feedforward.up.weight", "final_norm.weight"):
        assert not source.tensors[name].raw.flags.writeable and not source.tensors[name].raw.flags.owndata
    for part, heads in (("q", 9), ("k", 3)):
        # llama.cpp's permute(): rows [heads, 2, 32] were written as [heads, 32, 2]
        there = file[f"blk.3.attn_{part}.weight"].reshape(heads, 32, 2, 576)
        expected = there.swapaxes(1, 2).reshape(heads * 64, 576)
        np.testing.assert_array_equal(source.tensors[f"layers.3.attention.{part}.weight"].values(), expected)


def test_smollm2_values_are_those_of_the_gguf_package(smollm2_path):
    gguf = pytest.importorskip("gguf")
    source = open_gguf(smollm2_path)
    raw = source.tensors._file.raw("blk.0.attn_q.weight")
    there = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_1)
    expected = there.reshape(9, 32, 2, 576).swapaxes(1, 2).reshape(576, 576)
    np.testing.assert_allclose(source.tensors["layers.0.attention.q.weight"].values(), expected, rtol=1e-6, atol=1e-7)


def test_smollm2_opens_without_reading_its_tensors(smollm2_path):
    before = peak_memory()
    open_gguf(smollm2_path)
    assert peak_memory() - before < 64 << 20


def test_a_shorter_context(smollm2_path):
    assert open_gguf(smollm2_path, context=100).config.context == 100
    for wrong in (0, -1, 8193, 1.5, True):
        text = rf"context must be an integer from 1 to llama\.context_length, 8192; got {wrong!r}$"
        with pytest.raises(ValueError, match=text):
            open_gguf(smollm2_path, context=wrong)


# ---- every architecture ----


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_comes_back(tmp_path, kind):
    """Configuration, names and values; names of the architectures are tested by llama.cpp's own loader elsewhere."""
    source = random_source(kind)
    found = open_gguf(convert(source, tmp_path / "m.gguf"))
    ours, theirs = asdict(source.config), asdict(found.config)
    for config in (ours, theirs):
        config["qkv_bias"] = config["qkv_bias"] if config["qkv_bias"] is not None else config["bias"]
        config["attention_scale"] = config["attention_scale"] or config["head_dim"] ** -0.5
        for name, value in config.items():
            config[name] = float(np.float32(value)) if isinstance(value, float) else value
    assert ours == theirs
    assert list(found.tensors) == list(source.tensors) and len(found.tensors) == len(source.tensors)
    for name, tensor in source.tensors.items():
        assert found.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(found.tensors[name].values(), tensor.values(), err_msg=name)
    assert found.generation == {"temperature": 0.5, "top_k": 40, "top_p": 0.25}
    with pytest.raises(KeyError):
        found.tensors["layers.0.attention.qkv.weight"]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("type_name", ["F16", "Q8_0"])
def test_types_stay_as_they_are_stored(tmp_path, kind, type_name):
    """Blocks are copied, also where q and k change the order of their rows or lie in one tensor with v."""
    source = random_source(kind, type_name)
    found = open_gguf(convert(source, tmp_path / "m.gguf"))
    for name, tensor in source.tensors.items():
        assert found.tensors[name].type.name == tensor.type.name, name
        np.testing.assert_array_equal(found.tensors[name].raw, tensor.raw, err_msg=name)


def test_unpaired_rows():
    np.testing.assert_array_equal(unpaired_rows(1, 8, 8), [0, 2, 4, 6, 1, 3, 5, 7])
    np.testing.assert_array_equal(unpaired_rows(2, 6, 4), [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11])


def test_gpt2_positions_of_a_shorter_context(tmp_path):
    source = random_source("gpt2")
    found = open_gguf(convert(source, tmp_path / "m.gguf"), context=10)
    assert found.config.context == 10
    np.testing.assert_array_equal(found.tensors["positions.weight"].values(), source.tensors["positions.weight"].values()[:10])


# ---- files made by hand: a tiny Llama with some fields changed ----


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return GGUFFile(convert(random_source("llama"), tmp_path_factory.mktemp("llama") / "llama.gguf"))


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    return GGUFFile(convert(random_source("phi3"), tmp_path_factory.mktemp("phi3") / "phi3.gguf"))


def vector(*values):
    row = np.array([values], np.float32)
    return TensorToWrite(BY_NAME["F32"], (len(values),), lambda: quantize(row, BY_NAME["F32"]))


def rewritten(file, path, fields=None, tensors=None):
    """The same file with fields and tensors changed; None takes one away."""
    metadata = {**file.metadata, **(fields or {})}
    there = {name: TensorToWrite(info.type, info.shape, lambda name=name: file.raw(name)) for name, info in file.tensors.items()}
    there.update(tensors or {})
    return write_gguf(
        path, {n: v for n, v in metadata.items() if v is not None}, {n: t for n, t in there.items() if t is not None}
    )


def opened(file, tmp_path, fields=None, tensors=None, context=None):
    return open_gguf(rewritten(file, tmp_path / "m.gguf", fields, tensors), context)


def test_linear_scaling_and_the_old_name_of_its_factor(llama, tmp_path):
    for fields in ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, {"llama.rope.scale_linear": 4.0}):
        assert opened(llama, tmp_path, fields).config.rotary_factors == (4.0,) * 8
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert opened(llama, tmp_path, none).config.rotary_factors is None


def test_llama3_factors(llama, tmp_path):
    factors = (1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0)
    found = opened(llama, tmp_path, tensors={"rope_freqs.weight": vector(*factors)})
    assert found.config.rotary_factors == factors and found.config.rotary_magnitude == 1


def test_yarn(llama, tmp_path):
    """Against the paper's formula, written out for 16 numbers a head, base 10,000, 64 positions stretched 4 times."""
    fields = {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.attn_factor": 0.5,
    }  # fmt: skip
    found = opened(llama, tmp_path, fields).config

    def index(turns):
        return 16 * math.log(64 / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(math.floor(index(32)), 0), min(math.ceil(index(1)), 15)
    expected = []
    for i in range(8):
        extrapolated = 1 - min(max((i - low) / (high - low), 0), 1)
        expected.append(1 / ((1 - extrapolated) / 4 + extrapolated))
    np.testing.assert_allclose(found.rotary_factors, expected, rtol=1e-12)
    assert expected[0] == 1 and expected[-1] == 4 and 1 < expected[1] < 4
    assert found.rotary_magnitude == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))


def test_longrope_factors_follow_the_context(phi3, tmp_path):
    fields = {"phi3.context_length": 4096, "phi3.rope.scaling.original_context_length": 64}
    tensors = {"rope_factors_long.weight": vector(1, 2, 3, 4, 5, 6), "rope_factors_short.weight": vector(1, 1, 1, 2, 2, 2)}
    for context, seen, factors in ((None, 64, (1, 1, 1, 2, 2, 2)), (64, 64, (1, 1, 1, 2, 2, 2)), (65, 65, (1, 2, 3, 4, 5, 6)), (4096, 4096, (1, 2, 3, 4, 5, 6))):
        found = opened(phi3, tmp_path, fields, tensors, context).config
        assert (found.context, found.rotary_factors, found.rotary_magnitude) == (seen, factors, 1.25)


def test_gemmas_large_models_scale_by_the_model_width(tmp_path):
    """llama.cpp knows them by their number of layers alone."""
    for kind, layers in (("gemma2", 46), ("gemma3", 62)):
        changes = {"layers": layers, "attention_scale": 4**-1.0, "dim": 64, "heads": 4, "hidden": 32}
        local = tuple(i % (2 if kind == "gemma2" else 6) < (1 if kind == "gemma2" else 5) for i in range(layers))
        source = random_source(kind, **{**changes, "local_layers": local})
        assert open_gguf(convert(source, tmp_path / "m.gguf")).config.attention_scale == 0.25


def test_local_layers_by_a_list(llama, tmp_path):
    pattern = np.array([True, False, True])
    fields = {"llama.attention.sliding_window": 7, "llama.attention.sliding_window_pattern": pattern}
    found = opened(llama, tmp_path, fields).config
    assert found.window == 7 and found.local_layers == (True, False, True)


@pytest.mark.parametrize(
    ("layers", "local", "written"),
    [
        (7, (True, False, True, False, True, False, True), 2),
        (7, (True,) * 7, 8),
        (7, (True, True, True, False, True, True, True), 4),
        (3, (True,) * 3, None),  # the usual period of 6 says so already
    ],
)
def test_local_layers_by_their_period(tmp_path, layers, local, written):
    path = convert(random_source("gemma3", layers=layers, local_layers=local), tmp_path / "m.gguf")
    assert GGUFFile(path).metadata.get("gemma3.attention.sliding_window_pattern") == written
    found = open_gguf(path).config
    assert (found.local_layers or (True,) * layers) == local and found.window == 5


@pytest.mark.parametrize(("period", "local"), [(0, None), (2, (True, False, True)), (3, (True, True, False))])
def test_a_period_in_the_file(llama, tmp_path, period, local):
    fields = {"llama.attention.sliding_window": 7, "llama.attention.sliding_window_pattern": period}
    found = opened(llama, tmp_path, fields).config
    assert found.window == 7 and found.local_layers == local
    every = {"llama.attention.sliding_window": 7, "llama.attention.sliding_window_pattern": 1}
    assert opened(llama, tmp_path, every).config.window is None


def test_fields_that_may_be_absent_or_stand_for_each_layer(llama, tmp_path):
    absent = ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.freq_base", "llama.rope.dimension_count",
              "llama.vocab_size", "general.name", "general.sampling.temp", "general.sampling.top_k", "general.sampling.top_p")  # fmt: skip
    each = {"llama.feed_forward_length": np.full(3, 96, np.int32), "llama.attention.head_count_kv": np.full(3, 2, np.uint32)}
    found = opened(llama, tmp_path, {**dict.fromkeys(absent), **each})
    assert found.config == open_gguf(llama.path).config
    assert found.name == "m" and found.generation == {}


def test_without_a_tokenizer(llama, tmp_path):
    assert opened(llama, tmp_path, {"tokenizer.ggml.model": None}).tokenizer is None


LLAMA_FIELDS = {
    "general.architecture": [
        ("mamba", "must be one of llama, qwen2, qwen3, gemma2, gemma3, phi3, gpt2; got 'mamba'"),
        (None, "is missing; expected text"), (7, "must be text; got 7"),
    ],
    "split.count": [(3, "must be 1 (join the parts of a model first); got 3")],
    "llama.block_count": [
        (None, "is missing; expected an integer from 1 to 30"), (0, "must be an integer from 1 to 30; got 0"),
        (2**32 - 1, "must be an integer from 1 to 30; got 4294967295"), ("3", "must be an integer from 1 to 30; got '3'"),
        (True, "must be an integer from 1 to 30; got True"), (3.0, "must be an integer from 1 to 30; got 3.0"),
        (np.int64(-3), "must be an integer from 1 to 30; got -3"),
    ],
    "llama.context_length": [
        (None, "is missing; expected an integer from 1 to 16777216"), (0, "must be an integer from 1 to 16777216; got 0"),
        (2**31, "must be an integer from 1 to 16777216; got 2147483648"),
    ],
    "llama.embedding_length": [(65, "must be the width of token_embd.weight, 64; got 65"), (None, "is missing; expected an integer from 1 to 16777216")],
    "llama.vocab_size": [(319, "must be the rows of token_embd.weight, 320; got 319")],
    "llama.attention.head_count": [
        (0, "must be an integer from 1 to 16777216; got 0"), (np.array([4, 4, 2], np.int32), "must be the same in every layer; got [4, 4, 2]"),
        (np.array([], np.int32), "must be an integer from 1 to 16777216; got []"),
    ],
    "llama.attention.head_count_kv": [(3, "must divide the 4 heads; got 3"), (8, "must divide the 4 heads; got 8"), (0, "must be an integer from 1 to 16777216; got 0")],
    "llama.attention.value_length": [(8, "must be as attention.key_length, 16; got 8")],
    "llama.attention.layer_norm_rms_epsilon": [
        (None, "is missing; expected a finite number >= 0"), (math.nan, "must be a finite number >= 0; got nan"),
        (-1e-5, "must be a finite number >= 0; got -9.999999747378752e-06"), ("1e-5", "must be a finite number >= 0; got '1e-5'"),
    ],
    "llama.attention.causal": [(False, "must be true (a model that writes text)")],
    "llama.expert_count": [(8, "must be 0 (mixtures of experts are not known); got 8")],
    "llama.rope.freq_base": [(0.0, "must be a finite number > 0; got 0.0"), (math.inf, "must be a finite number > 0; got inf")],
    "llama.rope.dimension_count": [(15, "must be even; got 15"), (18, "must be an integer from 1 to 16; got 18"), (0, "must be an integer from 1 to 16; got 0")],
    "llama.rope.scaling.type": [("spiral", "must be one of none, linear, yarn, longrope; got 'spiral'"), (1, "must be text; got 1")],
    "llama.rope.scaling.factor": [(-2.0, "must be a finite number >= 0; got -2.0")],
    "llama.rope.scaling.attn_factor": [(0.0, "must be a finite number > 0; got 0.0")],
    "llama.attention.sliding_window": [(2**30, "must be an integer from 0 to 16777216; got 1073741824")],
    "general.sampling.temp": [(math.nan, "must be a finite number >= 0; got nan")],
    "general.sampling.top_k": [(np.int32(-1), "must be an integer from 0 to 16777216; got -1")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "text"), [(name, *case) for name, cases in LLAMA_FIELDS.items() for case in cases]
)
def test_wrong_fields(llama, tmp_path, name, value, text):
    path = rewritten(llama, tmp_path / "m.gguf", {name: value})
    before, start = peak_memory(), time.perf_counter()
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {re.escape(name)} {re.escape(text)}$"):
        open_gguf(path)
    assert time.perf_counter() - start < 1 and peak_memory() - before < 64 << 20


def test_wrong_together(llama, tmp_path):
    """Fields that are only wrong beside others."""
    for fields, text in (
        ({"llama.attention.key_length": None, "llama.attention.head_count": 3, "llama.attention.head_count_kv": 3}, "llama.attention.head_count must divide embedding_length 64; got 3"),
        ({"llama.attention.sliding_window": 5, "llama.attention.sliding_window_pattern": np.array([1, 0], np.int32)}, "llama.attention.sliding_window_pattern must be 3 bools; got [1, 0]"),
        ({"llama.attention.sliding_window": 5, "llama.attention.sliding_window_pattern": np.array([1, 0, 2], np.int32)}, "llama.attention.sliding_window_pattern must be 3 bools; got [1, 0, 2]"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.freq_base": 1.0}, "llama.rope.freq_base must be a number > 1 with yarn; got 1.0"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.freq_base": 0.5}, "llama.rope.freq_base must be a number > 1 with yarn; got 0.5"),
        ({"tokenizer.ggml.tokens": ["a"]}, f"tokenizer.ggml.tokens must be {VOCAB} pieces, as token_embd.weight has rows; got 1"),
        ({"tokenizer.ggml.tokens": None}, f"tokenizer.ggml.tokens must be {VOCAB} pieces, as token_embd.weight has rows; got None"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of', which is not known"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"m\.gguf: {re.escape(text)}"):
            opened(llama, tmp_path, fields)


def test_wrong_tensors(llama, tmp_path):
    zeros = TensorToWrite(BY_NAME["F32"], (64, 63), lambda: np.zeros((64, 63 * 4), np.uint8))
    flat = TensorToWrite(BY_NAME["F32"], (VOCAB * 64,), lambda: np.zeros((1, VOCAB * 256), np.uint8))
    for tensors, text in (
        ({"token_embd.weight": None}, "tensor token_embd.weight [vocab, dim] is missing"),
        ({"token_embd.weight": flat}, "tensor token_embd.weight [vocab, dim] is missing"),
        ({"blk.1.attn_q.weight": None}, "tensor blk.1.attn_q.weight [64, 64] is missing"),
        ({"output_norm.weight": None}, "tensor output_norm.weight [64] is missing"),
        ({"blk.2.attn_q.weight": zeros}, "tensor blk.2.attn_q.weight must have shape (64, 64); got (64, 63)"),
        ({"output.weight": zeros}, f"tensor output.weight must have shape ({VOCAB}, 64); got (64, 63)"),
        ({"blk.3.attn_norm.weight": vector(1, 2)}, "tensor blk.3.attn_norm.weight is not known in architecture llama (1 such tensors)"),
        ({"blk.0.ffn_gate_inp.weight": vector(1)}, "tensor blk.0.ffn_gate_inp.weight is not known in architecture llama (1 such tensors)"),
        ({"blk.0.attn_q.bias": vector(*range(64))}, "tensor blk.0.attn_k.bias [32] is missing"),
        ({"rope_freqs.weight": vector(1, 2)}, "tensor rope_freqs.weight must have shape (8,); got (2,)"),
        ({"rope_freqs.weight": vector(1, 1, 1, 0, 1, 1, 1, 1)}, "tensor rope_freqs.weight must hold finite numbers > 0; got [1.0, 1.0, 1.0, 0.0, 1.0"),
        ({"rope_freqs.weight": vector(1, 1, 1, math.nan, 1, 1, 1, 1)}, "tensor rope_freqs.weight must hold finite numbers > 0; got [1.0, 1.0, 1.0, nan, 1.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"m\.gguf: {re.escape(text)}"):
            opened(llama, tmp_path, tensors=tensors)


def test_wrong_phi3(phi3, tmp_path):
    for fields, tensors, text in (
        ({"phi3.rope.scaling.original_context_length": None}, {}, "phi3.rope.scaling.original_context_length is missing"),
        ({}, {"rope_factors_short.weight": None}, "tensor rope_factors_short.weight must have shape (6,); got no such tensor"),
        ({}, {"blk.0.ffn_up.weight": vector(1)}, "tensor blk.0.ffn_up.weight must have shape (192, 64); got (1,)"),
        ({}, {"blk.0.attn_qkv.weight": None}, "tensor blk.0.attn_q.weight [64, 64] is missing"),
    ):
        with pytest.raises(ValueError, match=rf"m\.gguf: {re.escape(text)}"):
            opened(phi3, tmp_path, fields, tensors)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(bytes of a whole small model without a tokenizer, where its tensors begin)."""
    source = random_source("gemma2", layers=1, dim=8, heads=2, kv_heads=1, hidden=8, head_dim=4, vocab=8, local_layers=(True,), embedding_scale=8**0.5)
    source.tokenizer = None
    path = convert(source, tmp_path_factory.mktemp("plain") / "plain.gguf")
    return path.read_bytes(), min(info.start for info in GGUFFile(path).tensors.values())


def test_cut_at_every_byte_of_the_header(plain, tmp_path):
    content, header = plain
    path = tmp_path / "m.gguf"
    for length in range(1, header):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"m\.gguf: "):
            open_gguf(path)


def test_any_byte_changed_is_opened_or_refused(plain, tmp_path, rng):
    content, header = plain
    path = tmp_path / "m.gguf"
    for _ in range(1000):
        changed = bytearray(content)
        for at in rng.integers(4, header, rng.integers(1, 4)):
            changed[at] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            found = open_gguf(path)
        except ValueError as error:
            assert "m.gguf: " in str(error)
        else:
            assert {name: tensor.values().shape for name, tensor in found.tensors.items()} == expected_tensors(found.config)


def test_every_known_architecture_is_named_once():
    assert list(ARCHITECTURES) == ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"]
    assert CONTEXT == 64


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf is not a file$"):
        open_gguf(tmp_path / "absent.gguf")
