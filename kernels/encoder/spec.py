"""What an encoder is made of: packed weights, norms and choices, layer by layer. Checked by whoever builds it.

Knows nothing of files, configurations or tensors' names, nor of what is made of its hidden states (pooling, heads).
"""

from dataclasses import dataclass

import numpy as np

from fastmixer.kernels.decoder.spec import Linear, Norm
from fastmixer.kernels.packed import PackedWeight

PLACEMENTS = ("post", "pre")


@dataclass(frozen=True)
class EncoderLayerSpec:
    """One layer: attention (q, k, v, output), then feedforward (gate, up, down), with a norm each.

    EncoderSpec.placement "post": x = attention_norm(x + output(attention(x))), x = feedforward_norm(x + down(...(x))).
    "pre": x += output(attention(attention_norm(x))), x += down(...(feedforward_norm(x))); attention_norm None: x as it
    stands (ModernBERT's first layer). q, k, v: [heads * head_dim, dim]; output: [dim, heads * head_dim]; gate (None: plain,
    down(act(up(x))), else down(act(gate(x)) * up(x))), up: [hidden, dim]; down: [dim, hidden].
    window: a token sees those at most so many positions before or after its own (0: its whole sequence). cos, sin: float32
    [context, rotary_dim / 2], None: no rotation; number i of a head of q and k turns with i + rotary_dim / 2.
    """

    attention_norm: Norm | None
    q: Linear
    k: Linear
    v: Linear
    output: Linear
    feedforward_norm: Norm
    gate: Linear | None
    up: Linear
    down: Linear
    window: int
    cos: np.ndarray | None
    sin: np.ndarray | None


@dataclass(frozen=True)
class EncoderSpec:
    """The whole model. placement: where norms stand ("post" or "pre", see EncoderLayerSpec); activation: a name of
    kernels/activations.py; attention_scale multiplies q k^T.

    embedding: [vocab, dim]; positions: float32 [context, dim] and token_types: float32 [types, dim] are added to its rows
    (None: there are none), then comes embedding_norm (None: no norm). relative: float32 [heads, 2 * distance + 1], added to
    the scaled score of a query at position i and a key at j, of each head the number at clip(j - i, -distance, distance)
    + distance (None: nothing is added); the same in all layers. final_norm: after the last layer (None: no norm).
    """

    dim: int
    heads: int
    head_dim: int
    hidden: int
    vocab: int
    placement: str
    activation: str
    attention_scale: float
    embedding: PackedWeight
    positions: np.ndarray | None
    token_types: np.ndarray | None
    embedding_norm: Norm | None
    relative: np.ndarray | None
    layers: tuple[EncoderLayerSpec, ...]
    final_norm: Norm | None
