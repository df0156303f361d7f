"""A model as a folder that transformers opens: config.json, model.safetensors, tokenizer.json, generation_config.json.

Which of transformers' models says the same is read off our ModelConfig; one that none of them says is refused.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.text.pieces import printable
from fastmixer.weights.files import replace_folder, write_json
from fastmixer.weights.folder import CONFIG, TOKENIZER, WEIGHTS
from fastmixer.weights.hf_names import full_name, hf_places
from fastmixer.weights.quantized import BY_NAME, quantize
from fastmixer.weights.source import ModelSource
from fastmixer.weights.stored import StoredTensor, expected_tensors

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
GENERATION = "generation_config.json"
_KNOWN_FILES = (CONFIG, WEIGHTS, TOKENIZER, GENERATION, "tokenizer_config.json")
_CLASSES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM",
}  # fmt: skip
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu", "relu": "relu"}


def write_hf_folder(
    source: ModelSource, folder: Path, type_name: str | None, progress: Callable[[int], object] = lambda done: None
) -> Path:
    """Write a model as a folder, all or nothing. type_name: F32, F16 or BF16 for all tensors (None: what all matrices are
    stored as, else F32).

    Raises ValueError naming what cannot be written; FileExistsError if folder holds anything that is not a model's.
    """
    if type_name is not None and type_name not in TYPES:
        raise ValueError(f"{folder}: type of a folder must be one of {', '.join(TYPES)}; got {type_name}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder, or a name that ends in .gguf")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _KNOWN_FILES) if folder.exists() else []
    if others:
        raise FileExistsError(f"{folder} holds {others[0]!r}, which is no part of a model; choose another folder")
    if type_name is None:
        kinds = {
            source.tensors[name].type.name for name, shape in expected_tensors(source.config).items() if len(shape) > 1
        }
        type_name = kinds.pop() if len(kinds) == 1 and kinds <= set(TYPES) else "F32"
    try:
        config = hf_config(source.config)
    except ValueError as error:
        raise ValueError(f"{folder}: {printable(source.name)} cannot be written for transformers: {error}") from error
    config["dtype"] = TYPES[type_name]
    generation = dict(source.generation)
    if source.tokenizer is not None:
        config["eos_token_id"] = generation["eos_token_id"] = source.tokenizer.end_id
        if source.tokenizer.begin_id is not None:
            config["bos_token_id"] = generation["bos_token_id"] = source.tokenizer.begin_id

    def write(temporary: Path) -> None:
        write_json(temporary / CONFIG, config)
        write_json(temporary / GENERATION, generation)
        if source.tokenizer is not None:
            source.tokenizer.save(temporary)
        _write_safetensors(temporary / WEIGHTS, list(_tensors(source, config["model_type"])), type_name, progress)

    return replace_folder(folder, write)


# ---- config.json ----


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of the one of transformers' models that says what config says. ValueError: what none can say."""
    kind = _model_type(config)
    if kind == "gpt2":
        return _gpt2_config(config)
    values: dict[str, Any] = {
        "architectures": [_CLASSES[kind]], "model_type": kind, "vocab_size": config.vocab,
        "max_position_embeddings": config.context, "hidden_size": config.dim, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.hidden, "rms_norm_eps": config.norm_epsilon, "rope_theta": config.rotary_base,
        "tie_word_embeddings": config.tied_head, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None,
        "pad_token_id": None,
    }  # fmt: skip
    gemma = kind.startswith("gemma")
    values["hidden_activation" if gemma else "hidden_act"] = _ACTIVATIONS[config.activation]
    if kind == "llama":
        values["attention_bias"] = values["mlp_bias"] = config.bias
    if config.window is not None:
        values["sliding_window"] = config.window
    if kind in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        local = config.local_layers or (config.window is not None,) * config.layers
        values["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in local]
    if kind in ("qwen2", "qwen3"):
        values["use_sliding_window"] = config.window is not None
        values["max_window_layers"] = 0
    if gemma:
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        scalar = scale**-2
        values["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar
        values["attn_logit_softcapping"] = config.attention_softcap or None
        values["final_logit_softcapping"] = config.logit_softcap or None
    if kind == "gemma3_text":
        values["rope_local_base_freq"] = config.local_rotary_base or config.rotary_base
    scaling = _rope_scaling(config, kind)
    if scaling is not None:
        values["rope_scaling"] = scaling
    if kind == "phi3":
        values["partial_rotary_factor"] = _rotary_share(config.rotary_dim or config.head_dim, config.head_dim)
        values["original_max_position_embeddings"] = config.context
    return values


def _rotary_share(rotary_dim: int, head_dim: int) -> float:
    """The share that readers, who cut off head_dim times it, find rotary_dim by: rounded down, 30 of 44 would be 29."""
    share = rotary_dim / head_dim
    return share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1)


def _model_type(config: ModelConfig) -> str:
    qkv_bias = config.has_qkv_bias
    rotary = (config.norm, config.positions, config.gated) == ("rmsnorm", "rotary", True)
    if not rotary:
        kind = "gpt2"
    elif config.post_norms:
        kind = "gemma3_text" if config.qk_norm else "gemma2"
    elif config.qk_norm:
        kind = "qwen3"
    elif qkv_bias and not config.bias:
        kind = "qwen2"
    elif config.rotary_dim not in (0, config.head_dim) or config.rotary_magnitude != 1:
        kind = "phi3"
    else:
        kind = "llama" if config.window is None else "mistral"
    for problem in _mismatches(config, kind, qkv_bias):
        raise ValueError(f"none of its models says this; the nearest, {kind}, has no {problem}")
    return kind


def _mismatches(config: ModelConfig, kind: str, qkv_bias: bool) -> Iterator[str]:
    gemma = kind.startswith("gemma")
    if kind == "gpt2":
        expected: dict[str, Any] = {
            "norm": "layernorm", "positions": "learned", "gated": False, "bias": True,
            "kv_heads": config.heads, "window": None,
            "head_dim": config.dim // config.heads, "qk_norm": False, "post_norms": False,
        }  # fmt: skip
    else:
        expected = {"bias": config.bias if kind == "llama" else False}
    if not gemma:
        expected |= {"attention_scale": None, "attention_softcap": 0.0, "logit_softcap": 0.0, "embedding_scale": 1.0}
        expected["local_rotary_base"] = None
    for name, value in expected.items():
        if getattr(config, name) != value:
            yield f"{name} {getattr(config, name)!r}"
    if config.activation not in _ACTIVATIONS:
        yield f"activation {config.activation!r}"
    if qkv_bias != (kind == "qwen2" or config.bias):
        yield f"qkv_bias {qkv_bias!r}"
    if gemma and abs(config.embedding_scale - config.dim**0.5) > 1e-4 * config.embedding_scale:
        yield f"embedding_scale {config.embedding_scale!r}"
    if kind in ("llama", "mistral", "phi3") and config.local_layers is not None:
        yield f"local_layers {config.local_layers!r}"
    if kind == "gemma2" and config.local_rotary_base not in (None, config.rotary_base):
        yield f"local_rotary_base {config.local_rotary_base!r}"
    if kind not in ("phi3", "gpt2") and config.rotary_dim not in (0, config.head_dim):
        yield f"rotary_dim {config.rotary_dim} of head_dim {config.head_dim}"
    if kind == "phi3" and config.head_dim * config.heads != config.dim:
        yield f"head_dim {config.head_dim}"


def _gpt2_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": [_CLASSES["gpt2"]], "model_type": "gpt2", "vocab_size": config.vocab,
        "n_positions": config.context, "n_embd": config.dim, "n_layer": config.layers, "n_head": config.heads,
        "n_inner": config.hidden, "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": {**_ACTIVATIONS, "gelu_tanh": "gelu_new"}[config.activation],
        "tie_word_embeddings": config.tied_head,
        "embd_pdrop": config.dropout, "attn_pdrop": config.dropout, "resid_pdrop": config.dropout,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def _rope_scaling(config: ModelConfig, kind: str) -> dict[str, Any] | None:
    """Any factors and magnitude, in the words of "longrope" with the same factors for long and short texts."""
    factors = config.rotary_factors
    if factors is None and config.rotary_magnitude == 1:
        return None
    if factors is not None and len(set(factors)) == 1 and config.rotary_magnitude == 1 and kind != "phi3":
        return {"rope_type": "linear", "factor": factors[0]}
    listed = list(factors or (1.0,) * ((config.rotary_dim or config.head_dim) // 2))
    return {
        "rope_type": "longrope", "short_factor": listed, "long_factor": listed, "factor": 1.0,
        "attention_factor": config.rotary_magnitude, "original_max_position_embeddings": config.context,
    }  # fmt: skip


# ---- model.safetensors ----


@dataclass(frozen=True)
class _Tensor:
    """One of their tensors: ours one above the other; transposed: [in, out]; minus: what is taken from every number."""

    name: str
    shape: tuple[int, ...]
    parts: Sequence[Callable[[], StoredTensor]]
    transposed: bool = False
    minus: float = 0.0

    def values(self) -> np.ndarray:
        arrays = [part().values() for part in self.parts]
        values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        values = values - np.float32(self.minus) if self.minus else values
        return values.T if self.transposed else values


def _tensors(source: ModelSource, kind: str) -> Iterator[_Tensor]:
    """Their tensors, each of those of ours that are read from it when such a folder is opened."""
    places = hf_places(kind, source.config, source.config.context)
    parts: dict[str, list[str]] = {}
    for ours, place in places.items():
        parts.setdefault(place.name, []).append(ours)
    for theirs, names in parts.items():
        place = places[names[0]]
        makers = [partial(source.tensors.__getitem__, name) for name in names]
        yield _Tensor(full_name(kind, theirs), place.shape, makers, place.transposed, place.plus)


def _write_safetensors(path: Path, tensors: list[_Tensor], type_name: str, progress: Callable[[int], object]) -> None:
    """The file, one tensor in memory at a time. Format: a header's length, the header in JSON, the tensors."""
    kind = BY_NAME[type_name]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        size = int(np.prod(tensor.shape, dtype=object)) * kind.bytes
        header[tensor.name] = {"dtype": type_name, "shape": tensor.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.values()).reshape(1, -1)
            if values.size != int(np.prod(tensor.shape, dtype=object)):
                raise ValueError(f"{path}: {tensor.name} must have shape {tensor.shape}; got {values.size} numbers")
            file.write(quantize(values, kind).data)
            progress(values.size * kind.bytes)
