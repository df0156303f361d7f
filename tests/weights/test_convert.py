"""Models written as GGUF files and as folders: names, shapes, types and values; what cannot be written is said."""

import json
import re
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from random_models import CONFIGS, VOCAB, random_source, tiny_tokenizer
from transformers_names import from_gpt2, from_llama

from fastmixer.model.config import ModelConfig
from fastmixer.model.transformer import Transformer
from fastmixer.text import Tokenizer, train_tokenizer
from fastmixer.text.conventions import Conventions
from fastmixer.text.gguf_tokenizer import tokenizer_from_gguf
from fastmixer.weights.architectures import read_config
from fastmixer.weights.convert import convert
from fastmixer.weights.gguf import GGUFFile
from fastmixer.weights.gguf_model import open_gguf
from fastmixer.weights.gguf_vocabulary import tokenizer_fields
from fastmixer.weights.hf_export import hf_config
from fastmixer.weights.quantized import BY_NAME, dequantize, quantize
from fastmixer.weights.source import open_source

TEXT = "Alice introduced Bob to Chloe.\n\n  The bank by the river: 1234 naïve ☃ bytes, don't you think?"


def read_safetensors(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


# ---- folders ----


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama stretched", "mistral"])
def test_a_folder_has_the_names_that_transformers_gives(tmp_path, kind):
    """Read back by names of their own, which test_oracle.py holds against transformers."""
    source = random_source(kind)
    folder = convert(source, tmp_path / "folder")
    there = read_safetensors(folder)
    layers, tensors = source.config.layers, source.tensors
    ours = from_gpt2(there, layers) if kind == "gpt2" else from_llama(there, layers)
    expected = {}
    for name, tensor in tensors.items():
        values = tensor.values()
        if ".attention.k." in name or ".attention.v." in name:
            continue
        if ".attention.q." in name:
            values = np.concatenate([tensors[name.replace(".q.", f".{part}.")].values() for part in "qkv"])
            name = name.replace(".q.", ".qkv.")
        stays = values.ndim == 1 or name.split(".")[0] in ("embedding", "positions", "head")
        expected[name] = values if stays else values.T
    if kind == "gpt2":
        assert "lm_head.weight" not in there
    assert set(ours) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


def test_a_folders_other_files(tmp_path):
    folder = convert(random_source("llama"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    assert config["eos_token_id"] == tiny_tokenizer().end_id and config["num_key_value_heads"] == 2
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["temperature"] == 0.5 and generation["top_k"] == 40 and generation["eos_token_id"] == tiny_tokenizer().end_id
    np.testing.assert_array_equal(Tokenizer.load(folder).encode(TEXT), tiny_tokenizer().encode(TEXT))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_comes_back(tmp_path, kind):
    source = random_source(kind, **({"window": 9} if kind == "mistral" else {}))
    found = open_source(convert(source, tmp_path / "folder"))
    for field, value in asdict(source.config).items():
        there = getattr(found.config, field)
        if field == "qkv_bias":
            assert found.config.has_qkv_bias == source.config.has_qkv_bias
        elif field == "attention_scale":
            assert there is None or there == pytest.approx(source.config.head_dim**-0.5)
        elif isinstance(value, float):
            assert there == pytest.approx(value), field
        else:
            assert there == value, field
    assert set(found.tensors) == set(source.tensors)
    for name, tensor in source.tensors.items():
        np.testing.assert_allclose(found.tensors[name].values(), tensor.values(), rtol=1e-6, atol=1e-6, err_msg=name)
    assert found.generation["temperature"] == 0.5
    np.testing.assert_array_equal(found.tokenizer.encode(TEXT), source.tokenizer.encode(TEXT))


@pytest.mark.parametrize("preset", ["tiny", "llama-tiny"])
@pytest.mark.parametrize("target", ["m.gguf", "folder"])
def test_a_model_that_was_trained_here(tmp_path, preset, target):
    model = Transformer(ModelConfig.preset(preset, vocab=VOCAB, layers=2), seed=1, tokenizer=tiny_tokenizer())
    model.save(tmp_path / "trained")
    source = open_source(tmp_path / "trained")
    found = open_source(convert(source, tmp_path / target))
    assert set(found.tensors) == set(source.tensors)
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].values(), tensor.values(), err_msg=name)
    qkv = model.parameters["layers.1.attention.qkv.weight"]
    np.testing.assert_array_equal(found.tensors["layers.1.attention.q.weight"].values(), qkv[:, :128].T)


def test_gemmas_norms_are_stored_less_one_and_phis_parts_together(tmp_path):
    source = random_source("gemma3")
    there = read_safetensors(convert(source, tmp_path / "gemma"))
    for theirs, ours in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "attention_post_norm"),
                         ("pre_feedforward_layernorm", "feedforward_norm"), ("post_feedforward_layernorm", "feedforward_post_norm"),
                         ("self_attn.q_norm", "attention.q_norm"), ("self_attn.k_norm", "attention.k_norm")):  # fmt: skip
        values = source.tensors[f"layers.6.{ours}.weight"].values()
        np.testing.assert_array_equal(there[f"model.layers.6.{theirs}.weight"], values - np.float32(1))
    np.testing.assert_array_equal(there["model.embed_tokens.weight"], source.tensors["embedding.weight"].values())
    assert "lm_head.weight" not in there

    source = random_source("phi3")
    there = read_safetensors(convert(source, tmp_path / "phi"))
    gate, up = (source.tensors[f"layers.1.feedforward.{part}.weight"].values() for part in ("gate", "up"))
    np.testing.assert_array_equal(there["model.layers.1.mlp.gate_up_proj.weight"], np.concatenate([gate, up]))
    assert there["model.layers.1.self_attn.qkv_proj.weight"].shape == (64 + 2 * 32, 64)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt2", {"model_type": "gpt2", "n_embd": 64, "n_inner": 96, "activation_function": "gelu_new"}),
        ("llama with a factor for each frequency", {"model_type": "llama", "tie_word_embeddings": True}),
        ("llama stretched", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "head_dim": 32}),
        ("llama with biases", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"model_type": "mistral", "sliding_window": 64}),
        ("qwen2", {"model_type": "qwen2", "use_sliding_window": False, "rope_theta": 1e6}),
        ("qwen3", {"model_type": "qwen3", "layer_types": ["full_attention"] * 3}),
        ("gemma2", {"model_type": "gemma2", "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0, "sliding_window": 5,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
        ("gemma3", {"model_type": "gemma3_text", "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("phi3", {"model_type": "phi3", "partial_rotary_factor": 0.75}),
    ],
)  # fmt: skip
def test_configs(kind, expected):
    found = hf_config(random_source(kind).config)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("stored", "asked", "dtype"), [("F32", "bf16", "BF16"), ("F32", "F16", "F16"), ("BF16", None, "BF16"), ("Q8_0", None, "F32")])  # fmt: skip
def test_types_of_a_folder(tmp_path, stored, asked, dtype):
    source = random_source("llama", stored)
    path = convert(source, tmp_path / "folder", asked) / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"} and length % 8 == 0
    assert {entry["dtype"] for entry in header.values()} == {dtype}
    entry = header["model.layers.2.mlp.down_proj.weight"]
    start, stop = (8 + length + offset for offset in entry["data_offsets"])
    values = source.tensors["layers.2.feedforward.down.weight"].values()
    assert entry["shape"] == list(values.shape)
    assert raw[start:stop] == quantize(values, BY_NAME[dtype]).tobytes()
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(raw) - 8 - length


# ---- GGUF ----


@pytest.mark.parametrize("asked", ["F32", "F16", "BF16", "q8_0", "Q4_0"])
def test_types_of_a_file(tmp_path, asked):
    source = random_source("llama", tied_head=True, hidden=112, vocab=VOCAB + 5)
    name = asked.upper()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = GGUFFile(convert(source, tmp_path / "m.gguf", asked))
    expected = f"{tmp_path / 'm.gguf'}: 3 matrices are F16 instead of {name}, as their rows are no multiple of 32: blk.*.ffn_down.weight"
    assert [str(one.message) for one in told] == ([expected] if name in ("Q8_0", "Q4_0") else [])
    types = {tensor: info.type.name for tensor, info in found.tensors.items()}
    assert types["token_embd.weight"] == ("Q8_0" if name == "Q4_0" else name)
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.1.attn_v.weight"] == types["blk.1.ffn_up.weight"] == name
    assert types["blk.1.ffn_down.weight"] == ("F16" if name in ("Q8_0", "Q4_0") else name)  # rows of 112
    values = source.tensors["layers.1.feedforward.up.weight"].values()
    np.testing.assert_array_equal(found.raw("blk.1.ffn_up.weight"), quantize(values, BY_NAME[name]))
    expected = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}[name]
    assert found.metadata["general.file_type"] == expected
    assert ("general.quantization_version" in found.metadata) == (name in ("Q8_0", "Q4_0"))
    # rows of the embedding beyond the vocabulary have a name too
    assert found.metadata["tokenizer.ggml.tokens"][-2:] == [f"[PAD{VOCAB + 3}]", f"[PAD{VOCAB + 4}]"]
    assert found.metadata["tokenizer.ggml.token_type"][-1] == 5


def test_an_untied_embedding_of_a_q4_0_file_is_q4_0(tmp_path):
    found = GGUFFile(convert(random_source("llama"), tmp_path / "m.gguf", "Q4_0"))
    assert found.tensors["token_embd.weight"].type.name == "Q4_0" and found.tensors["output.weight"].type.name == "Q8_0"


def test_rounding_many_rows_is_rounding_each(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmixer.weights.gguf_export._ROWS", 7)
    source = random_source("llama")
    found = open_gguf(convert(source, tmp_path / "m.gguf", "Q8_0"))
    for name in ("layers.0.attention.q.weight", "layers.0.attention.k.weight", "embedding.weight"):
        values = source.tensors[name].values()
        exact = dequantize(quantize(values, BY_NAME["Q8_0"]), BY_NAME["Q8_0"])
        np.testing.assert_array_equal(found.tensors[name].values(), exact)


def test_parts_of_different_types_in_one_tensor_become_float32(tmp_path):
    source = random_source("gpt2", "F16")
    source.tensors["layers.0.attention.v.weight"] = random_source("gpt2").tensors["layers.0.attention.v.weight"]
    found = GGUFFile(convert(source, tmp_path / "m.gguf"))
    assert found.tensors["blk.0.attn_qkv.weight"].type.name == "F32" and found.tensors["blk.1.attn_qkv.weight"].type.name == "F16"


def test_a_source_without_tokenizer_or_advice(tmp_path):
    source = random_source("llama")
    source.tokenizer, source.generation = None, {}
    assert open_gguf(convert(source, tmp_path / "m.gguf")).tokenizer is None
    folder = convert(source, tmp_path / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]


def test_progress_is_told_every_byte_of_the_tensors(tmp_path):
    source = random_source("llama")
    total = sum(tensor.raw.nbytes for tensor in source.tensors.values())
    for target in ("m.gguf", "folder"):
        done = []
        convert(source, tmp_path / target, "F32", done.append)
        assert sum(done) == total and len(done) == len(source.tensors)


# ---- what cannot be written ----

BOTH = {
    "positions": ("gpt2", {"positions": "sinusoidal"}),
    "gated": ("gpt2", {"gated": True}),
    "kv_heads 2": ("gpt2", {"kv_heads": 2}),
    "head_dim 8": ("gpt2", {"head_dim": 8}),
    "attention_scale 0.5": ("llama", {"attention_scale": 0.5}),
    "embedding_scale 3.0": ("llama", {"embedding_scale": 3.0}),
    "logit_softcap 3.0": ("qwen2", {"logit_softcap": 3.0}),
    "local_layers (True, False, False)": ("llama", {"window": 4, "local_layers": (True, False, False)}),
}


@pytest.mark.parametrize("problem", BOTH)
@pytest.mark.parametrize("target", ["m.gguf", "folder"])
def test_what_neither_can_say(tmp_path, problem, target):
    kind, changes = BOTH[problem]
    with pytest.raises(ValueError, match=rf"{target}: random cannot be written (as GGUF|for transformers): .* nearest, \w+, has no {re.escape(problem)}"):
        convert(random_source(kind, **changes), tmp_path / target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factors", [None, (1.0,) * 16])
def test_a_magnitude_needs_heads_that_share_the_width(tmp_path, factors):
    """Phi-3's config.json, which alone has one, says no head_dim."""
    source = random_source("llama", head_dim=32, rotary_magnitude=1.5, rotary_factors=factors)
    with pytest.raises(ValueError, match="the nearest, phi3, has no head_dim 32$"):
        convert(source, tmp_path / "folder")
    source = random_source("llama", rotary_magnitude=1.5, rotary_factors=None)
    found = open_source(convert(source, tmp_path / "folder")).config
    assert found.rotary_magnitude == 1.5 and found.rotary_factors is None


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_cannot_say_that_there_is_no_activation(tmp_path, kind):
    with pytest.raises(ValueError, match=r"folder: random cannot be written for transformers: .* nearest, \w+, has no activation 'none'$"):
        convert(random_source(kind, activation="none"), tmp_path / "folder")


def test_shares_of_a_head_that_are_rotated_are_read_as_written():
    for head_dim in (44, 49, 52, 96, 128):
        for rotary_dim in range(2, head_dim + 1, 2):
            source = random_source("phi3", dim=4 * head_dim, head_dim=head_dim, rotary_dim=rotary_dim, rotary_factors=None)
            found = read_config(hf_config(source.config), "config.json")
            assert (found.rotary_dim or head_dim) == rotary_dim


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("gpt2", {"activation": "relu"}, "the nearest, gpt2, has no activation 'relu'"),
        ("llama", {"activation": "relu"}, "the nearest, llama, has no activation 'relu'"),
        ("gemma2", {"activation": "silu"}, "the nearest, gemma2, has no activation 'silu'"),
        ("mistral", {"window": 9}, "the nearest, llama, has no window 9 (there would be none with a context of at most 9)"),
        ("phi3", {"window": 9}, "the nearest, phi3, has no window 9 (there would be none with a context of at most 9)"),
        ("qwen2", {"window": 9}, "the nearest, qwen2, has no window 9 (there would be none with a context of at most 9)"),
        ("qwen3", {"rotary_factors": (1.0, 2.0) * 8}, "the nearest, qwen3, has no rotary_factors that differ"),
        ("gemma2", {"tied_head": False}, "the nearest, gemma2, has no tied_head False"),
        ("gemma2", {"attention_scale": 0.3}, "the nearest, gemma2, has no attention_scale 0.3"),
        ("gemma3", {"local_layers": (True, True, False, False, True, True, True)}, "the nearest, gemma3, has no local_layers (True, True, False, False, True, True, True)"),
        ("gemma2", {"local_rotary_base": 5.0}, "the nearest, gemma2, has no local_rotary_base 5.0"),
    ],
)
def test_what_gguf_cannot_say(tmp_path, kind, changes, text):
    with pytest.raises(ValueError, match=rf"m\.gguf: random cannot be written as GGUF: .*{re.escape(text)}$"):
        convert(random_source(kind, **changes), tmp_path / "m.gguf")


def test_types_that_are_not_written(tmp_path):
    source = random_source("llama")
    with pytest.raises(ValueError, match=r"^convert: type must be one of F32, F16, BF16, Q8_0, Q4_0; got 'Q4_K'$"):
        convert(source, tmp_path / "m.gguf", "Q4_K")
    with pytest.raises(ValueError, match=r"folder: type of a folder must be one of F32, F16, BF16; got Q8_0$"):
        convert(source, tmp_path / "folder", "q8_0")


def test_nothing_else_is_overwritten(tmp_path):
    source = random_source("llama")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"folder holds 'thesis\.txt', which is no part of a model"):
        convert(source, folder)
    (tmp_path / "dir.gguf").mkdir()
    with pytest.raises(FileExistsError, match=r"dir\.gguf is a folder"):
        convert(source, tmp_path / "dir.gguf")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match=r"file is a file; choose another folder"):
        convert(source, tmp_path / "file")


def test_a_window_is_none_in_a_context_that_it_covers(tmp_path):
    """llama.cpp looks back beyond the window of all but Gemma's files."""
    folder = convert(random_source("mistral", window=9), tmp_path / "folder")
    found = open_gguf(convert(open_source(folder, context=9), tmp_path / "m.gguf"))
    assert found.config.context == 9 and (found.config.window or 9) == 9


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_any_activation_in_a_folder(tmp_path, kind, activation):
    config = random_source(kind, activation=activation).config
    assert read_config(hf_config(config), "config.json").activation == activation


def test_a_strangers_name_does_nothing_to_a_terminal(tmp_path):
    source = random_source("gpt2", gated=True)
    source.name = "a\x1b[2J"
    for target in ("m.gguf", "folder"):
        with pytest.raises(ValueError, match=r"a\\x1b\[2J cannot be written"):
            convert(source, tmp_path / target)


def test_a_model_is_replaced_or_left_whole(tmp_path):
    folder = convert(random_source("gpt2"), tmp_path / "folder")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = random_source("llama")
    del broken.tensors["final_norm.weight"]
    with pytest.raises(KeyError):
        convert(broken, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    convert(random_source("llama"), folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


# ---- tokenizers ----


def test_byte_level_tokenizers_come_back():
    fields = tokenizer_fields(tiny_tokenizer(), VOCAB)
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    back = tokenizer_from_gguf(fields, "test")
    np.testing.assert_array_equal(back.encode(TEXT), tiny_tokenizer().encode(TEXT))
    assert back.end_id == tiny_tokenizer().end_id and back.special_ids == tiny_tokenizer().special_ids


def test_smollm2s_tokenizer_comes_back_field_by_field(smollm2_path):
    source = open_gguf(smollm2_path)
    there, found = GGUFFile(smollm2_path).metadata, tokenizer_fields(source.tokenizer, 49152)
    for name in ("model", "pre", "tokens", "merges", "token_type", "eos_token_id", "bos_token_id", "add_bos_token"):
        np.testing.assert_array_equal(found[f"tokenizer.ggml.{name}"], there[f"tokenizer.ggml.{name}"], err_msg=name)
    assert found["tokenizer.chat_template"] == there["tokenizer.chat_template"]


def sentencepiece(prepend):
    """A small tokenizer of SentencePiece's kind, as tokenizer.json files describe one."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Inner

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehiklnoruvy"]
    merges = [("▁", "t"), ("h", "e"), ("▁", "b"), ("a", "n"), ("▁b", "an"), ("▁ban", "k"), ("r", "i"), ("v", "e"), ("▁", "c")]
    merges = [pair for pair in merges if "t" not in pair[1]]
    for left, right in merges:
        pieces.append(left + right)
    inner = Inner(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in ("<unk>", "<s>", "</s>")])
    return Tokenizer(inner, Conventions((2,), 1, True, "{{ messages }}"))


@pytest.mark.parametrize("prepend", [True, False])
def test_sentencepiece_tokenizers_come_back(prepend):
    tokenizer = sentencepiece(prepend)
    fields = tokenizer_fields(tokenizer, tokenizer.vocab_size)
    assert fields["tokenizer.ggml.model"] == "llama" and fields["tokenizer.ggml.add_space_prefix"] is prepend
    types = fields["tokenizer.ggml.token_type"]
    assert types[:4].tolist() == [2, 3, 3, 6] and types[-1] == 1
    back = tokenizer_from_gguf(fields, "test")
    for text in ("the bank by the river", "chloe  bank é☃", "ban bank ri ve", " a"):
        np.testing.assert_array_equal(back.encode(text), tokenizer.encode(text), err_msg=text)
    assert (back.begin_id, back.adds_begin, back.end_id, back.chat_template) == (1, True, 2, "{{ messages }}")


def test_tokenizers_that_gguf_cannot_say(tmp_path):
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    def bpe(cutter, normalizer=None, unknown=None):
        inner = Inner(models.BPE({"a": 0, "<|endoftext|>": 1}, []))
        inner.pre_tokenizer = cutter
        if normalizer is not None:
            inner.normalizer = normalizer
        inner.add_special_tokens(["<|endoftext|>"])
        return Tokenizer(inner)

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    odd = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    for tokenizer, text in (
        (train_tokenizer("the bank by the river", "words", 20), "its tokenizer is WordLevel (words); only BPE ones can be written"),
        (bpe(byte_level, normalizers.Lowercase()), "its tokenizer normalizes text by Lowercase, which no GGUF file says"),
        (bpe(odd), "its tokenizer cuts text by x+, which no tokenizer.ggml.pre names"),
        (bpe(pre_tokenizers.Whitespace()), 'its tokenizer cuts text by {"type": "Whitespace"}, which no tokenizer.ggml.pre names'),
        (train_tokenizer(TEXT * 50 + "".join(map(chr, range(1000, 1200))), "bpe", 350), "its tokenizer has 350 pieces for 320 rows of the embedding"),
    ):  # fmt: skip
        source = random_source("llama")
        source.tokenizer = tokenizer
        with pytest.raises(ValueError, match=rf"m\.gguf: random cannot be written as GGUF: {re.escape(text)}"):
            convert(source, tmp_path / "m.gguf")


def test_every_kind_is_written_both_ways():
    """So that a new architecture is not forgotten here."""
    assert {hf_config(random_source(kind).config)["model_type"] for kind in CONFIGS} == {
        "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3",
    }  # fmt: skip
