"""A Hugging Face config.json as our ModelConfig: one table of architectures; anything else is refused by name.

Every field is checked where it is read. Defaults are those of transformers' configuration classes; both its forms of
rotary fields are read (rope_parameters, and rope_theta with rope_scaling). Knows nothing of tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.model.config import ModelConfig, parameter_shapes
from fastmixer.weights.rotation import yarn_factors
from fastmixer.weights.strict_json import Fields, short

MAX_PARAMETERS = 1 << 43
_RMS = {"norm": "rmsnorm", "positions": "rotary", "gated": True, "bias": False}
_GEMMA = {**_RMS, "post_norms": True}
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}  # fmt: skip
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Architecture:
    """What a model_type alone says: fields of ModelConfig, and transformers' defaults for fields of config.json.

    window: which layers see only sliding_window tokens back. activation: the field that names it. only: fields whose one
    value here is known, and what it is where the file does not say.
    """

    choices: dict[str, Any]
    window: "Callable[[Fields, int], tuple[int | None, tuple[bool, ...] | None]] | None" = None
    activation: str = "hidden_act"
    scaled_embedding: bool = False
    epsilon: float = 1e-6
    tied: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    only: dict[str, bool] = field(default_factory=dict)


# ---- which layers have a window: (window, local_layers) ----


def _window_everywhere(fields: Fields, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    if not fields.has("sliding_window"):
        return None, None
    if fields.has("layer_types") and len(set(layer_types(fields, layers))) > 1:
        raise fields.wrong("layer_types", "the same in every layer")
    return fields.integer("sliding_window"), None


def _window_from_layer(fields: Fields, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    """Qwen's: layers from max_window_layers on, where use_sliding_window says so."""
    if not fields.flag("use_sliding_window", False) or not fields.has("sliding_window"):
        return None, None
    first = fields.integer("max_window_layers", 28, low=0)
    return _windows(fields, layers, tuple(layer >= first for layer in range(layers)))


def _window_between(fields: Fields, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    """Gemma's: all but every second, or sixth, layer."""
    period = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    return _windows(fields, layers, tuple((layer + 1) % period > 0 for layer in range(layers)))


def _windows(fields: Fields, layers: int, usual: tuple[bool, ...]) -> tuple[int | None, tuple[bool, ...] | None]:
    if fields.has("layer_types"):
        usual = tuple(kind == "sliding_attention" for kind in layer_types(fields, layers))
    if not any(usual):
        return None, None
    return fields.integer("sliding_window"), usual


def layer_types(fields: Fields, layers: int) -> list[str]:
    """The field of this name: which of the two kinds each layer is."""
    kinds = fields.values["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in _LAYER_TYPES for kind in kinds):
        raise fields.wrong("layer_types", f"a list of {layers} of {', '.join(_LAYER_TYPES)}")
    return kinds


# ---- the table ----

_GPT2_FIELDS = {
    "n_embd": "hidden_size", "n_positions": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_inner": "intermediate_size", "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}  # fmt: skip
ARCHITECTURES = {
    "gpt2": Architecture(
        {"norm": "layernorm", "positions": "learned", "gated": False, "bias": True},
        tied=True, epsilon=1e-5, defaults={"hidden_act": "gelu_new"},
        only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "llama": Architecture(_RMS),
    "mistral": Architecture(_RMS, window=_window_everywhere, defaults={"sliding_window": 4096, "num_key_value_heads": 8}),
    "qwen2": Architecture({**_RMS, "qkv_bias": True}, window=_window_from_layer, defaults={"sliding_window": 4096}),
    "qwen3": Architecture(
        {**_RMS, "qk_norm": True}, window=_window_from_layer, defaults={"head_dim": 128, "sliding_window": 4096},
        only={"attention_bias": False},
    ),
    "gemma2": Architecture(
        _GEMMA, window=_window_between, activation="hidden_activation", scaled_embedding=True, tied=True,
        defaults={
            "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2, "max_position_embeddings": 8192,
        },
        only={"attention_bias": False, "use_bidirectional_attention": False},
    ),
    "gemma3_text": Architecture(
        {**_GEMMA, "qk_norm": True}, window=_window_between, activation="hidden_activation", scaled_embedding=True,
        tied=True,
        defaults={
            "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256, "sliding_window": 4096,
        },
        only={"attention_bias": False, "use_bidirectional_attention": False},
    ),
    "phi3": Architecture(_RMS, window=_window_everywhere, epsilon=1e-5),
}  # fmt: skip
WRAPPERS = {"gemma3": "gemma3_text"}  # models of several kinds of input, whose text_config is the one that writes


def architecture_of(values: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """(name in ARCHITECTURES, the fields of the model that writes text). Raises ValueError naming what is known."""
    name = values.get("model_type")
    known = (*ARCHITECTURES, *WRAPPERS)
    if not isinstance(name, str) or name not in known:
        raise Fields(values, where).wrong("model_type", f"one of {', '.join(known)}")
    if values.get("quantization_config") is not None:
        method = values["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise ValueError(
            f"{where}: quantization_config {short(method)} is not known; use the model's own weights, or a GGUF file"
        )
    if name not in WRAPPERS:
        return name, values
    text = Fields(values, where).object("text_config")
    inner = {"model_type": WRAPPERS[name], **text.values}
    if inner["model_type"] != WRAPPERS[name]:
        raise text.wrong("model_type", WRAPPERS[name])
    return WRAPPERS[name], inner


def trained_context(values: dict[str, Any], where: str) -> int:
    """max_position_embeddings: the longest sequence that the model itself allows, and the rows of learned positions."""
    name, values = architecture_of(values, where)
    return _fields(name, values, where).integer("max_position_embeddings")


def read_config(values: dict[str, Any], where: str | Path, context: int | None = None) -> ModelConfig:
    """The ModelConfig of a config.json's fields. context: the longest sequence to make ready for (None: the model's own,
    and for longrope the one that it was first trained with). Raises ValueError that names where, field and value."""
    where = str(where)
    name, values = architecture_of(values, where)
    architecture, fields = ARCHITECTURES[name], _fields(name, values, where)
    for only, value in (architecture.only | {"is_causal": True}).items():  # false: tokens would see those to come
        if fields.flag(only, value) != value:
            raise fields.wrong(only, f"{str(value).lower()} (nothing else is known)")

    dim = fields.integer("hidden_size", high=1 << 20)
    layers = fields.integer("num_hidden_layers", high=1 << 12)
    heads = fields.integer("num_attention_heads", high=1 << 14)
    found: dict[str, Any] = {
        **architecture.choices, "vocab": fields.integer("vocab_size"), "dim": dim, "layers": layers, "heads": heads,
        "kv_heads": fields.integer("num_key_value_heads", heads, high=1 << 14) if name != "gpt2" else heads,
        "hidden": fields.integer("intermediate_size", 4 * dim if name == "gpt2" else None),
        "norm_epsilon": fields.number("rms_norm_eps", architecture.epsilon),
        "activation": ACTIVATIONS[fields.choice(architecture.activation, tuple(ACTIVATIONS), "silu")],
        "tied_head": fields.flag("tie_word_embeddings", architecture.tied),
    }  # fmt: skip
    if not fields.has("head_dim") and dim % heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size {dim}")
    head_dim = fields.integer("head_dim", dim // heads, high=1 << 16) if name not in ("gpt2", "phi3") else dim // heads
    found["head_dim"] = head_dim
    if heads % found["kv_heads"]:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    if name == "llama":
        found["bias"] = fields.flag("mlp_bias", False)
        if fields.flag("attention_bias", False) != found["bias"]:
            raise fields.wrong("attention_bias", "as mlp_bias (biases in one of them alone are not known)")
    if architecture.scaled_embedding:
        found["embedding_scale"] = math.sqrt(dim)
        found["attention_scale"] = fields.number("query_pre_attn_scalar", above=True) ** -0.5
        found["attention_softcap"] = fields.number("attn_logit_softcapping", 0.0)
        found["logit_softcap"] = fields.number("final_logit_softcapping", 0.0)

    limit = fields.integer("max_position_embeddings")
    if context is not None and (type(context) is not int or not 1 <= context <= limit):
        raise ValueError(
            f"{where}: context must be an integer from 1 to max_position_embeddings {limit}; got {context!r}"
        )
    found["context"] = context or limit
    if found["positions"] == "rotary":
        found.update(_rotation(name, fields, head_dim, context))
    window, local = architecture.window(fields, layers) if architecture.window else (None, None)
    if local is not None and all(local) and "local_rotary_base" not in found:
        local = None
    if window is not None and (local is not None or window < found["context"]):
        found.update(window=window, local_layers=local)
    if local is None:
        found.pop("local_rotary_base", None)
    try:
        config = ModelConfig(**found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    parameters = sum(math.prod(shape) for _, shape in parameter_shapes(config))
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"{where}: the sizes make {parameters} parameters; expected at most {MAX_PARAMETERS}")
    return config


def _fields(name: str, values: dict[str, Any], where: str) -> Fields:
    """The fields, with transformers' defaults where the file says nothing. GPT-2's names become those of the others."""
    if name == "gpt2":
        renamed = {_GPT2_FIELDS.get(key, key): value for key, value in values.items() if key in _GPT2_FIELDS}
        fields = _GPT2Fields({**ARCHITECTURES[name].defaults, **values, **renamed}, where)
        return fields
    return Fields({**ARCHITECTURES[name].defaults, **values}, where)


class _GPT2Fields(Fields):
    def wrong(self, name: str, expected: str) -> ValueError:
        theirs = {other: own for own, other in _GPT2_FIELDS.items()}.get(name, name)
        return Fields({theirs: self.values.get(name)}, self.where).wrong(theirs, expected)


# ---- rotation ----


def _rotation(name: str, fields: Fields, head_dim: int, context: int | None) -> dict[str, Any]:
    """rotary_base, rotary_dim, rotary_factors, rotary_magnitude, local_rotary_base; context where longrope says it."""
    rope, local_base = _rope_fields(name, fields)
    base = rope.number(
        "rope_theta", fields.number("rope_theta", 1e6 if name == "gemma3_text" else 1e4, above=True), above=True
    )
    share = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0, above=True), above=True)
    if share > 1 or (share != 1 and name != "phi3"):
        owner = rope if rope.has("partial_rotary_factor") else fields
        raise owner.wrong("partial_rotary_factor", "at most 1" if name == "phi3" else "1 (nothing else is known)")
    rotary_dim = int(head_dim * share)
    if (rotary_dim < 2 or rotary_dim % 2) and share == 1:
        if fields.has("head_dim"):
            raise fields.wrong("head_dim", "an even number (pairs are rotated)")
        raise fields.wrong("num_attention_heads", f"one that makes heads of an even width; {head_dim} cannot be rotated")
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(
            f"{fields.where}: partial_rotary_factor {share:g} of head_dim {head_dim} must be even; got {rotary_dim}"
        )

    found: dict[str, Any] = {"rotary_base": base, "rotary_dim": 0 if rotary_dim == head_dim else rotary_dim}
    if local_base is not None:
        found["local_rotary_base"] = local_base
    kind_field = "rope_type" if rope.has("rope_type") else "type"
    kinds = (
        ("default", "longrope", "su", "yarn") if name == "phi3" else ("default", "linear", "llama3", "yarn", "longrope")
    )
    kind = rope.choice(kind_field, kinds, "default")
    if name == "phi3" and kind in ("su", "yarn"):  # older names of the same
        kind = "longrope"
    if kind == "default":
        return found
    frequencies = base ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    original = _original_context(fields, rope)
    magnitude = 1.0
    if kind == "linear":
        factors = np.full(rotary_dim // 2, rope.number("factor", above=True))
    elif kind == "llama3":
        factors = _llama3_factors(rope, frequencies, original)
    elif kind == "yarn":
        factors, magnitude = _yarn_factors(fields, rope, rotary_dim, base, original)
    else:
        found["context"] = context or min(original, fields.integer("max_position_embeddings"))
        used = "long_factor" if found["context"] > original else "short_factor"
        for listed in ("short_factor", "long_factor"):
            rope.numbers(listed, rotary_dim // 2)
        factors = np.array(rope.numbers(used, rotary_dim // 2))
        factor = rope.number("factor", fields.integer("max_position_embeddings") / original, above=True)
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
        magnitude = rope.number("attention_factor", usual, above=True)
    found["rotary_factors"] = None if (factors == 1).all() else tuple(factors.tolist())
    found["rotary_magnitude"] = magnitude
    return found


def _rope_fields(name: str, fields: Fields) -> tuple[Fields, float | None]:
    """(the object that says how layers rotate, the base of local layers where they have their own)."""
    rope = fields.object("rope_scaling" if fields.has("rope_scaling") else "rope_parameters")
    nested = any(isinstance(rope.values.get(kind), dict) for kind in _LAYER_TYPES)
    if name != "gemma3_text":
        if nested:
            raise ValueError(f"{fields.where}: {rope.prefix}{_LAYER_TYPES[0]} is not known in {name}")
        return rope, None
    local = rope.object("sliding_attention") if nested else Fields({}, fields.where)
    if local.values.get("rope_type", "default") != "default":
        raise local.wrong("rope_type", "default")
    base = local.number("rope_theta", fields.number("rope_local_base_freq", 1e4, above=True), above=True)
    return rope.object("full_attention") if nested else rope, base


def _original_context(fields: Fields, rope: Fields) -> int:
    owner = next((o for o in (fields, rope) if o.has("original_max_position_embeddings")), None)
    if owner is None:
        return fields.integer("max_position_embeddings")
    return owner.integer("original_max_position_embeddings")


def _llama3_factors(rope: Fields, frequencies: np.ndarray, original: int) -> np.ndarray:
    """Fast frequencies as they are, slow ones divided by factor, a blend between (Llama 3.1)."""
    factor = rope.number("factor", above=True)
    low, high = rope.number("low_freq_factor", above=True), rope.number("high_freq_factor", above=True)
    if high <= low:
        raise rope.wrong("high_freq_factor", f"a number > low_freq_factor {low:g}")
    turns = original * frequencies / (2 * math.pi)  # within the original context
    fast = ((turns - low) / (high - low)).clip(0, 1)
    return 1 / ((1 - fast) / factor + fast)


def _yarn_factors(
    fields: Fields, rope: Fields, rotary_dim: int, base: float, original: int
) -> tuple[np.ndarray, float]:
    """(factors, magnitude)."""
    factor = rope.number("factor", fields.integer("max_position_embeddings") / original, above=True)
    if base <= 1:
        raise (rope if rope.has("rope_theta") else fields).wrong("rope_theta", "a number > 1 with yarn")
    fast, slow = rope.number("beta_fast", 32.0, above=True), rope.number("beta_slow", 1.0, above=True)
    if slow > fast:
        raise ValueError(f"{fields.where}: {rope.prefix}beta_fast must be >= beta_slow {slow:g}; got {fast:g}")
    factors = yarn_factors(
        rotary_dim, base, factor, original, fast_turns=fast, slow_turns=slow, truncate=rope.flag("truncate", True)
    )

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.has("attention_factor"):
        return factors, rope.number("attention_factor", above=True)
    if rope.number("mscale", 0.0) and rope.number("mscale_all_dim", 0.0):
        return factors, magnitude(rope.number("mscale")) / magnitude(rope.number("mscale_all_dim"))
    return factors, magnitude(1.0)
