"""One post-norm layer of an encoder: attention, then feedforward, each added to the stream, which is normed after it.

All sequences of a batch stand one after another (starts), each sees itself only. backward is forward read from the bottom
up. Knows nothing of embeddings, pooling or losses.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fastmixer.model.block import ATTENTION_BRANCH, ATTENTION_WEIGHTS, DROPOUT_PLACES, FEEDFORWARD_BRANCH, Linear, Norm
from fastmixer.model.encoder_config import EncoderConfig
from fastmixer.model.parameters import Parameters
from fastmixer.ops.attention import attention, attention_backward
from fastmixer.ops.dropout import dropout, fold_seed
from fastmixer.ops.matmul import linear_backward


@dataclass
class EncoderActivations:
    """What one layer's forward leaves for its backward."""

    qkv: np.ndarray  # [tokens, 3 * dim]
    attended: np.ndarray  # [tokens, dim]
    attention_sum: np.ndarray  # [tokens, dim]: the stream plus attention, before its norm
    middle: np.ndarray  # [tokens, dim]: after that norm
    up: np.ndarray  # [tokens, hidden]: before the bend
    hidden: np.ndarray  # [tokens, hidden]: after it
    feedforward_sum: np.ndarray  # [tokens, dim]: the stream plus feedforward, before its norm
    out: np.ndarray  # [tokens, dim]: after that norm
    log_sum_exp: Any = None  # [1, heads, tokens], what attention saved
    attention_norm_saved: Any = None
    feedforward_norm_saved: Any = None

    @classmethod
    def new(cls, config: EncoderConfig, tokens: int, dtype: np.dtype) -> "EncoderActivations":
        dim, hidden = config.dim, config.hidden
        widths = (3 * dim, dim, dim, dim, hidden, hidden, dim, dim)
        return cls(*(np.empty((tokens, width), dtype) for width in widths))

    def first(self, tokens: int) -> "EncoderActivations":
        """Views of the first rows."""
        arrays = [field.name for field in fields(self) if isinstance(getattr(self, field.name), np.ndarray)]
        return replace(self, **{name: getattr(self, name)[:tokens] for name in arrays})


class EncoderLayer:
    """One post-norm layer: its parameters, forward and backward over packed sequences."""

    def __init__(self, config: EncoderConfig, parameters: Parameters, index: int):
        prefix = f"layers.{index}"
        self.config, self.index = config, index
        self.qkv = Linear.of(parameters, f"{prefix}.attention.qkv")
        self.attention_output = Linear.of(parameters, f"{prefix}.attention.output")
        self.attention_norm = norm_of(config, parameters, f"{prefix}.attention_norm")
        self.up = Linear.of(parameters, f"{prefix}.feedforward.up")
        self.down = Linear.of(parameters, f"{prefix}.feedforward.down")
        self.feedforward_norm = norm_of(config, parameters, f"{prefix}.feedforward_norm")
        self._precision = "float32" if self.qkv.rounded is None else "bfloat16"  # of attention's products

    def forward(
        self, x: np.ndarray, saved: EncoderActivations, starts: np.ndarray, rate: float, seed: int
    ) -> np.ndarray:
        """x: [tokens, dim] -> saved.out: [tokens, dim]; x may be saved.out where no backward follows. rate: of dropout."""
        self.qkv.forward(x, out=saved.qkv)
        q, k, v = self._split(saved.qkv)
        _, saved.log_sum_exp = attention(
            q, k, v, query_starts=starts, dropout=rate, seed=self._seed(seed, ATTENTION_WEIGHTS),
            precision=self._precision, out=self._join(saved.attended), return_saved=True,
        )  # fmt: skip
        self.attention_output.forward(
            saved.attended, residual=x, dropout=rate, seed=self._seed(seed, ATTENTION_BRANCH), out=saved.attention_sum
        )
        _, saved.attention_norm_saved = self.attention_norm.forward(saved.attention_sum, saved.middle)

        self.up.forward(saved.middle, activation=self.config.activation, pre_activation=saved.up, out=saved.hidden)
        self.down.forward(
            saved.hidden, residual=saved.middle, dropout=rate, seed=self._seed(seed, FEEDFORWARD_BRANCH),
            out=saved.feedforward_sum,
        )  # fmt: skip
        _, saved.feedforward_norm_saved = self.feedforward_norm.forward(saved.feedforward_sum, saved.out)
        return saved.out

    def backward(
        self, d: np.ndarray, x: np.ndarray, saved: EncoderActivations, space: "EncoderGradients", starts: np.ndarray,
        rate: float, seed: int,
    ) -> np.ndarray:  # fmt: skip
        """d: [tokens, dim] of this layer's out -> that of x in the same memory; parameters' gradients are added."""
        self.feedforward_norm.backward(d, saved.feedforward_sum, saved.feedforward_norm_saved, None, d)
        d_branch = self._through_dropout(d, space, rate, self._seed(seed, FEEDFORWARD_BRANCH))
        _backward(
            self.down, d_branch, saved.hidden, space.d_hidden, pre_activation=saved.up,
            activation=self.config.activation,
        )  # fmt: skip
        _backward(self.up, space.d_hidden, saved.middle, d, accumulate=True)  # the residual's gradient is there

        self.attention_norm.backward(d, saved.attention_sum, saved.attention_norm_saved, None, d)
        d_branch = self._through_dropout(d, space, rate, self._seed(seed, ATTENTION_BRANCH))
        _backward(self.attention_output, d_branch, saved.attended, space.d_attended)
        q, k, v = self._split(saved.qkv)
        d_q, d_k, d_v = self._split(space.d_qkv)
        attention_backward(
            self._join(space.d_attended), q, k, v, self._join(saved.attended), saved.log_sum_exp, query_starts=starts,
            dropout=rate, seed=self._seed(seed, ATTENTION_WEIGHTS), precision=self._precision,
            d_q=d_q, d_k=d_k, d_v=d_v,
        )  # fmt: skip
        return _backward(self.qkv, space.d_qkv, x, d, accumulate=True)

    # ---- parts ----

    def _split(self, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views q, k, v: [1, heads, tokens, head_dim] of qkv: [tokens, 3 * dim]."""
        rows = qkv.reshape(1, len(qkv), 3, self.config.heads, self.config.head_dim).transpose(2, 0, 3, 1, 4)
        return rows[0], rows[1], rows[2]

    def _join(self, attended: np.ndarray) -> np.ndarray:
        """The view [1, heads, tokens, head_dim] of attended: [tokens, dim]."""
        return attended.reshape(1, len(attended), self.config.heads, self.config.head_dim).transpose(0, 2, 1, 3)

    def _through_dropout(self, d: np.ndarray, space: "EncoderGradients", rate: float, seed: int) -> np.ndarray:
        return dropout(d, rate, seed, out=space.d_dropped) if rate > 0 else d

    def _seed(self, seed: int, place: int) -> int:
        return fold_seed(seed, 1 + self.index * DROPOUT_PLACES + place)


@dataclass
class EncoderGradients:
    """Gradients of activations that all layers share: d_hidden [tokens, hidden], d_qkv [tokens, 3 * dim], others [tokens,
    dim]; stream: of what goes from layer to layer; d_dropped: behind dropout."""

    stream: np.ndarray
    d_hidden: np.ndarray
    d_attended: np.ndarray
    d_qkv: np.ndarray
    d_dropped: np.ndarray

    @classmethod
    def new(cls, config: EncoderConfig, tokens: int, dtype: np.dtype) -> "EncoderGradients":
        widths = (config.dim, config.hidden, config.dim, 3 * config.dim, config.dim)
        return cls(*(np.empty((tokens, width), dtype) for width in widths))

    def first(self, tokens: int) -> "EncoderGradients":
        """Views of the first rows."""
        return EncoderGradients(*(getattr(self, field.name)[:tokens] for field in fields(self)))


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
