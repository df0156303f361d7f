"""One pre-norm layer: attention mixes tokens, feedforward mixes features, each added to the residual stream.

backward is forward read from the bottom up. Knows nothing of embeddings, heads, losses or batches of text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.model.parameters import Parameters
from fastmixer.model.workspace import LayerActivations, Workspace, join_heads, split_heads
from fastmixer.ops.attention import attention, attention_backward
from fastmixer.ops.bfloat16 import RoundedWeight
from fastmixer.ops.dropout import dropout, fold_seed
from fastmixer.ops.feedforward import FeedForwardRounded, feedforward, feedforward_backward
from fastmixer.ops.matmul import linear, linear_backward
from fastmixer.ops.norm import layernorm, layernorm_backward, rmsnorm, rmsnorm_backward
from fastmixer.ops.positions import rotate

# Places of a layer where random numbers are drawn; each has a seed of its own.
ATTENTION_WEIGHTS, ATTENTION_BRANCH, FEEDFORWARD_BRANCH = range(3)
DROPOUT_PLACES = 3


@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm with its parameters (float32 [dim]) and where their gradients go."""

    kind: str
    epsilon: float
    weight: np.ndarray
    bias: np.ndarray | None
    d_weight: np.ndarray
    d_bias: np.ndarray | None

    @classmethod
    def of(cls, config: ModelConfig, parameters: Parameters, name: str) -> "Norm":
        """The norm of this name."""
        return cls(
            config.norm, config.norm_epsilon, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"),
            parameters.gradient(f"{name}.weight"), parameters.get_gradient(f"{name}.bias"),
        )  # fmt: skip

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, Any]:
        """(out, saved) of x: [tokens, dim]."""
        if self.kind == "rmsnorm":
            return rmsnorm(x, self.weight, epsilon=self.epsilon, out=out, return_saved=True)
        return layernorm(x, self.weight, self.bias, epsilon=self.epsilon, out=out, return_saved=True)

    def backward(
        self, d_out: np.ndarray, x: np.ndarray, saved: Any, d_residual: np.ndarray | None, d_x: np.ndarray
    ) -> np.ndarray:
        """d_x = d_residual + the gradient through the norm."""
        if self.kind == "rmsnorm":
            return rmsnorm_backward(d_out, x, self.weight, saved, self.d_weight, d_residual=d_residual, d_x=d_x)
        return layernorm_backward(
            d_out, x, self.weight, saved, self.d_weight, self.d_bias, d_residual=d_residual, d_x=d_x
        )


@dataclass(frozen=True)
class Linear:
    """A linear map's weight: float32 [in, out] and bias: float32 [out], or None, where their gradients go, and the weight's
    copies in bfloat16, if products are to be in that."""

    weight: np.ndarray
    bias: np.ndarray | None
    d_weight: np.ndarray
    d_bias: np.ndarray | None
    rounded: RoundedWeight | None

    @classmethod
    def of(cls, parameters: Parameters, name: str) -> "Linear":
        """The linear map of this name."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        return cls(
            parameters[weight], parameters.get(bias), parameters.gradient(weight), parameters.get_gradient(bias),
            parameters.rounded(weight),
        )  # fmt: skip

    def forward(
        self,
        x: np.ndarray,
        *,
        activation: str = "none",
        multiplier: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        pre_activation: np.ndarray | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """x: [tokens, in] -> x W + bias: [tokens, out], with what linear adds in its epilogue."""
        return linear(
            x, self.weight, self.bias, activation=activation, multiplier=multiplier, residual=residual,
            pre_activation=pre_activation, rounded=self.rounded, dropout=dropout, seed=seed, out=out,
        )  # fmt: skip

    def backward(self, d_out: np.ndarray, x: np.ndarray, d_x: np.ndarray, *, rewrite: bool) -> np.ndarray:
        """d_out: [tokens, out] -> d_x: [tokens, in]; the parameters' gradients are added, the weight's (rewrite) written."""
        return linear_backward(
            d_out, x, self.weight, self.d_weight, self.d_bias, d_x=d_x, overwrite_d_weight=rewrite, rounded=self.rounded
        )


@dataclass(frozen=True)
class Rotary:
    """cos, sin: [context, head_dim / 2], or both None where positions do not rotate."""

    cos: np.ndarray | None
    sin: np.ndarray | None

    def turn(self, x: np.ndarray, positions: np.ndarray | None = None, *, inverse: bool = False) -> None:
        """Rotate x: [batch, heads, time, head_dim] in place; positions: [batch, time], 0..time-1 if None."""
        if self.cos is not None and self.sin is not None:
            rotate(x, self.cos, self.sin, positions, inverse=inverse, out=x)


class Layer:
    """One layer of a model: its parameters, forward, the same once more for a checkpointed backward, and backward."""

    def __init__(self, config: ModelConfig, parameters: Parameters, index: int, rotary: Rotary):
        prefix = f"layers.{index}"
        self.config, self.index, self.rotary = config, index, rotary
        self.attention_norm = Norm.of(config, parameters, f"{prefix}.attention_norm")
        self.feedforward_norm = Norm.of(config, parameters, f"{prefix}.feedforward_norm")
        self.qkv = Linear.of(parameters, f"{prefix}.attention.qkv")
        self.attention_output = Linear.of(parameters, f"{prefix}.attention.output")
        self.gate = Linear.of(parameters, f"{prefix}.feedforward.gate") if config.gated else None
        self.up = Linear.of(parameters, f"{prefix}.feedforward.up")
        self.down = Linear.of(parameters, f"{prefix}.feedforward.down")
        self._precision = "float32" if self.qkv.rounded is None else "bfloat16"  # of attention's products
        self._feedforward_rounded = None
        if self.up.rounded is not None and self.down.rounded is not None:
            self._feedforward_rounded = FeedForwardRounded(
                self.up.rounded, self.down.rounded, self.gate.rounded if self.gate else None
            )

    # ---- training ----

    def forward(self, x: np.ndarray, saved: LayerActivations, space: Workspace, seed: int | None) -> np.ndarray:
        """x: [tokens, dim] -> saved.out: [tokens, dim]. seed: of this step's dropout, None to drop nothing."""
        self._forward_to_feedforward(x, saved, space, seed)
        self._feedforward(
            saved.feedforward_normed, saved.feedforward_saved, residual=saved.middle, dropout=self._rate(seed),
            seed=self._seed(seed, FEEDFORWARD_BRANCH), out=saved.out,
        )  # fmt: skip
        return saved.out

    def forward_again(self, x: np.ndarray, saved: LayerActivations, space: Workspace, seed: int | None) -> None:
        """The same bits in saved as forward left there. saved.out still stands, so the product that makes it is spared."""
        self._forward_to_feedforward(x, saved, space, seed)
        normed, into, activation = saved.feedforward_normed, saved.feedforward_saved, self.config.activation
        if self.gate is None:
            self.up.forward(normed, activation=activation, pre_activation=into.up, out=into.hidden)
        else:
            self.up.forward(normed, out=into.up)
            self.gate.forward(
                normed, activation=activation, multiplier=into.up, pre_activation=into.gate_pre, out=into.hidden
            )

    def _forward_to_feedforward(
        self, x: np.ndarray, saved: LayerActivations, space: Workspace, seed: int | None
    ) -> None:
        """x -> saved.middle, the stream after the attention branch, and saved.feedforward_normed."""
        config, rate = self.config, self._rate(seed)

        _, saved.attention_norm_saved = self.attention_norm.forward(x, saved.attention_normed)
        self.qkv.forward(saved.attention_normed, out=saved.qkv)
        q, k, v = split_heads(saved.qkv, config, space.batch, space.time)
        self.rotary.turn(q)
        self.rotary.turn(k)
        attended = join_heads(saved.attended, config, space.batch, space.time)
        _, saved.log_sum_exp = attention(
            q, k, v, causal=True, window=config.window, dropout=rate, seed=self._seed(seed, ATTENTION_WEIGHTS),
            precision=self._precision, out=attended, return_saved=True,
        )  # fmt: skip
        self.attention_output.forward(
            saved.attended, residual=x, dropout=rate, seed=self._seed(seed, ATTENTION_BRANCH), out=saved.middle
        )

        _, saved.feedforward_norm_saved = self.feedforward_norm.forward(saved.middle, saved.feedforward_normed)

    def backward(
        self, d_out: np.ndarray, x: np.ndarray, saved: LayerActivations, space: Workspace, seed: int | None, *,
        rewrite: bool,
    ) -> np.ndarray:  # fmt: skip
        """d_out: [tokens, dim] of this layer's out -> d_x in the same memory; parameters' gradients are added, or (rewrite)
        those of matrices written."""
        config, rate = self.config, self._rate(seed)

        d_branch = self._through_dropout(d_out, space, rate, self._seed(seed, FEEDFORWARD_BRANCH))
        d_normed = self._feedforward_backward(d_branch, saved, space, rewrite)
        d_middle = self.feedforward_norm.backward(
            d_normed, saved.middle, saved.feedforward_norm_saved, d_out, space.d_middle
        )

        d_branch = self._through_dropout(d_middle, space, rate, self._seed(seed, ATTENTION_BRANCH))
        d_attended = self.attention_output.backward(d_branch, saved.attended, space.d_branch, rewrite=rewrite)
        q, k, v = split_heads(saved.qkv, config, space.batch, space.time)
        d_q, d_k, d_v = split_heads(space.d_qkv, config, space.batch, space.time)
        attention_backward(
            join_heads(d_attended, config, space.batch, space.time), q, k, v,
            join_heads(saved.attended, config, space.batch, space.time), saved.log_sum_exp, causal=True,
            window=config.window, dropout=rate, seed=self._seed(seed, ATTENTION_WEIGHTS), precision=self._precision,
            d_q=d_q, d_k=d_k, d_v=d_v,
        )  # fmt: skip
        self.rotary.turn(d_k, inverse=True)
        self.rotary.turn(d_q, inverse=True)
        d_normed = self.qkv.backward(space.d_qkv, saved.attention_normed, space.d_branch, rewrite=rewrite)
        return self.attention_norm.backward(d_normed, x, saved.attention_norm_saved, d_middle, d_out)

    # ---- parts ----

    def _feedforward(
        self, normed: np.ndarray, saved: Any, *, residual: np.ndarray | None = None, dropout: float = 0.0, seed: int = 0,
        out: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        w_gate, b_gate = (self.gate.weight, self.gate.bias) if self.gate else (None, None)
        return feedforward(
            normed, self.up.weight, self.up.bias, self.down.weight, self.down.bias, self.config.activation,
            w_gate=w_gate, b_gate=b_gate, residual=residual, dropout=dropout, seed=seed, out=out, saved=saved,
            rounded=self._feedforward_rounded,
        )  # fmt: skip

    def _feedforward_backward(
        self, d_out: np.ndarray, saved: LayerActivations, space: Workspace, rewrite: bool
    ) -> np.ndarray:
        w_gate, d_w_gate, d_b_gate = (
            (self.gate.weight, self.gate.d_weight, self.gate.d_bias) if self.gate else (None,) * 3
        )
        return feedforward_backward(
            d_out, saved.feedforward_normed, self.up.weight, self.down.weight, saved.feedforward_saved,
            self.config.activation, w_gate=w_gate, d_w_up=self.up.d_weight, d_b_up=self.up.d_bias,
            d_w_down=self.down.d_weight, d_b_down=self.down.d_bias, d_w_gate=d_w_gate, d_b_gate=d_b_gate,
            d_x=space.d_branch, scratch=space.d_feedforward, rounded=self._feedforward_rounded,
            overwrite_d_weights=rewrite,
        )  # fmt: skip

    def _through_dropout(self, d_out: np.ndarray, space: Workspace, rate: float, seed: int) -> np.ndarray:
        return dropout(d_out, rate, seed, out=space.d_dropped) if rate > 0 else d_out

    def _rate(self, seed: int | None) -> float:
        return 0.0 if seed is None else self.config.dropout

    def _seed(self, seed: int | None, place: int) -> int:
        return 0 if seed is None else fold_seed(seed, 1 + self.index * DROPOUT_PLACES + place)
