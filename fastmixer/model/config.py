"""What a transformer is made of: sizes and choices, checked once. Knows nothing of arrays."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastmixer.kernels.activations import ACTIVATIONS

NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "sinusoidal", "rotary", "none")


@dataclass(frozen=True)
class ModelConfig:
    """One config-driven transformer: pre-norm residual layers over an embedding, then a norm and a head.

    vocab: rows of the embedding; context: the longest sequence; dim: the residual stream's width; layers, heads;
    kv_heads: heads of k and v (0: as many as heads), which must divide heads; hidden: the feedforward's width (0: 4 dim).
    norm, norm_epsilon; positions (rotary_base for "rotary"); activation; gated: act(gate) * up instead of act(up);
    bias: biases in linear maps and LayerNorms; tied_head: the head is the embedding; dropout: of the embedding, each
    branch and the attention weights, in training; window: a token sees only so many tokens back (None: all).

    What other makers' models have besides, known to inference (training refuses them, see untrained_fields):
    head_dim: width of a head (0: dim / heads); qkv_bias: biases of q, k, v (None: as bias); qk_norm: RMS norm over
    head_dim of q and k, before rotation; post_norms: norms also after attention and feedforward, before the residual;
    embedding_scale: the embedding's rows are multiplied by it; attention_scale: scores are (None: 1 / sqrt(head_dim));
    attention_softcap, logit_softcap: x becomes c tanh(x / c) (0: none); local_layers: for each layer, whether window
    applies to it (None: to all); local_rotary_base: rotary_base of the local layers, whose frequencies have no factors
    (None: as the others); rotary_dim: only the first so many numbers of a head are rotated (0: all); rotary_factors
    [rotary_dim / 2]: each frequency is divided by its factor; rotary_magnitude: cos and sin are multiplied by it.
    """

    vocab: int
    context: int
    dim: int
    layers: int
    heads: int
    kv_heads: int = 0
    hidden: int = 0
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    positions: str = "learned"
    rotary_base: float = 10000.0
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    window: int | None = None
    head_dim: int = 0
    qkv_bias: bool | None = None
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    local_layers: tuple[bool, ...] | None = None
    local_rotary_base: float | None = None
    rotary_dim: int = 0
    rotary_factors: tuple[float, ...] | None = None
    rotary_magnitude: float = 1.0

    def __post_init__(self) -> None:
        self._check_sizes("vocab", "context", "dim", "layers", "heads")
        if self.kv_heads == 0:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.hidden == 0:
            object.__setattr__(self, "hidden", 4 * self.dim)
        self._check_sizes("kv_heads", "hidden")
        for name, choices in (("norm", NORMS), ("positions", POSITIONS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ModelConfig: {name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}"
                )
        if type(self.head_dim) is not int or self.head_dim < 0:
            raise ValueError(
                f"ModelConfig: head_dim must be an integer >= 1, or 0 for dim / heads; got {self.head_dim!r}"
            )
        if self.head_dim == 0:
            if self.dim % self.heads:
                raise ValueError(f"ModelConfig: heads must divide dim; got {self.heads} heads for dim {self.dim}")
            object.__setattr__(self, "head_dim", self.dim // self.heads)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"ModelConfig: kv_heads must divide heads; got {self.kv_heads} kv_heads for {self.heads} heads"
            )
        if self.positions == "rotary" and not self.rotary_dim and self.head_dim % 2:
            raise ValueError(f"ModelConfig: rotary positions need an even head_dim; got {self.head_dim}")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"ModelConfig: sinusoidal positions need an even dim; got {self.dim}")
        for name in ("gated", "bias", "tied_head", "qk_norm", "post_norms"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"ModelConfig: {name} must be true or false; got {getattr(self, name)!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"ModelConfig: dropout must be >= 0 and < 1; got {self.dropout!r}")
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise ValueError(f"ModelConfig: window must be an integer >= 1 or None; got {self.window!r}")
        if not _is_number(self.norm_epsilon) or self.norm_epsilon < 0:
            raise ValueError(f"ModelConfig: norm_epsilon must be a finite number >= 0; got {self.norm_epsilon!r}")
        if not _is_number(self.rotary_base) or self.rotary_base <= 0:
            raise ValueError(f"ModelConfig: rotary_base must be a finite number > 0; got {self.rotary_base!r}")
        self._check_attention()
        self._check_rotation()

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig: {name} must be an integer >= 1; got {value!r}")

    def _check_attention(self) -> None:
        if self.qkv_bias is not None and not isinstance(self.qkv_bias, bool):
            raise ValueError(f"ModelConfig: qkv_bias must be true, false or None; got {self.qkv_bias!r}")
        if not _is_number(self.embedding_scale) or self.embedding_scale <= 0:
            raise ValueError(f"ModelConfig: embedding_scale must be a finite number > 0; got {self.embedding_scale!r}")
        if self.attention_scale is not None and (not _is_number(self.attention_scale) or self.attention_scale <= 0):
            raise ValueError(
                f"ModelConfig: attention_scale must be a finite number > 0 or None; got {self.attention_scale!r}"
            )
        for name in ("attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"ModelConfig: {name} must be a finite number >= 0; got {value!r}")
        self._make_tuple("local_layers", self.layers, lambda flag: isinstance(flag, bool), "bools, one a layer,")
        if self.local_layers is not None and self.window is None:
            raise ValueError("ModelConfig: local_layers needs window; got None")

    def _check_rotation(self) -> None:
        if type(self.rotary_dim) is not int or not 0 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"ModelConfig: rotary_dim must be an even integer from 0 to head_dim, {self.head_dim}; "
                f"got {self.rotary_dim!r}"
            )
        self._make_tuple(
            "rotary_factors",
            (self.rotary_dim or self.head_dim) // 2,
            lambda factor: _is_number(factor) and factor > 0,
            "finite numbers > 0",
        )
        if not _is_number(self.rotary_magnitude) or self.rotary_magnitude <= 0:
            raise ValueError(
                f"ModelConfig: rotary_magnitude must be a finite number > 0; got {self.rotary_magnitude!r}"
            )
        base = self.local_rotary_base
        if base is not None and (not _is_number(base) or base <= 0):
            raise ValueError(f"ModelConfig: local_rotary_base must be a finite number > 0 or None; got {base!r}")
        if self.positions != "rotary":
            for name in ("rotary_dim", "rotary_factors", "rotary_magnitude", "local_rotary_base"):
                if getattr(self, name) not in (0, None, 1.0):
                    raise ValueError(f"ModelConfig: {name} needs rotary positions; got {self.positions!r}")

    def _make_tuple(self, name: str, length: int, allowed: Callable[[Any], bool], expected: str) -> None:
        """A field that is None or a sequence, as JSON gives it, becomes a tuple once it is checked."""
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, (tuple, list)) or len(value) != length or not all(allowed(item) for item in value):
            text = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
            raise ValueError(f"ModelConfig: {name} must be {length} {expected} or None; got {text}")
        object.__setattr__(self, name, tuple(value))

    @property
    def qkv_width(self) -> int:
        """Columns of the one projection that makes q, k and v side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projection to q, k and v has a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def untrained_fields(self) -> list[str]:
        """Fields whose values training does not know; empty for a configuration that Transformer takes."""
        trained = {
            "head_dim": self.head_dim * self.heads == self.dim, "qkv_bias": self.has_qkv_bias == self.bias,
            "qk_norm": not self.qk_norm, "post_norms": not self.post_norms, "embedding_scale": self.embedding_scale == 1,
            "attention_scale": self.attention_scale is None, "attention_softcap": self.attention_softcap == 0,
            "logit_softcap": self.logit_softcap == 0, "local_layers": self.local_layers is None,
            "local_rotary_base": self.local_rotary_base is None, "rotary_dim": self.rotary_dim in (0, self.head_dim),
            "rotary_factors": self.rotary_factors is None, "rotary_magnitude": self.rotary_magnitude == 1,
        }  # fmt: skip
        return [name for name, known in trained.items() if not known]

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(math.prod(shape) for _, shape in parameter_shapes(self))

    def training_flops(self, batch: int, time: int) -> float:
        """Floating-point operations of one step's matrix products and causal attention, forward and backward."""
        multiplied = sum(
            math.prod(shape)
            for name, shape in parameter_shapes(self)
            if len(shape) == 2
            and not (name == "positions.weight" or (name == "embedding.weight" and not self.tied_head))
        )
        attention = (
            6.0 * self.layers * time * self.heads * self.head_dim
        )  # causal: 2 products of T/2 keys a token, 3 times for backward
        return batch * time * (6.0 * multiplied + attention)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """A named configuration, with fields changed by keyword. ValueError names the presets that exist."""
        if name not in PRESETS:
            raise ValueError(f"ModelConfig: preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able; those of other makers' models (head_dim and after) only where they say anything."""
        values = asdict(self)
        if self.head_dim * self.heads == self.dim:
            values["head_dim"] = 0
        silent = [f.name for f in fields(self)[_OWN_FIELDS:] if values[f.name] == f.default]
        return {name: value for name, value in values.items() if name not in silent}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The configuration with these fields. ValueError for a field that is unknown or missing."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"ModelConfig: unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")
        missing = [name for name in ("vocab", "context", "dim", "layers", "heads") if name not in values]
        if missing:
            raise ValueError(f"ModelConfig: field {missing[0]!r} is missing")
        return cls(**values)


_OWN_FIELDS = [f.name for f in fields(ModelConfig)].index("head_dim")  # so many come before it
_GPT2 = {"vocab": 50257, "context": 1024, "activation": "gelu_tanh"}
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT2, "dim": 768, "layers": 12, "heads": 12},
    "gpt2-medium": {**_GPT2, "dim": 1024, "layers": 24, "heads": 16},
    "tiny": {"vocab": 1024, "context": 128, "dim": 128, "layers": 4, "heads": 4},
    "small": {"vocab": 4096, "context": 256, "dim": 384, "layers": 6, "heads": 6},
    "llama-tiny": {
        "vocab": 1024, "context": 128, "dim": 128, "layers": 4, "heads": 4, "kv_heads": 2, "hidden": 344,
        "norm": "rmsnorm", "norm_epsilon": 1e-6, "positions": "rotary", "activation": "silu", "gated": True,
        "bias": False, "tied_head": False,
    },
}  # fmt: skip


def parameter_shapes(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter, in the order of the data's flow. Linear weights are [in, out]."""
    dim, hidden = config.dim, config.hidden
    shapes: list[tuple[str, tuple[int, ...]]] = [("embedding.weight", (config.vocab, dim))]
    if config.positions == "learned":
        shapes.append(("positions.weight", (config.context, dim)))

    def norm(name: str) -> None:
        shapes.append((f"{name}.weight", (dim,)))
        if config.norm == "layernorm" and config.bias:
            shapes.append((f"{name}.bias", (dim,)))

    def linear(name: str, inputs: int, outputs: int, bias: bool = config.bias) -> None:
        shapes.append((f"{name}.weight", (inputs, outputs)))
        if bias:
            shapes.append((f"{name}.bias", (outputs,)))

    for layer in range(config.layers):
        prefix = f"layers.{layer}"
        norm(f"{prefix}.attention_norm")
        linear(f"{prefix}.attention.qkv", dim, config.qkv_width, config.has_qkv_bias)
        if config.qk_norm:
            shapes += [(f"{prefix}.attention.{part}_norm.weight", (config.head_dim,)) for part in "qk"]
        linear(f"{prefix}.attention.output", config.heads * config.head_dim, dim)
        if config.post_norms:
            norm(f"{prefix}.attention_post_norm")
        norm(f"{prefix}.feedforward_norm")
        if config.gated:
            linear(f"{prefix}.feedforward.gate", dim, hidden)
        linear(f"{prefix}.feedforward.up", dim, hidden)
        linear(f"{prefix}.feedforward.down", hidden, dim)
        if config.post_norms:
            norm(f"{prefix}.feedforward_post_norm")
    norm("final_norm")
    if not config.tied_head:
        shapes.append(("head.weight", (config.vocab, dim)))
    return shapes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
