"""A model as a GGUF file that llama.cpp opens: which of its architectures says the same, its metadata, names and types.

The mirror of gguf_model.py. What an architecture of llama.cpp would compute otherwise than we do is refused, not written.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.text.pieces import printable
from fastmixer.weights.gguf_model import (
    ARCHITECTURES,
    FREQUENCIES,
    LAYER_NAMES,
    LONG_FREQUENCIES,
    NAMES,
    SHORT_FREQUENCIES,
    Architecture,
    unpaired_rows,
)
from fastmixer.weights.gguf_vocabulary import tokenizer_fields
from fastmixer.weights.gguf_writer import TensorToWrite, write_gguf
from fastmixer.weights.quantized import BY_NAME, BlockType, quantize
from fastmixer.weights.source import ModelSource
from fastmixer.weights.stored import StoredTensor, expected_tensors

# The first that says all of a model is written. Phi-3's models are Llamas in all but names, unless only a part of each head
# is rotated.
_ORDER = ("gpt2", "qwen2", "qwen3", "gemma2", "gemma3", "llama", "phi3")
# Ours that lie one above the other in one of theirs.
_QKV = ("attention.q", "attention.k", "attention.v")
_FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"attn_qkv": _QKV},
    "phi3": {"attn_qkv": _QKV, "ffn_up": ("feedforward.gate", "feedforward.up")},
}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_SAMPLING = {"temperature": "temp", "top_p": "top_p", "min_p": "min_p"}
_ROWS = 4096  # that are rounded at a time


def write_gguf_model(
    source: ModelSource, path: Path, type_name: str | None, progress: Callable[[int], object] = lambda done: None
) -> Path:
    """Write a model to a GGUF file, all or nothing. type_name: of matrices (None: as each is stored).

    As in llama.cpp's own files, vectors and learned positions stay F32, the head of a Q4_0 file is Q8_0, and a matrix
    whose rows are no multiple of 32 is F16, which a warning tells. Raises ValueError naming what cannot be written.
    """
    try:
        name = architecture_of(source.config)
        metadata = _metadata(source, name)
        if source.tokenizer is not None:
            metadata.update(tokenizer_fields(source.tokenizer, source.config.vocab))
        tensors = dict(_tensors(source, ARCHITECTURES[name], name, type_name))
    except ValueError as error:
        raise ValueError(f"{path}: {printable(source.name)} cannot be written as GGUF: {error}") from error
    if type_name is not None:
        _tell_other_types(path, type_name, tensors)
        metadata["general.file_type"] = _FILE_TYPES[type_name]
    if any(tensor.type.block > 1 for tensor in tensors.values()):
        metadata["general.quantization_version"] = 2
    return write_gguf(path, metadata, tensors, progress)


def _tell_other_types(path: Path, type_name: str, tensors: dict[str, TensorToWrite]) -> None:
    """A warning for matrices that have no blocks of the type that was asked for. Layers' matrices of one name are one."""
    if BY_NAME[type_name].block == 1:
        return
    names = [name for name, tensor in tensors.items() if len(tensor.shape) > 1 and tensor.type.name == "F16"]
    if names:
        kinds = dict.fromkeys(re.sub(r"^blk\.\d+\.", "blk.*.", name) for name in names)
        warnings.warn(
            f"{path}: {len(names)} matrices are F16 instead of {type_name}, as their rows are no multiple of 32: "
            f"{', '.join(kinds)}",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip


def architecture_of(config: ModelConfig) -> str:
    """The architecture whose files say what config says. ValueError: what the nearest one cannot say."""
    problems = {}
    for name in _ORDER:
        found = list(_mismatches(config, name))
        if not found:
            return name
        problems[name] = found
    nearest = min(problems, key=lambda name: len(problems[name]))
    raise ValueError(f"no architecture of GGUF files says this; the nearest, {nearest}, has no {problems[nearest][0]}")


def _mismatches(config: ModelConfig, name: str) -> Iterator[str]:
    """What files of this architecture cannot say of a model."""
    architecture = ARCHITECTURES[name]
    plain = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "post_norms": False}
    for key, expected in {**plain, **architecture.choices}.items():
        if key == "qkv_bias" or (key == "bias" and name == "llama"):
            continue
        if getattr(config, key) != expected:
            yield f"{key} {getattr(config, key)!r}"
    qkv_bias = config.has_qkv_bias
    if name != "llama" and qkv_bias != architecture.choices.get("qkv_bias", architecture.choices["bias"]):
        yield f"qkv_bias {qkv_bias!r}"
    scale = math.sqrt(config.dim) if architecture.scaled_embedding else 1.0
    if not math.isclose(config.embedding_scale, scale, rel_tol=1e-6):
        yield f"embedding_scale {config.embedding_scale!r}"
    width = config.dim / config.heads if config.layers == architecture.wide_layers else config.head_dim
    if config.attention_scale is not None and not math.isclose(config.attention_scale, width**-0.5, rel_tol=1e-6):
        yield f"attention_scale {config.attention_scale!r}"
    if (name == "gemma2") != (config.attention_softcap > 0):
        yield f"attention_softcap {config.attention_softcap!r}"
    if config.logit_softcap and not architecture.scaled_embedding:
        yield f"logit_softcap {config.logit_softcap!r}"
    if name == "gpt2" and config.kv_heads != config.heads:
        yield f"kv_heads {config.kv_heads}"
    if name == "gpt2" and config.head_dim * config.heads != config.dim:
        yield f"head_dim {config.head_dim}"
    if name == "gemma2" and not config.tied_head:
        yield "tied_head False"
    yield from _mismatches_of_windows(config, name)
    if config.positions == "rotary" and name not in ("llama", "phi3") and len(set(config.rotary_factors or ())) > 1:
        yield "rotary_factors that differ"
    if name == "llama" and config.rotary_dim not in (0, config.head_dim):
        yield f"rotary_dim {config.rotary_dim} of head_dim {config.head_dim}"


def _mismatches_of_windows(config: ModelConfig, name: str) -> Iterator[str]:
    architecture = ARCHITECTURES[name]
    if name == "gemma2" and config.window is None:
        yield "window None"
    if config.window is not None and _period(config, architecture) is None:
        yield f"local_layers {config.local_layers!r}"
    is_known = name in ("gemma2", "gemma3") or (name in ("llama", "phi3") and (config.window or 0) >= config.context)
    if config.window is not None and not is_known:
        # Files of the others may name one, but llama.cpp looks back beyond it.
        has_way_out = config.local_layers is None and config.window < config.context
        way_out = f" (there would be none with a context of at most {config.window})" if has_way_out else ""
        yield f"window {config.window}{way_out}"
    base = architecture.defaults.get("rope.freq_base_swa")
    local_base = config.local_rotary_base
    if config.window is not None and base is None and local_base not in (None, config.rotary_base):
        yield f"local_rotary_base {local_base!r}"
    if config.window is not None and base is not None and local_base is None:
        yield "local_rotary_base None"


def _period(config: ModelConfig, architecture: Architecture) -> int | None:
    """Of every so many layers all but the last see only the window; 1 if all layers do in an architecture where that goes
    without saying. None if there is no such number."""
    flags = config.local_layers or (True,) * config.layers
    if architecture.local_period == 1:
        return 1 if all(flags) else None
    for period in (architecture.local_period, *range(2, config.layers + 2)):
        if all(local == (i % period < period - 1) for i, local in enumerate(flags)):
            return period
    return None


def _metadata(source: ModelSource, name: str) -> dict[str, Any]:
    config, architecture = source.config, ARCHITECTURES[name]
    rms = "rms_" if config.norm == "rmsnorm" else ""
    fields: dict[str, Any] = {
        "block_count": config.layers, "context_length": config.context, "embedding_length": config.dim,
        "feed_forward_length": config.hidden, "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads, "vocab_size": config.vocab,
        f"attention.layer_norm_{rms}epsilon": float(config.norm_epsilon),
    }  # fmt: skip
    if config.positions == "rotary":
        fields.update(_rotary_fields(config, name))
        fields["attention.key_length"] = fields["attention.value_length"] = config.head_dim
    if config.attention_softcap:
        fields["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.logit_softcap or name == "gemma2":
        fields["final_logit_softcapping"] = float(config.logit_softcap)
    if config.window is not None:
        fields["attention.sliding_window"] = config.window
        period = _period(config, architecture)
        if period != architecture.local_period:
            fields["attention.sliding_window_pattern"] = period
    if "rope.freq_base_swa" in architecture.defaults and config.local_rotary_base is not None:
        fields["rope.freq_base_swa"] = float(config.local_rotary_base)
    metadata: dict[str, Any] = {"general.architecture": name, "general.type": "model", "general.name": source.name}
    metadata |= {f"{name}.{key}": value for key, value in fields.items()}
    for ours, theirs in _SAMPLING.items():
        if isinstance(source.generation.get(ours), (int, float)):
            metadata[f"general.sampling.{theirs}"] = float(source.generation[ours])
    if isinstance(source.generation.get("top_k"), int):
        metadata["general.sampling.top_k"] = np.int32(source.generation["top_k"])
    return metadata


def _rotary_fields(config: ModelConfig, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "rope.dimension_count": config.rotary_dim or config.head_dim,
        "rope.freq_base": float(config.rotary_base),
    }
    if config.rotary_factors is not None and len(set(config.rotary_factors)) == 1:
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rotary_factors[0])}
    elif config.rotary_factors is not None and name == "phi3":
        fields |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": config.context}
    if config.rotary_magnitude != 1:
        fields["rope.scaling.attn_factor"] = float(config.rotary_magnitude)
    return fields


# ---- tensors ----


def _tensors(
    source: ModelSource, architecture: Architecture, name: str, type_name: str | None
) -> Iterator[tuple[str, TensorToWrite]]:
    config = source.config
    if config.rotary_factors is not None and len(set(config.rotary_factors)) > 1:
        factors = np.array([config.rotary_factors], np.float32)
        for theirs in (LONG_FREQUENCIES, SHORT_FREQUENCIES) if name == "phi3" else (FREQUENCIES,):
            yield theirs, TensorToWrite(BY_NAME["F32"], factors.shape[1:], lambda: quantize(factors, BY_NAME["F32"]))
    fused = {part: (theirs, parts) for theirs, parts in _FUSED.get(name, {}).items() for part in parts}
    shapes = expected_tensors(config)
    for ours, shape in shapes.items():
        stem, kind = ours.rsplit(".", 1)
        layer, part = stem.split(".", 2)[1:] if stem.startswith("layers.") else ("", stem)
        theirs = f"blk.{layer}.{LAYER_NAMES[part]}.{kind}" if layer else f"{NAMES[part]}.{kind}"
        names, rows = [ours], None
        if part in fused:
            if part != fused[part][1][0]:
                continue
            names = [f"layers.{layer}.{other}.{kind}" for other in fused[part][1]]
            theirs, shape = f"blk.{layer}.{fused[part][0]}.{kind}", (sum(shapes[n][0] for n in names), *shape[1:])
        elif architecture.interleaved and part in ("attention.q", "attention.k"):
            heads = config.heads if part == "attention.q" else config.kv_heads
            rows = np.argsort(unpaired_rows(heads, config.head_dim, config.rotary_dim or config.head_dim))
        stored = source.tensors[ours].type
        if any(source.tensors[other].type is not stored for other in names):
            stored = BY_NAME["F32"]  # fused: of one type, whatever its parts have
        chosen = _type_of(part, shape, type_name, stored, config)
        yield theirs, TensorToWrite(chosen, shape, _maker(source, names, rows, chosen))


def _type_of(
    part: str, shape: tuple[int, ...], type_name: str | None, stored: BlockType, config: ModelConfig
) -> BlockType:
    if len(shape) == 1 or part == "positions":
        return BY_NAME["F32"]
    if type_name is None:
        return stored
    head = part == "head" or (part == "embedding" and config.tied_head)
    kind = BY_NAME["Q8_0" if type_name == "Q4_0" and head else type_name]
    return kind if shape[-1] % kind.block == 0 else BY_NAME["F16"]


def _maker(source: ModelSource, names: list[str], rows: np.ndarray | None, kind: BlockType) -> Callable[[], np.ndarray]:
    """What makes the blocks of our tensors of these names, one above the other, their rows in this order."""

    def make() -> np.ndarray:
        parts = [stored_as(source.tensors[name], kind, rows) for name in names]
        if len(source.tensors[names[0]].shape) == 1:
            return np.concatenate(parts, axis=1)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return make


def stored_as(tensor: StoredTensor, kind: BlockType, rows: np.ndarray | None = None) -> np.ndarray:
    """uint8 [rows, bytes a row]: a tensor in another format, its rows (a vector's numbers) in this order. Blocks that are
    of this format already are copied as they are."""
    if len(tensor.shape) == 1:
        values = tensor.values() if rows is None else tensor.values()[rows]
        return quantize(values[None], kind)
    if tensor.type is kind:
        return tensor.raw if rows is None else tensor.raw[rows]
    order = np.arange(tensor.shape[0]) if rows is None else rows
    out = np.empty((tensor.shape[0], tensor.shape[1] // kind.block * kind.bytes), np.uint8)
    for start in range(0, len(order), _ROWS):
        part = tensor.take(order[start : start + _ROWS])
        out[start : start + _ROWS] = quantize(part.values(), kind)
    return out
