"""What a transformer is made of: sizes and choices, checked once. Knows nothing of arrays."""

import math
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

    def __post_init__(self) -> None:
        if self.kv_heads == 0:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.hidden == 0:
            object.__setattr__(self, "hidden", 4 * self.dim)
        for name in ("vocab", "context", "dim", "layers", "heads", "kv_heads", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig: {name} must be an integer >= 1; got {value!r}")
        for name, choices in (("norm", NORMS), ("positions", POSITIONS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ModelConfig: {name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}"
                )
        if self.dim % self.heads:
            raise ValueError(f"ModelConfig: heads must divide dim; got {self.heads} heads for dim {self.dim}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"ModelConfig: kv_heads must divide heads; got {self.kv_heads} kv_heads for {self.heads} heads"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"ModelConfig: rotary positions need an even head_dim; got {self.head_dim}")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"ModelConfig: sinusoidal positions need an even dim; got {self.dim}")
        for name in ("gated", "bias", "tied_head"):
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

    @property
    def head_dim(self) -> int:
        """The width of one head of q, k and v."""
        return self.dim // self.heads

    @property
    def qkv_width(self) -> int:
        """Columns of the one projection that makes q, k and v side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(_product(shape) for _, shape in parameter_shapes(self))

    def training_flops(self, batch: int, time: int) -> float:
        """Floating-point operations of one step's matrix products and causal attention, forward and backward."""
        multiplied = sum(
            _product(shape)
            for name, shape in parameter_shapes(self)
            if len(shape) == 2
            and not (name == "positions.weight" or (name == "embedding.weight" and not self.tied_head))
        )
        attention = 6.0 * self.layers * time * self.dim  # causal: 2 products of T/2 keys a token, 3 times for backward
        return batch * time * (6.0 * multiplied + attention)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """A named configuration, with fields changed by keyword. ValueError names the presets that exist."""
        if name not in PRESETS:
            raise ValueError(f"ModelConfig: preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)

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

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.append((f"{name}.weight", (inputs, outputs)))
        if config.bias:
            shapes.append((f"{name}.bias", (outputs,)))

    for layer in range(config.layers):
        prefix = f"layers.{layer}"
        norm(f"{prefix}.attention_norm")
        linear(f"{prefix}.attention.qkv", dim, config.qkv_width)
        linear(f"{prefix}.attention.output", dim, dim)
        norm(f"{prefix}.feedforward_norm")
        if config.gated:
            linear(f"{prefix}.feedforward.gate", dim, hidden)
        linear(f"{prefix}.feedforward.up", dim, hidden)
        linear(f"{prefix}.feedforward.down", hidden, dim)
    norm("final_norm")
    if not config.tied_head:
        shapes.append(("head.weight", (config.vocab, dim)))
    return shapes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
