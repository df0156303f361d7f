"""ModelConfig: what it derives, what it refuses, what it counts."""

import json

import pytest

from fastmixer.model.config import PRESETS, ModelConfig, parameter_shapes
from fastmixer.model.transformer import Transformer

SMALLEST = {"vocab": 10, "context": 4, "dim": 8, "layers": 1, "heads": 2}


def test_gpt2_has_the_published_number_of_parameters():
    assert ModelConfig.preset("gpt2").num_parameters == 124_439_808
    assert ModelConfig.preset("gpt2-medium").num_parameters == 354_823_168


def test_defaults_are_derived():
    config = ModelConfig(**SMALLEST)
    assert (config.kv_heads, config.hidden, config.head_dim, config.qkv_width) == (2, 32, 4, 24)
    assert ModelConfig(**{**SMALLEST, "heads": 4, "kv_heads": 1}).qkv_width == (4 + 2) * 2


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = ModelConfig.preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_preset_takes_changes_and_names_those_that_exist():
    assert ModelConfig.preset("tiny", layers=2).layers == 2
    with pytest.raises(ValueError, match="preset must be one of gpt2, gpt2-medium, tiny.*got 'gpt9'"):
        ModelConfig.preset("gpt9")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 0}, "vocab must be an integer >= 1; got 0"),
        ({"layers": 2.0}, "layers must be an integer >= 1; got 2.0"),
        ({"dim": -8}, "dim must be an integer >= 1; got -8"),
        ({"dim": None, "hidden": 0}, "dim must be an integer >= 1; got None"),
        ({"heads": None}, "heads must be an integer >= 1; got None"),
        ({"hidden": None}, "hidden must be an integer >= 1; got None"),
        ({"context": True}, "context must be an integer >= 1; got True"),
        ({"heads": 3}, "heads must divide dim; got 3 heads for dim 8"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide heads; got 3 kv_heads for 4 heads"),
        ({"norm": "batchnorm"}, "norm must be one of layernorm, rmsnorm; got 'batchnorm'"),
        ({"positions": "alibi"}, "positions must be one of learned, sinusoidal, rotary, none; got 'alibi'"),
        ({"activation": "tanh"}, "activation must be one of .*; got 'tanh'"),
        ({"positions": "rotary", "heads": 8}, "rotary positions need an even head_dim; got 1"),
        ({"positions": "sinusoidal", "dim": 9, "heads": 1}, "sinusoidal positions need an even dim; got 9"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1; got 1.0"),
        ({"dropout": float("nan")}, "dropout must be >= 0 and < 1; got nan"),
        ({"window": 0}, "window must be an integer >= 1 or None; got 0"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon must be a finite number >= 0; got nan"),
        ({"norm_epsilon": "1e-5"}, "norm_epsilon must be a finite number >= 0; got '1e-5'"),
        ({"dropout": "0.1"}, "dropout must be >= 0 and < 1; got '0.1'"),
        ({"rotary_base": 0.0}, "rotary_base must be a finite number > 0; got 0.0"),
        ({"bias": "no"}, "bias must be true or false; got 'no'"),
        ({"head_dim": -1}, "head_dim must be an integer >= 1, or 0 for dim / heads; got -1"),
        ({"head_dim": 3, "positions": "rotary"}, "rotary positions need an even head_dim; got 3"),
        ({"qkv_bias": 1}, "qkv_bias must be true, false or None; got 1"),
        ({"qk_norm": None}, "qk_norm must be true or false; got None"),
        ({"post_norms": 0}, "post_norms must be true or false; got 0"),
        ({"embedding_scale": 0}, "embedding_scale must be a finite number > 0; got 0"),
        ({"attention_scale": float("inf")}, "attention_scale must be a finite number > 0 or None; got inf"),
        ({"attention_softcap": -1.0}, "attention_softcap must be a finite number >= 0; got -1.0"),
        ({"logit_softcap": float("nan")}, "logit_softcap must be a finite number >= 0; got nan"),
        ({"local_layers": (True,)}, "local_layers needs window; got None"),
        ({"local_layers": (True, False), "window": 2}, r"local_layers must be 1 bools.* or None; got \(True, False\)"),
        ({"local_layers": [1], "window": 2}, r"local_layers must be 1 bools.* or None; got \[1\]"),
        (
            {"positions": "rotary", "local_rotary_base": 0},
            "local_rotary_base must be a finite number > 0 or None; got 0",
        ),
        ({"positions": "rotary", "rotary_dim": 6}, "rotary_dim must be an even integer from 0 to head_dim, 4; got 6"),
        ({"positions": "rotary", "rotary_dim": 3}, "rotary_dim must be an even integer from 0 to head_dim, 4; got 3"),
        (
            {"positions": "rotary", "rotary_factors": (1.0,)},
            r"rotary_factors must be 2 finite numbers > 0 .*; got \(1.0,\)",
        ),
        ({"positions": "rotary", "rotary_factors": [1.0, 0]}, r"rotary_factors must be 2 finite .*; got \[1.0, 0\]"),
        ({"positions": "rotary", "rotary_magnitude": 0.0}, "rotary_magnitude must be a finite number > 0; got 0.0"),
        ({"rotary_dim": 2}, "rotary_dim needs rotary positions; got 'learned'"),
        ({"rotary_factors": (1.0, 2.0)}, "rotary_factors needs rotary positions; got 'learned'"),
        ({"rotary_magnitude": 2.0}, "rotary_magnitude needs rotary positions; got 'learned'"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^ModelConfig: {message}$"):
        ModelConfig(**{**SMALLEST, **changes})


def test_from_dict_names_unknown_and_missing_fields():
    with pytest.raises(ValueError, match="unknown field 'depth'; known: "):
        ModelConfig.from_dict({**SMALLEST, "depth": 3})
    with pytest.raises(ValueError, match="field 'dim' is missing"):
        ModelConfig.from_dict({name: value for name, value in SMALLEST.items() if name != "dim"})


def test_parameter_shapes_of_a_llama():
    config = ModelConfig.preset("llama-tiny", layers=1)
    assert dict(parameter_shapes(config)) == {
        "embedding.weight": (1024, 128),
        "layers.0.attention_norm.weight": (128,),
        "layers.0.attention.qkv.weight": (128, (4 + 2 * 2) * 32),
        "layers.0.attention.output.weight": (128, 128),
        "layers.0.feedforward_norm.weight": (128,),
        "layers.0.feedforward.gate.weight": (128, 344),
        "layers.0.feedforward.up.weight": (128, 344),
        "layers.0.feedforward.down.weight": (344, 128),
        "final_norm.weight": (128,),
        "head.weight": (1024, 128),
    }


def test_training_flops_are_six_per_weight_and_token():
    config = ModelConfig(**{**SMALLEST, "bias": False})
    weights = 10 * 8 + 8 * 24 + 8 * 8 + 2 * 8 * 32
    assert config.training_flops(3, 4) == 3 * 4 * (6 * weights + 6 * 4 * 8)


OTHERS = {
    "head_dim": 6, "qkv_bias": False, "qk_norm": True, "post_norms": True, "embedding_scale": 8.0**0.5,
    "attention_scale": 0.25, "attention_softcap": 50.0, "logit_softcap": 30.0, "local_layers": (True,), "window": 2,
    "positions": "rotary", "local_rotary_base": 1e4, "rotary_dim": 4, "rotary_factors": (1.0, 8.0),
    "rotary_magnitude": 1.1,
}  # fmt: skip


def test_fields_of_other_makers_survive_json():
    config = ModelConfig(**{**SMALLEST, **OTHERS})
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)
    assert (again.local_layers, again.rotary_factors) == ((True,), (1.0, 8.0))


def test_a_configuration_without_them_is_written_as_it_always_was():
    assert "head_dim" not in ModelConfig(**SMALLEST).to_dict() and "window" in ModelConfig(**SMALLEST).to_dict()


def test_heads_need_not_divide_dim_where_their_width_is_given():
    config = ModelConfig(**{**SMALLEST, "heads": 3, "head_dim": 5})
    shapes = dict(parameter_shapes(config))
    assert shapes["layers.0.attention.qkv.weight"] == (8, 45) and shapes["layers.0.attention.output.weight"] == (15, 8)


def test_norms_of_other_makers_are_counted():
    config = ModelConfig(**{**SMALLEST, **OTHERS, "norm": "rmsnorm"})
    shapes = dict(parameter_shapes(config))
    assert shapes["layers.0.attention.q_norm.weight"] == shapes["layers.0.attention.k_norm.weight"] == (6,)
    assert shapes["layers.0.attention_post_norm.weight"] == shapes["layers.0.feedforward_post_norm.weight"] == (8,)
    assert "layers.0.attention.qkv.bias" not in shapes and "layers.0.attention.output.bias" in shapes


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"window", "positions"}))
def test_training_refuses_by_name_what_it_does_not_know(name):
    changes = {"positions": "rotary", "window": 2, name: OTHERS[name]}
    if name == "rotary_dim":
        changes["rotary_dim"] = 2
    config = ModelConfig(**{**SMALLEST, **changes})
    assert config.untrained_fields == [name]
    with pytest.raises(ValueError, match=f"^Transformer: {name} .* is not trained yet"):
        Transformer(config)
