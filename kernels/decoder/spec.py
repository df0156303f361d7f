"""What a decoder is made of: packed weights, norms and choices, layer by layer. Checked by whoever builds it.

Knows nothing of files, configurations or tensors' names.
"""

from dataclasses import dataclass

import numpy as np

from fastmixer.kernels.packed import PackedWeight

FEW_TOKENS = 16  # a sequence's tokens in a step: of so few each comes out, natively, bit for bit as it would one by one


@dataclass(frozen=True)
class Linear:
    """x [tokens, inputs] -> x weight^T + bias [tokens, outputs]. bias: float32 [outputs] or None."""

    weight: PackedWeight
    bias: np.ndarray | None


@dataclass(frozen=True)
class Norm:
    """kind: "layernorm" or "rmsnorm"; weight, bias (or None): float32 [width]."""

    kind: str
    weight: np.ndarray
    bias: np.ndarray | None
    epsilon: float


@dataclass(frozen=True)
class LayerSpec:
    """One layer: x += post(output(attention(q, k, v of norm(x)))), then x += post(down(act(gate or up) * up of norm(x))).

    q: [heads * head_dim, dim]; k, v: [kv_heads * head_dim, dim]; output: [dim, heads * head_dim]; gate (None: plain),
    up: [hidden, dim]; down: [dim, hidden]. q_norm, k_norm: over head_dim, before the rotation.
    window: a token sees the last `window` positions, its own among them (0: all). cos, sin: float32
    [context, rotary_dim / 2], None: no rotation; number i of a head turns with i + rotary_dim / 2.
    group: which of the pages' groups holds its keys and values; index: its place there.
    """

    attention_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    output: Linear
    attention_post_norm: Norm | None
    feedforward_norm: Norm
    gate: Linear | None
    up: Linear
    down: Linear
    feedforward_post_norm: Norm | None
    window: int
    cos: np.ndarray | None
    sin: np.ndarray | None
    group: int
    index: int


@dataclass(frozen=True)
class DecoderSpec:
    """The whole model. activation: a name of kernels/activations.py; attention_scale multiplies q k^T; softcaps: c in
    c tanh(x / c), 0: none; embedding: [vocab, dim], its rows times embedding_scale; positions: float32 [context, dim]
    added to them, or None; head: [vocab, dim], its weight may be the embedding itself."""

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    activation: str
    attention_scale: float
    attention_softcap: float
    logit_softcap: float
    embedding_scale: float
    embedding: PackedWeight
    positions: np.ndarray | None
    layers: tuple[LayerSpec, ...]
    final_norm: Norm
    head: Linear
