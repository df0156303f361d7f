"""A GGUF file as a model: what its architecture's name, metadata and tensors' names say, in our ModelConfig and our names.

One table of architectures; anything else is refused by name. Every field is checked (type, range, agreement with the
tensors) where it is read. Tensors stay views of the mapped file. Source of the conventions: llama.cpp's llama-arch,
llama-model and convert_hf_to_gguf. Knows nothing of bytes in the file (gguf.py) or of writing (gguf_export.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.weights.gguf import GGUFFile
from fastmixer.weights.rotation import yarn_factors
from fastmixer.weights.source import ModelSource
from fastmixer.weights.stored import StoredTensor, expected_tensors

LARGEST = 1 << 24  # of any count in the metadata: contexts go to some 10 million


@dataclass(frozen=True)
class Architecture:
    """What a file says by its architecture's name alone.

    choices: fields of ModelConfig. interleaved: heads of q and k are stored for rotation by pairs of neighbours.
    gate_in_up: ffn_up holds gate and up. local_period: of so many layers all but the last see only the window (1: every
    layer does). wide_layers: the number of layers of the one size that scales scores by dim / heads, not by head_dim.
    defaults: metadata that files may leave out.
    """

    choices: dict[str, Any]
    interleaved: bool = False
    gate_in_up: bool = False
    local_period: int = 1
    wide_layers: int = 0
    scaled_embedding: bool = False
    defaults: dict[str, float] = field(default_factory=dict)


_LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True, "bias": False}
_GEMMA = {**_LLAMA, "activation": "gelu_tanh", "post_norms": True}
_GPT2 = {"norm": "layernorm", "positions": "learned", "activation": "gelu_tanh", "gated": False, "bias": True}
ARCHITECTURES = {
    "llama": Architecture(_LLAMA, interleaved=True),
    "qwen2": Architecture({**_LLAMA, "qkv_bias": True}),
    "qwen3": Architecture({**_LLAMA, "qk_norm": True}),
    "gemma2": Architecture(
        _GEMMA, scaled_embedding=True, local_period=2, wide_layers=46,
        defaults={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 4096},
    ),
    "gemma3": Architecture(
        {**_GEMMA, "qk_norm": True}, scaled_embedding=True, local_period=6, wide_layers=62,
        defaults={"rope.freq_base_swa": 10000.0},
    ),
    "phi3": Architecture(_LLAMA, gate_in_up=True),
    "gpt2": Architecture(_GPT2),
}  # fmt: skip

# Our names and theirs; those of a layer after "layers.{i}." and "blk.{i}.".
NAMES = {"embedding": "token_embd", "positions": "position_embd", "final_norm": "output_norm", "head": "output"}
LAYER_NAMES = {
    "attention_norm": "attn_norm", "attention.q": "attn_q", "attention.k": "attn_k", "attention.v": "attn_v",
    "attention.output": "attn_output", "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm", "feedforward_norm": "ffn_norm", "feedforward.gate": "ffn_gate",
    "feedforward.up": "ffn_up", "feedforward.down": "ffn_down", "feedforward_post_norm": "post_ffw_norm",
}  # fmt: skip
FREQUENCIES = "rope_freqs.weight"  # each rotary frequency is divided by its number here
LONG_FREQUENCIES, SHORT_FREQUENCIES = "rope_factors_long.weight", "rope_factors_short.weight"
# Sampling that the model's makers advise: the file's field, ours.
_GENERATION = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def open_gguf(path: str | Path, context: int | None = None) -> ModelSource:
    """The model in a GGUF file; its tensors are views of the mapped file, made when they are asked for.

    context: the longest sequence to make ready for, up to the file's own (None). Phi-3's second set of rotary factors is
    chosen by it: without it, such a file gives its original, short context. Raises FileNotFoundError, or ValueError that
    names file, field and value.
    """
    file = GGUFFile(path)
    fields = _Fields(file)
    name = fields.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(f"{file.path}: general.architecture must be one of {', '.join(ARCHITECTURES)}; got {name!r}")
    if fields.count("split.count", 1, low=0) > 1:
        raise ValueError(
            f"{file.path}: split.count must be 1 (join the parts of a model first); got {file.metadata['split.count']}"
        )
    config = _config(fields, ARCHITECTURES[name], context)
    tensors = _Tensors(file, ARCHITECTURES[name], config)
    return ModelSource(
        name=fields.text("general.name", Path(path).stem),
        path=file.path,
        config=config,
        tensors=tensors,
        tokenizer=_tokenizer(file, config),
        generation=_generation(fields),
    )


def unpaired_rows(heads: int, head_dim: int, rotary_dim: int) -> np.ndarray:
    """int64 [heads head_dim]: for each row of q or k that is rotated by halves, its row in a file rotated by pairs.

    Of a head's first rotary_dim = 2 n rows the file has 0, n, 1, n + 1, ... where we have 0, 1, ..., n, n + 1, ...
    """
    head = np.arange(head_dim)
    head[:rotary_dim] = head[:rotary_dim].reshape(rotary_dim // 2, 2).T.ravel()
    return (np.arange(heads)[:, None] * head_dim + head).ravel()


# ---- metadata ----


class _Fields:
    """A file's metadata, each field checked as it is read. A name without a group is the architecture's own."""

    def __init__(self, file: GGUFFile):
        self.path, self.file, self._metadata = file.path, file, file.metadata
        self.prefix = ""

    def full(self, name: str) -> str:
        return name if name.split(".")[0] in ("general", "split", "tokenizer") else self.prefix + name

    def has(self, name: str) -> bool:
        return self.full(name) in self._metadata

    def wrong(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {self.full(name)} {problem}")

    def _get(self, name: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self._metadata.get(self.full(name), default)
        if value is None:
            raise self.wrong(name, f"is missing; expected {expected}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"must be {expected}; got {_short(value)}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        return self._get(name, default, str, "text")

    def count(self, name: str, default: int | None = None, high: int = LARGEST, low: int = 1) -> int:
        """An integer; of an array with one for each layer, the number that all of them are."""
        value = self._metadata.get(self.full(name))
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
            if (value != value[0]).any():
                raise self.wrong(name, f"must be the same in every layer; got {_short(value)}")
            default = value = int(value[0])
        else:
            value = self._get(name, default, int, f"an integer from {low} to {high}")
        if not low <= value <= high:
            raise self.wrong(name, f"must be an integer from {low} to {high}; got {value}")
        return value

    def number(self, name: str, default: float | None = None, *, zero: bool = False) -> float:
        expected = f"a finite number {'>=' if zero else '>'} 0"
        value = float(self._get(name, default, (int, float), expected))
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise self.wrong(name, f"must be {expected}; got {value!r}")
        return value


def _short(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _config(fields: _Fields, architecture: Architecture, context: int | None) -> ModelConfig:
    fields.prefix = fields.text("general.architecture") + "."
    file, defaults = fields.file, architecture.defaults
    if "token_embd.weight" not in file.tensors or len(file.tensors["token_embd.weight"].shape) != 2:
        raise ValueError(f"{fields.path}: tensor token_embd.weight [vocab, dim] is missing")
    if fields.count("expert_count", 0, low=0):
        raise fields.wrong(
            "expert_count", f"must be 0 (mixtures of experts are not known); got {fields.count('expert_count')}"
        )
    if fields.file.metadata.get(fields.full("attention.causal"), True) is not True:
        raise fields.wrong("attention.causal", "must be true (a model that writes text)")
    vocab, width = file.tensors["token_embd.weight"].shape
    layers = fields.count("block_count", high=len(file))
    dim = fields.count("embedding_length")
    if dim != width:
        raise fields.wrong("embedding_length", f"must be the width of token_embd.weight, {width}; got {dim}")
    if fields.count("vocab_size", vocab) != vocab:
        raise fields.wrong(
            "vocab_size", f"must be the rows of token_embd.weight, {vocab}; got {fields.count('vocab_size')}"
        )
    heads = fields.count("attention.head_count")
    kv_heads = fields.count("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise fields.wrong("attention.head_count_kv", f"must divide the {heads} heads; got {kv_heads}")
    if dim % heads and not fields.has("attention.key_length"):
        raise fields.wrong("attention.head_count", f"must divide embedding_length {dim}; got {heads}")
    head_dim = fields.count("attention.key_length", dim // heads)
    if fields.count("attention.value_length", head_dim) != head_dim:
        value = fields.count("attention.value_length")
        raise fields.wrong("attention.value_length", f"must be as attention.key_length, {head_dim}; got {value}")
    values: dict[str, Any] = {
        **architecture.choices,
        "vocab": vocab, "dim": dim, "layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "hidden": fields.count("feed_forward_length"), "tied_head": "output.weight" not in file.tensors,
        "attention_softcap": fields.number("attn_logit_softcapping", defaults.get("attn_logit_softcapping", 0), zero=True),
        "logit_softcap": fields.number("final_logit_softcapping", defaults.get("final_logit_softcapping", 0), zero=True),
    }  # fmt: skip
    rms = values["norm"] == "rmsnorm"
    values["norm_epsilon"] = fields.number(f"attention.layer_norm_{'rms_' if rms else ''}epsilon", zero=True)
    if rms:
        values["bias"] = "blk.0.ffn_down.bias" in file.tensors
        values["qkv_bias"] = not {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}.isdisjoint(file.tensors)
        if architecture.choices.get("qkv_bias"):
            values["qkv_bias"] = True
    if architecture.scaled_embedding:
        values["embedding_scale"] = math.sqrt(dim)
    if layers == architecture.wide_layers:
        values["attention_scale"] = (dim / heads) ** -0.5
    values["context"] = _context(fields, context)
    if values["positions"] == "rotary":
        values.update(_rotation(fields, head_dim, values["context"]))
        values.update(_window(fields, architecture, layers, values["rotary_base"]))
    try:
        return ModelConfig(**values)
    except ValueError as error:
        raise ValueError(f"{fields.path}: {error}") from error


def _context(fields: _Fields, wanted: int | None) -> int:
    largest = fields.count("context_length")
    if wanted is not None:
        if type(wanted) is not int or not 1 <= wanted <= largest:
            limit = f"{fields.full('context_length')}, {largest}"
            raise ValueError(f"{fields.path}: context must be an integer from 1 to {limit}; got {wanted!r}")
        return wanted
    if LONG_FREQUENCIES in fields.file.tensors:
        return min(largest, fields.count("rope.scaling.original_context_length"))
    return largest


def _window(fields: _Fields, architecture: Architecture, layers: int, base: float) -> dict[str, Any]:
    """window, local_layers and local_rotary_base."""
    window = fields.count(
        "attention.sliding_window", int(architecture.defaults.get("attention.sliding_window", 0)), low=0
    )
    if not window:
        return {}
    pattern = fields.file.metadata.get(fields.full("attention.sliding_window_pattern"))
    if isinstance(pattern, np.ndarray):
        if pattern.size != layers or not set(pattern.tolist()) <= {0, 1}:
            raise fields.wrong("attention.sliding_window_pattern", f"must be {layers} bools; got {_short(pattern)}")
        local = tuple(bool(flag) for flag in pattern)
    else:
        usual = architecture.local_period if architecture.local_period > 1 else 0  # 0: every layer
        period = fields.count("attention.sliding_window_pattern", usual, low=0)
        local = tuple(period == 0 or layer % period < period - 1 for layer in range(layers))
    if not any(local):
        return {}
    found: dict[str, Any] = {"window": window, "local_layers": None if all(local) else local}
    local_base = fields.number("rope.freq_base_swa", architecture.defaults.get("rope.freq_base_swa", base))
    if "rope.freq_base_swa" in architecture.defaults or local_base != base:
        found["local_rotary_base"] = local_base
    return found


def _rotation(fields: _Fields, head_dim: int, context: int) -> dict[str, Any]:
    """rotary_dim, rotary_base, rotary_factors and rotary_magnitude, as llama.cpp's rope takes them from these fields."""
    rotary_dim = fields.count("rope.dimension_count", head_dim, high=head_dim)
    if rotary_dim % 2:
        raise fields.wrong("rope.dimension_count", f"must be even; got {rotary_dim}")
    base = fields.number("rope.freq_base", 10000.0)
    kinds = ("none", "linear", "yarn", "longrope")
    kind = fields.text("rope.scaling.type", "linear")
    if kind not in kinds:
        raise fields.wrong("rope.scaling.type", f"must be one of {', '.join(kinds)}; got {kind!r}")
    old = fields.number("rope.scale_linear", 0.0, zero=True)
    factor = fields.number("rope.scaling.factor", old, zero=True) or 1.0
    magnitude = fields.number("rope.scaling.attn_factor", 1.0)
    factors = np.ones(rotary_dim // 2)
    if kind == "yarn":
        factors *= _yarn_factors(fields, rotary_dim, base, factor)
        magnitude *= (1 + 0.1 * math.log(factor)) * fields.number("rope.scaling.yarn_attn_factor", 1.0)
    elif kind != "none":
        factors *= factor
    if LONG_FREQUENCIES in fields.file.tensors:
        original = fields.count("rope.scaling.original_context_length")
        factors *= _frequencies(fields, LONG_FREQUENCIES if context > original else SHORT_FREQUENCIES, rotary_dim)
    elif FREQUENCIES in fields.file.tensors:
        factors *= _frequencies(fields, FREQUENCIES, rotary_dim)
    return {
        "rotary_dim": 0 if rotary_dim == head_dim else rotary_dim,
        "rotary_base": base,
        "rotary_factors": None if (factors == 1).all() else tuple(factors.tolist()),
        "rotary_magnitude": magnitude,
    }


def _yarn_factors(fields: _Fields, rotary_dim: int, base: float, factor: float) -> np.ndarray:
    if base <= 1:
        raise fields.wrong("rope.freq_base", f"must be a number > 1 with yarn; got {base!r}")
    return yarn_factors(
        rotary_dim, base, factor,
        fields.count("rope.scaling.original_context_length", fields.count("context_length")),
        fast_turns=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        slow_turns=fields.number("rope.scaling.yarn_beta_slow", 1.0),
    )  # fmt: skip


def _frequencies(fields: _Fields, name: str, rotary_dim: int) -> np.ndarray:
    info = fields.file.tensors.get(name)
    if info is None or info.shape != (rotary_dim // 2,):
        got = "no such tensor" if info is None else info.shape
        raise ValueError(f"{fields.path}: tensor {name} must have shape ({rotary_dim // 2},); got {got}")
    factors = fields.file[name].astype(np.float64)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise ValueError(f"{fields.path}: tensor {name} must hold finite numbers > 0; got {_short(factors)}")
    return factors


def _generation(fields: _Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for theirs, ours in _GENERATION.items():
        name = f"general.sampling.{theirs}"
        if fields.has(name):
            found[ours] = fields.count(name, low=0) if ours == "top_k" else fields.number(name, zero=True)
    return found


def _tokenizer(file: GGUFFile, config: ModelConfig) -> Any:
    if "tokenizer.ggml.model" not in file.metadata:
        return None
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(tokens) != config.vocab:
        got = len(tokens) if isinstance(tokens, list) else _short(tokens)
        raise ValueError(
            f"{file.path}: tokenizer.ggml.tokens must be {config.vocab} pieces, as token_embd.weight has rows; got {got}"
        )
    from fastmixer.text.gguf_tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(file.metadata, str(file.path))


# ---- tensors ----


@dataclass(frozen=True)
class _Place:
    """Where one of our tensors lies: rows of a tensor of the file, all of them if rows is None."""

    name: str
    rows: slice | Callable[[], np.ndarray] | None


class _Tensors(Mapping[str, StoredTensor]):
    """Our tensors by name, made from the mapped file when asked for; all names and shapes are checked at once."""

    def __init__(self, file: GGUFFile, architecture: Architecture, config: ModelConfig):
        self._file, self._architecture, self._config = file, architecture, config
        self._trained_context: int = file.metadata[f"{file.metadata['general.architecture']}.context_length"]
        self._places: dict[str, _Place] = {}
        used = {FREQUENCIES, LONG_FREQUENCIES, SHORT_FREQUENCIES}
        for ours, shape in expected_tensors(config).items():
            place, rows_there = self._place(ours, shape)
            info = file.tensors.get(place.name)
            if info is None:
                raise ValueError(f"{file.path}: tensor {place.name} {list(shape)} is missing")
            if info.shape != (rows_there, *shape[1:]):
                raise ValueError(
                    f"{file.path}: tensor {place.name} must have shape {(rows_there, *shape[1:])}; got {info.shape}"
                )
            if place.rows is not None and len(shape) == 1 and info.type.block > 1:
                raise ValueError(f"{file.path}: tensor {place.name} must be of F32, F16 or BF16; got {info.type.name}")
            self._places[ours] = place
            used.add(place.name)
        unknown = [name for name in file.tensors if name not in used]
        if unknown:
            raise ValueError(
                f"{file.path}: tensor {unknown[0]} is not known in architecture {file.metadata['general.architecture']}"
                f" ({len(unknown)} such tensors)"
            )

    def __getitem__(self, name: str) -> StoredTensor:
        place = self._places[name]
        info, raw = self._file.tensors[place.name], self._file.raw(place.name)
        tensor = StoredTensor(info.type, raw, info.shape)
        if place.rows is None:
            return tensor
        return tensor.take(place.rows if isinstance(place.rows, slice) else place.rows())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _place(self, ours: str, shape: tuple[int, ...]) -> tuple[_Place, int]:
        """(place, rows that the whole tensor there must have) of one of our tensors."""
        stem, kind = ours.rsplit(".", 1)
        if not stem.startswith("layers."):
            if stem == "positions":  # a shorter context needs only the first of them
                return _Place(f"{NAMES[stem]}.{kind}", slice(0, shape[0])), self._trained_context
            return _Place(f"{NAMES[stem]}.{kind}", None), shape[0]
        _, layer, part = stem.split(".", 2)
        prefix, config = f"blk.{layer}", self._config
        if part in ("feedforward.gate", "feedforward.up") and self._architecture.gate_in_up:
            start = 0 if part == "feedforward.gate" else config.hidden
            return _Place(f"{prefix}.ffn_up.{kind}", slice(start, start + shape[0])), 2 * config.hidden
        name, start, whole = f"{prefix}.{LAYER_NAMES[part]}.{kind}", 0, shape[0]
        fused = f"{prefix}.attn_qkv.{kind}"
        if part in ("attention.q", "attention.k", "attention.v") and fused in self._file.tensors:
            q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
            name, whole = fused, q + 2 * kv
            start = {"attention.q": 0, "attention.k": q, "attention.v": q + kv}[part]
        if self._architecture.interleaved and part in ("attention.q", "attention.k"):
            heads = config.heads if part == "attention.q" else config.kv_heads
            rotary = config.rotary_dim or config.head_dim
            return _Place(name, lambda: start + unpaired_rows(heads, config.head_dim, rotary)), whole
        return _Place(name, slice(start, start + shape[0]) if name == fused else None), whole
