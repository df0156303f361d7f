"""What an encoder is: sizes and choices, each checked against the others. Knows no arrays, and no file's names for them.

Matrices are [out, in]; encoder_shapes lists every tensor that inference needs.
"""

from dataclasses import dataclass

PLACEMENTS = ("post", "pre")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
HEAD_ACTIVATIONS = (*ACTIVATIONS, "tanh", "none")
HEAD_POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class HeadConfig:
    """A classification head: pooled hidden state -> dense -> activation -> norm -> output [classes].

    bias: of dense; has_norm: a layernorm after the activation (its bias: EncoderConfig.norm_bias)."""

    classes: int
    activation: str
    pooling: str = "cls"
    bias: bool = True
    has_norm: bool = False

    def __post_init__(self) -> None:
        _check_choice("HeadConfig", "activation", self.activation, HEAD_ACTIVATIONS)
        _check_choice("HeadConfig", "pooling", self.pooling, HEAD_POOLINGS)
        if self.classes < 1:
            raise ValueError(f"HeadConfig: classes must be >= 1; got {self.classes}")


@dataclass(frozen=True)
class EncoderConfig:
    """vocab, context (the longest sequence), dim, layers, heads (each dim / heads wide), hidden.

    placement: norms after a block's residual ("post") or before the block ("pre", with a final norm; the first layer's
    attention then has none). activation: of the feedforward; gated: act(gate) * up instead of act(up). attention_bias: of
    q, k, v and output; feedforward_bias: of gate, up and down; norm_bias, norm_epsilon: of norms (all are layernorms).
    learned_positions: a table [context, dim]; token_types: rows of theirs (0: none); relative_buckets: of relative
    positions, half for keys before the query and half behind (0: none). local_layers: for each layer, whether it sees
    tokens at most window away (none: all see all). rotary_base: q and k are rotated (None: not), local_rotary_base: those
    of local layers (None: not). head: of a cross-encoder or classifier.
    """

    vocab: int
    context: int
    dim: int
    layers: int
    heads: int
    hidden: int
    placement: str = "post"
    activation: str = "gelu"
    gated: bool = False
    attention_bias: bool = True
    feedforward_bias: bool = True
    norm_bias: bool = True
    norm_epsilon: float = 1e-12
    learned_positions: bool = True
    token_types: int = 0
    relative_buckets: int = 0
    rotary_base: float | None = None
    local_rotary_base: float | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    head: HeadConfig | None = None

    def __post_init__(self) -> None:
        for name in ("vocab", "context", "dim", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"EncoderConfig: {name} must be >= 1; got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"EncoderConfig: dim must be a multiple of heads {self.heads}; got {self.dim}")
        _check_choice("EncoderConfig", "placement", self.placement, PLACEMENTS)
        _check_choice("EncoderConfig", "activation", self.activation, ACTIVATIONS)
        if self.rotary_base is not None and self.head_dim % 2:
            raise ValueError(f"EncoderConfig: dim / heads must be even for rotation; got {self.head_dim}")
        if self.relative_buckets % 4:
            raise ValueError(f"EncoderConfig: relative_buckets must be a multiple of 4; got {self.relative_buckets}")
        if (self.window is None) != (not any(self.local_layers)):
            raise ValueError(
                f"EncoderConfig: window must be given where local_layers are, and only there; got {self.window}"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"EncoderConfig: window must be >= 1; got {self.window}")
        if self.local_layers and len(self.local_layers) != self.layers:
            raise ValueError(
                f"EncoderConfig: local_layers must be empty or {self.layers} flags; got {len(self.local_layers)}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def encoder_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name, in the order of the data's flow."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (c.vocab, c.dim)}
    if c.learned_positions:
        shapes["positions.weight"] = (c.context, c.dim)
    if c.token_types:
        shapes["token_types.weight"] = (c.token_types, c.dim)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (c.dim,)
        if c.norm_bias:
            shapes[f"{name}.bias"] = (c.dim,)

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    norm("embedding_norm")
    if c.relative_buckets:
        shapes["relative.weight"] = (c.relative_buckets, c.heads)
    for layer in range(c.layers):
        prefix = f"layers.{layer}"
        if layer or c.placement == "post":
            norm(f"{prefix}.attention_norm")
        for part in ("q", "k", "v", "output"):
            linear(f"{prefix}.attention.{part}", c.dim, c.dim, c.attention_bias)
        norm(f"{prefix}.feedforward_norm")
        if c.gated:
            linear(f"{prefix}.feedforward.gate", c.hidden, c.dim, c.feedforward_bias)
        linear(f"{prefix}.feedforward.up", c.hidden, c.dim, c.feedforward_bias)
        linear(f"{prefix}.feedforward.down", c.dim, c.hidden, c.feedforward_bias)
    if c.placement == "pre":
        norm("final_norm")
    if c.head is not None:
        linear("head.dense", c.dim, c.dim, c.head.bias)
        if c.head.has_norm:
            norm("head.norm")
        linear("head.output", c.head.classes, c.dim, True)
    return shapes


def _check_choice(owner: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(choices)}; got {value!r}")
