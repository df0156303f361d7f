"""config.json of other makers: every form of their fields, and what is refused, by name."""

import json
import math
from pathlib import Path

import pytest

from fastmixer.weights.architectures import ARCHITECTURES, read_config

TINY = Path(__file__).parents[1] / "model" / "tiny"
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip


def config(kind="llama", context=None, **fields):
    return read_config({"model_type": kind, **SIZES, **fields}, "config.json", context)


def test_unknown_models_are_refused_with_the_list_of_known_ones():
    with pytest.raises(ValueError, match="^config.json: model_type must be one of gpt2, llama, .*gemma3; got 'mamba'$"):
        config("mamba")
    with pytest.raises(ValueError, match="model_type is missing; expected one of"):
        read_config({}, "config.json")
    with pytest.raises(ValueError, match="model_type must be one of .*; got 3"):
        config(3)


def test_old_and_new_rotary_fields_say_the_same():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    old = config(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    oldest = config(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old == oldest == new and new.rotary_base == 5e5 and new.rotary_factors[-1] == 8.0
    assert config(rope_theta=1e6, rope_scaling=None).rotary_factors is None


def test_defaults_are_those_of_each_architecture():
    assert config().kv_heads == 4 and not config().tied_head and config().norm_epsilon == 1e-6
    assert config("phi3").norm_epsilon == 1e-5
    assert config("mistral", num_attention_heads=8).kv_heads == 8
    assert config("mistral", num_attention_heads=8, max_position_embeddings=8192).window == 4096
    assert config("mistral", num_attention_heads=8, max_position_embeddings=8192, sliding_window=None).window is None
    assert config("qwen3").head_dim == 128 and config("qwen2").head_dim == 8
    gemma = config("gemma2")
    assert gemma.tied_head and (gemma.attention_softcap, gemma.logit_softcap) == (50, 30) and gemma.head_dim == 256
    assert gemma.attention_scale == 256**-0.5 and gemma.embedding_scale == math.sqrt(32)
    assert gemma.window == 4096 and gemma.local_layers == (True, False, True, False)
    assert config("gemma2", final_logit_softcapping=None).logit_softcap == 0


def test_qwens_window_is_off_until_it_is_used():
    assert config("qwen2", sliding_window=8, max_window_layers=2).window is None
    used = config("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert used.window == 8 and used.local_layers == (False, False, True, True)


def test_gemma_3_within_a_model_of_images_too():
    text = {
        **SIZES,
        "num_hidden_layers": 7,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 8,
    }
    found = read_config({"model_type": "gemma3", "text_config": text, "vision_config": {}}, "config.json")
    assert found.rotary_base == 1e6 and found.local_rotary_base == 1e4 and set(found.rotary_factors) == {8.0}
    assert found.local_layers == (True,) * 5 + (False, True) and found.kv_heads == 4 and found.head_dim == 256
    assert config("gemma3_text", sliding_window_pattern=2, rope_theta=5.0).local_layers == (True, False, True, False)


def test_long_rope_takes_the_factors_of_the_context_that_is_used():
    values = json.loads((TINY / "phi3" / "config.json").read_text())
    short, long = read_config(values, "config.json"), read_config(values, "config.json", 17)
    assert (short.context, short.rotary_factors) == (16, (1.0, 1.05, 1.2))
    assert (long.context, long.rotary_factors) == (17, (1.5, 3.0, 7.0))
    assert short.rotary_magnitude == long.rotary_magnitude == math.sqrt(1 + math.log(4) / math.log(16))
    assert short.rotary_dim == 6


def test_a_window_wider_than_the_context_is_none():
    assert config("phi3", sliding_window=64).window is None and config("phi3", sliding_window=63).window == 63


GEMMA_ROPE = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}
BAD = [
    ("llama", {"hidden_act": "mish"}, "hidden_act must be one of silu, .*; got 'mish'"),
    ("llama", {"hidden_size": -32}, r"hidden_size must be an integer from 1 to \d+; got -32"),
    ("llama", {"hidden_size": 32.0}, "hidden_size must be an integer .*; got 32.0"),
    ("llama", {"hidden_size": True}, "hidden_size must be an integer .*; got True"),
    ("llama", {"hidden_size": None}, "hidden_size is missing; expected an integer"),
    ("llama", {"vocab_size": 1 << 40}, "vocab_size must be an integer"),
    ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers must be an integer from 1 to 4096"),
    ("llama", {"num_attention_heads": 5}, "num_attention_heads must be a divisor of hidden_size 32; got 5"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads 4; got 3"),
    ("llama", {"head_dim": 7}, r"head_dim must be an even number \(pairs are rotated\); got 7"),
    ("llama", {"hidden_size": 28}, "num_attention_heads must be one that makes heads of an even width; 7 cannot be rotated; got 4"),
    ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps must be a finite number >= 0; got 'small'"),
    ("llama", {"rms_norm_eps": -1}, "rms_norm_eps must be a finite number >= 0; got -1"),
    ("llama", {"rope_theta": 0}, "rope_theta must be a finite number > 0; got 0"),
    ("llama", {"rope_theta": 10**400}, "rope_theta must be a finite number > 0"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2}},
        "rope_scaling.rope_type must be one of .*'dynamic'",
    ),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ("llama", {"rope_scaling": [1]}, r"rope_scaling must be an object; got \[1\]"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1 .*; got 0.5"),
    ("llama", {"attention_bias": True}, "attention_bias must be as mlp_bias .*; got True"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false; got 'yes'"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config 'gptq' is not known"),
    (
        "llama",
        {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
        "rope_scaling.high_freq_factor must be a number > low_freq_factor 4; got 4",
    ),
    ("llama", {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}}, "rope_theta must be a number > 1 with yarn; got 1$"),
    (
        "llama",
        {"rope_parameters": {"type": "yarn", "factor": 2, "rope_theta": 0.5}},
        "rope_parameters.rope_theta must be a number > 1 with yarn; got 0.5$",
    ),
    (
        "llama",
        {"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 33}},
        "rope_scaling.beta_fast must be >= beta_slow 33; got 32$",
    ),
    ("qwen3", {"attention_bias": True}, "attention_bias must be false .*; got True"),
    ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types must be a list of 4"),
    ("mistral", {"num_key_value_heads": 4, "sliding_window": 0}, "sliding_window must be an integer from 1"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be false"),
    ("llama", {"is_causal": False}, r"is_causal must be true \(nothing else is known\); got False"),
    ("gpt2", {"is_causal": False}, "is_causal must be true"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a finite number > 0; got 0"),
    ("gemma2", {"attn_logit_softcapping": -5}, "attn_logit_softcapping must be a finite number >= 0; got -5"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layer_types must be a list of 4 of full_attention"),
    ("gemma3_text", {"rope_parameters": GEMMA_ROPE}, "sliding_attention.rope_type must be default; got 'linear'"),
    ("gemma3", {"text_config": 3}, "text_config must be an object; got 3"),
    ("gemma3", {"text_config": {"model_type": "llama"}}, "text_config.model_type must be gemma3_text; got 'llama'"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor must be a list of 4 finite"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 0]}}, "short_factor must be a list of 4"),
    ("phi3", {"partial_rotary_factor": 0.4}, "partial_rotary_factor 0.4 of head_dim 8 must be even; got 3"),
    ("gpt2", {"n_embd": 0}, "n_embd must be an integer from 1"),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, None),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be false .*; got True"),
    ("gpt2", {"activation_function": "tanh"}, "activation_function must be one of .*; got 'tanh'"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), BAD)
def test_bad_values_are_named(kind, fields, message):
    if message is None:
        assert config(kind, **fields).layers == 2
        return
    with pytest.raises(ValueError, match=f"^config.json: .*({message})"):
        config(kind, **fields)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in TINY.glob("*/config.json")))
def test_no_value_of_any_field_crashes(name):
    """Each field of each configuration replaced by what it should never be: a ValueError naming the file, or a config."""
    values = json.loads((TINY / name / "config.json").read_text())
    refused = 0
    for field in values:
        for wrong in (-1, 0, 1 << 70, 0.5, 1e308, "x", [], {}, [[]], {"a": 1}, None, True, False):
            try:
                read_config({**values, field: wrong}, "config.json")
            except ValueError as error:
                assert str(error).startswith("config.json: ")
                refused += 1
    assert refused > 60


def test_every_architecture_has_a_tiny_model():
    kinds = {json.loads(path.read_text())["model_type"] for path in TINY.glob("*/config.json")}
    assert kinds == set(ARCHITECTURES)
