"""One layer of an encoder: attention, then feedforward, each added to the stream. Norms come after each sum (post-norm:
BERT and its kin) or before each branch (pre-norm: ModernBERT).

All sequences of a batch stand one after another, each sees itself only. backward is forward read from the bottom up. Knows
nothing of embeddings, pooling or losses.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fastmixer.kernels.memory import Arena
from fastmixer.model.block import (
    ATTENTION_BRANCH,
    ATTENTION_WEIGHTS,
    DROPOUT_PLACES,
    FEEDFORWARD_BRANCH,
    Linear,
    Norm,
    Rotary,
)
from fastmixer.model.encoder_config import EncoderConfig
from fastmixer.model.parameters import Parameters
from fastmixer.ops.attention import attention, attention_backward
from fastmixer.ops.dropout import dropout, fold_seed
from fastmixer.ops.matmul import linear_backward


@dataclass
class EncoderActivations:
    """What one layer's forward leaves for its backward."""

    normed: np.ndarray  # [tokens, dim]: what attention reads, where a norm comes before it
    qkv: np.ndarray  # [tokens, 3 * dim]
    attended: np.ndarray  # [tokens, dim]
    attention_sum: np.ndarray  # [tokens, dim]: the stream plus attention
    middle: np.ndarray  # [tokens, dim]: after the norm that follows, what feedforward reads
    gate: np.ndarray  # [tokens, hidden]: before the bend, if there is a gate
    up: np.ndarray  # [tokens, hidden]: before the bend, if there is none
    hidden: np.ndarray  # [tokens, hidden]: after it
    feedforward_sum: np.ndarray  # [tokens, dim]: the stream plus feedforward, where a norm comes after it
    out: np.ndarray  # [tokens, dim]
    log_sum_exp: Any = None  # [1, heads, tokens], what attention saved
    attention_norm_saved: Any = None
    feedforward_norm_saved: Any = None

    @classmethod
    def new(cls, config: EncoderConfig, tokens: int, dtype: np.dtype, arena: Arena) -> "EncoderActivations":
        dim, hidden, is_post = config.dim, config.hidden, config.placement == "post"
        widths = (
            0 if is_post else dim, 3 * dim, dim, dim, dim, hidden if config.gated else 0, hidden, hidden,
            dim if is_post else 0, dim,
        )  # fmt: skip
        return cls(*(arena.empty((tokens, width), dtype) for width in widths))

    def first(self, tokens: int) -> "EncoderActivations":
        """Views of the first rows."""
        arrays = [field.name for field in fields(self) if isinstance(getattr(self, field.name), np.ndarray)]
        return replace(self, **{name: getattr(self, name)[:tokens] for name in arrays})


@dataclass
class EncoderGradients:
    """Gradients of activations that layers share: d_gate, d_up [tokens, hidden], d_qkv [tokens, 3 * dim], others [tokens,
    dim]; stream: of what goes from layer to layer; d_branch: within a branch; d_dropped: behind dropout."""

    stream: np.ndarray
    d_gate: np.ndarray
    d_up: np.ndarray
    d_branch: np.ndarray
    d_qkv: np.ndarray
    d_dropped: np.ndarray

    @classmethod
    def new(cls, config: EncoderConfig, tokens: int, dtype: np.dtype, arena: Arena) -> "EncoderGradients":
        dim, hidden = config.dim, config.hidden
        widths = (dim, hidden if config.gated else 0, hidden, dim, 3 * dim, dim)
        return cls(*(arena.empty((tokens, width), dtype) for width in widths))

    def first(self, tokens: int) -> "EncoderGradients":
        """Views of the first rows."""
        return EncoderGradients(*(getattr(self, field.name)[:tokens] for field in fields(self)))


@dataclass(frozen=True)
class Packing:
    """How a step's sequences lie and what dropout draws. starts: int64 [sequences + 1]; positions: int64 [tokens] in
    each sequence; bias: float [heads, distances] of relative positions, or None; d_bias: to which its gradient is added."""

    starts: np.ndarray
    positions: np.ndarray
    rate: float
    seed: int
    bias: np.ndarray | None = None
    d_bias: np.ndarray | None = None


class EncoderLayer(ABC):
    """What both placements of norms share: parameters, and the two branches over packed sequences."""

    def __init__(self, config: EncoderConfig, parameters: Parameters, index: int, rotary: Rotary, around: int | None):
        prefix = f"layers.{index}"
        self.config, self.index, self.rotary, self.around = config, index, rotary, around
        self.qkv = Linear.of(parameters, f"{prefix}.attention.qkv")
        self.attention_output = Linear.of(parameters, f"{prefix}.attention.output")
        self.gate = Linear.of(parameters, f"{prefix}.feedforward.gate") if config.gated else None
        self.up = Linear.of(parameters, f"{prefix}.feedforward.up")
        self.down = Linear.of(parameters, f"{prefix}.feedforward.down")
        self.feedforward_norm = norm_of(config, parameters, f"{prefix}.feedforward_norm")
        self._precision = "float32" if self.qkv.rounded is None else "bfloat16"  # of attention's products

    @abstractmethod
    def forward(self, x: np.ndarray, saved: EncoderActivations, packing: Packing) -> np.ndarray:
        """x: [tokens, dim] -> saved.out: [tokens, dim]; x may be saved.out where no backward follows."""

    @abstractmethod
    def backward(
        self, d: np.ndarray, x: np.ndarray, saved: EncoderActivations, space: EncoderGradients, packing: Packing
    ) -> np.ndarray:
        """d: [tokens, dim] of this layer's out -> that of x in the same memory; parameters' gradients are added."""

    # ---- attention ----

    def _attention(self, x: np.ndarray, residual: np.ndarray, saved: EncoderActivations, packing: Packing) -> None:
        """saved.attention_sum = residual + attention over x: [tokens, dim]."""
        self.qkv.forward(x, out=saved.qkv)
        q, k, v = self._split(saved.qkv)
        positions = packing.positions[None]
        self.rotary.turn(q, positions)
        self.rotary.turn(k, positions)
        _, saved.log_sum_exp = attention(
            q, k, v, out=self._join(saved.attended), return_saved=True, **self._how(packing)
        )
        self.attention_output.forward(
            saved.attended, residual=residual, dropout=packing.rate, seed=self._seed(packing, ATTENTION_BRANCH),
            out=saved.attention_sum,
        )  # fmt: skip

    def _attention_backward(
        self, d: np.ndarray, x: np.ndarray, saved: EncoderActivations, space: EncoderGradients, packing: Packing,
        d_x: np.ndarray, *, accumulate: bool,
    ) -> None:  # fmt: skip
        """d: [tokens, dim] of saved.attention_sum -> d_x (+)= that of x, through the branch."""
        d_branch = self._through_dropout(d, space, packing, ATTENTION_BRANCH)
        _backward(self.attention_output, d_branch, saved.attended, space.d_branch)
        q, k, v = self._split(saved.qkv)
        d_q, d_k, d_v = self._split(space.d_qkv)
        attention_backward(
            self._join(space.d_branch), q, k, v, self._join(saved.attended), saved.log_sum_exp,
            d_q=d_q, d_k=d_k, d_v=d_v, d_bias=packing.d_bias, **self._how(packing),
        )  # fmt: skip
        positions = packing.positions[None]
        self.rotary.turn(d_k, positions, inverse=True)
        self.rotary.turn(d_q, positions, inverse=True)
        _backward(self.qkv, space.d_qkv, x, d_x, accumulate=accumulate)

    def _how(self, packing: Packing) -> dict[str, Any]:
        """What attention and its backward are told alike."""
        return {
            "query_starts": packing.starts, "around": self.around, "bias": packing.bias, "dropout": packing.rate,
            "seed": self._seed(packing, ATTENTION_WEIGHTS), "precision": self._precision,
        }  # fmt: skip

    def _split(self, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views q, k, v: [1, heads, tokens, head_dim] of qkv: [tokens, 3 * dim]."""
        rows = qkv.reshape(1, len(qkv), 3, self.config.heads, self.config.head_dim).transpose(2, 0, 3, 1, 4)
        return rows[0], rows[1], rows[2]

    def _join(self, attended: np.ndarray) -> np.ndarray:
        """The view [1, heads, tokens, head_dim] of attended: [tokens, dim]."""
        return attended.reshape(1, len(attended), self.config.heads, self.config.head_dim).transpose(0, 2, 1, 3)

    # ---- feedforward ----

    def _feedforward(self, residual: np.ndarray, saved: EncoderActivations, packing: Packing, out: np.ndarray) -> None:
        """out = residual + feedforward of saved.middle."""
        activation = self.config.activation
        if self.gate is None:
            self.up.forward(saved.middle, activation=activation, pre_activation=saved.up, out=saved.hidden)
        else:
            self.up.forward(saved.middle, out=saved.up)
            self.gate.forward(
                saved.middle, activation=activation, multiplier=saved.up, pre_activation=saved.gate, out=saved.hidden
            )
        self.down.forward(
            saved.hidden, residual=residual, dropout=packing.rate, seed=self._seed(packing, FEEDFORWARD_BRANCH), out=out
        )

    def _feedforward_backward(
        self, d: np.ndarray, saved: EncoderActivations, space: EncoderGradients, packing: Packing, d_middle: np.ndarray,
        *, accumulate: bool,
    ) -> None:  # fmt: skip
        """d: [tokens, dim] of the sum -> d_middle (+)= that of saved.middle, through the branch."""
        d_branch = self._through_dropout(d, space, packing, FEEDFORWARD_BRANCH)
        activation = self.config.activation
        if self.gate is None:
            _backward(self.down, d_branch, saved.hidden, space.d_up, pre_activation=saved.up, activation=activation)
        else:
            _backward(
                self.down, d_branch, saved.hidden, space.d_gate, pre_activation=saved.gate, activation=activation,
                multiplier=saved.up, d_multiplier=space.d_up,
            )  # fmt: skip
            _backward(self.gate, space.d_gate, saved.middle, d_middle, accumulate=accumulate)
        _backward(self.up, space.d_up, saved.middle, d_middle, accumulate=accumulate or self.gate is not None)

    # ---- dropout ----

    def _through_dropout(self, d: np.ndarray, space: EncoderGradients, packing: Packing, place: int) -> np.ndarray:
        if packing.rate == 0:
            return d
        return dropout(d, packing.rate, self._seed(packing, place), out=space.d_dropped)

    def _seed(self, packing: Packing, place: int) -> int:
        return fold_seed(packing.seed, 1 + self.index * DROPOUT_PLACES + place)


class PostNormLayer(EncoderLayer):
    """The stream is normed after each sum (Devlin et al. 2018, arXiv 1810.04805)."""

    def __init__(self, config: EncoderConfig, parameters: Parameters, index: int, rotary: Rotary, around: int | None):
        super().__init__(config, parameters, index, rotary, around)
        self.attention_norm = norm_of(config, parameters, f"layers.{index}.attention_norm")

    def forward(self, x: np.ndarray, saved: EncoderActivations, packing: Packing) -> np.ndarray:
        self._attention(x, x, saved, packing)
        _, saved.attention_norm_saved = self.attention_norm.forward(saved.attention_sum, saved.middle)
        self._feedforward(saved.middle, saved, packing, saved.feedforward_sum)
        _, saved.feedforward_norm_saved = self.feedforward_norm.forward(saved.feedforward_sum, saved.out)
        return saved.out

    def backward(
        self, d: np.ndarray, x: np.ndarray, saved: EncoderActivations, space: EncoderGradients, packing: Packing
    ) -> np.ndarray:
        self.feedforward_norm.backward(d, saved.feedforward_sum, saved.feedforward_norm_saved, None, d)
        self._feedforward_backward(d, saved, space, packing, d, accumulate=True)  # the residual's gradient is there
        self.attention_norm.backward(d, saved.attention_sum, saved.attention_norm_saved, None, d)
        self._attention_backward(d, x, saved, space, packing, d, accumulate=True)
        return d


class PreNormLayer(EncoderLayer):
    """Each branch norms what it reads (Warner et al. 2024, arXiv 2412.13663); the first layer's attention does not, as the
    embeddings' norm stands before it."""

    def __init__(self, config: EncoderConfig, parameters: Parameters, index: int, rotary: Rotary, around: int | None):
        super().__init__(config, parameters, index, rotary, around)
        self.attention_norm = norm_of(config, parameters, f"layers.{index}.attention_norm") if index else None

    def forward(self, x: np.ndarray, saved: EncoderActivations, packing: Packing) -> np.ndarray:
        if self.attention_norm is not None:
            _, saved.attention_norm_saved = self.attention_norm.forward(x, saved.normed)
        self._attention(x if self.attention_norm is None else saved.normed, x, saved, packing)
        _, saved.feedforward_norm_saved = self.feedforward_norm.forward(saved.attention_sum, saved.middle)
        self._feedforward(saved.attention_sum, saved, packing, saved.out)
        return saved.out

    def backward(
        self, d: np.ndarray, x: np.ndarray, saved: EncoderActivations, space: EncoderGradients, packing: Packing
    ) -> np.ndarray:
        d_branch = space.d_branch
        self._feedforward_backward(d, saved, space, packing, d_branch, accumulate=False)
        self.feedforward_norm.backward(d_branch, saved.attention_sum, saved.feedforward_norm_saved, d, d)
        if self.attention_norm is None:
            self._attention_backward(d, x, saved, space, packing, d, accumulate=True)
            return d
        self._attention_backward(d, saved.normed, saved, space, packing, d_branch, accumulate=False)
        return self.attention_norm.backward(d_branch, x, saved.attention_norm_saved, d, d)


# by EncoderConfig.placement
LAYERS: dict[str, type[PostNormLayer] | type[PreNormLayer]] = {"post": PostNormLayer, "pre": PreNormLayer}


def _backward(linear: Linear, d_out: np.ndarray, x: np.ndarray, d_x: np.ndarray, **how: Any) -> np.ndarray:
    return linear_backward(
        d_out, x, linear.weight, linear.d_weight, linear.d_bias, d_x=d_x, rounded=linear.rounded, **how
    )


def norm_of(config: EncoderConfig, parameters: Parameters, name: str) -> Norm:
    """The layernorm of this name."""
    return Norm(
        "layernorm", config.norm_epsilon, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"),
        parameters.gradient(f"{name}.weight"), parameters.get_gradient(f"{name}.bias"),
    )  # fmt: skip
