"""Feedforward: each token alone through two linear maps with a bend between them, plain or gated; and its gradients.

Knows nothing of layers around it; the residual that forward adds is any array of out's shape.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.select import kernels
from fastmixer.ops.bfloat16 import RoundedWeight, check_rounded
from fastmixer.ops.checks import Arrays, as_rows, check_choice, leading_axes, require_all_apart
from fastmixer.ops.dropout import check_dropout


@dataclass(frozen=True)
class FeedForwardSaved:
    """What backward wants of forward. up, hidden, gate_pre (None unless gated): float32 [tokens, hidden].

    gate_pre, up: x w_gate + b_gate and x w_up + b_up; hidden: what came out of the bend. A caller that runs many
    steps may pass the same object again: feedforward(..., saved=...) writes into it.
    """

    up: np.ndarray
    hidden: np.ndarray
    gate_pre: np.ndarray | None = None


class FeedForwardRounded(NamedTuple):
    """The weights' copies in bfloat16; gate is None where there is no gate."""

    up: RoundedWeight
    down: RoundedWeight
    gate: RoundedWeight | None = None


@overload
def feedforward(
    x: np.ndarray,
    w_up: np.ndarray,
    b_up: np.ndarray | None,
    w_down: np.ndarray,
    b_down: np.ndarray | None,
    activation: str = ...,
    *,
    w_gate: np.ndarray | None = ...,
    b_gate: np.ndarray | None = ...,
    residual: np.ndarray | None = ...,
    out: np.ndarray | None = ...,
    saved: FeedForwardSaved | None = ...,
    rounded: FeedForwardRounded | None = ...,
    dropout: float = ...,
    seed: int = ...,
    return_saved: Literal[False] = ...,
) -> np.ndarray: ...
@overload
def feedforward(
    x: np.ndarray,
    w_up: np.ndarray,
    b_up: np.ndarray | None,
    w_down: np.ndarray,
    b_down: np.ndarray | None,
    activation: str = ...,
    *,
    w_gate: np.ndarray | None = ...,
    b_gate: np.ndarray | None = ...,
    residual: np.ndarray | None = ...,
    out: np.ndarray | None = ...,
    saved: FeedForwardSaved | None = ...,
    rounded: FeedForwardRounded | None = ...,
    dropout: float = ...,
    seed: int = ...,
    return_saved: Literal[True],
) -> tuple[np.ndarray, FeedForwardSaved]: ...
def feedforward(
    x: np.ndarray,
    w_up: np.ndarray,
    b_up: np.ndarray | None,
    w_down: np.ndarray,
    b_down: np.ndarray | None,
    activation: str = "gelu",
    *,
    w_gate: np.ndarray | None = None,
    b_gate: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
    saved: FeedForwardSaved | None = None,
    rounded: FeedForwardRounded | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    return_saved: bool = False,
) -> np.ndarray | tuple[np.ndarray, FeedForwardSaved]:
    """out = dropout(act(x w_up + b_up) w_down + b_down) + residual; with w_gate
    out = dropout((act(x w_gate + b_gate) * (x w_up + b_up)) w_down + b_down) + residual.

    x, residual, out: float32 [..., dim]; w_up, w_gate: float32 [dim, hidden]; b_up, b_gate: float32 [hidden];
    w_down: float32 [hidden, dim]; b_down: float32 [dim]; activation: "none", "gelu" (exact), "gelu_tanh", "silu",
    "relu". With return_saved also gives what feedforward_backward wants (in `saved`, if that is passed). With rounded (of
    the weights) products are in bfloat16, as linear's. dropout, seed: as linear's. What is written shares no memory with
    anything else. Raises TypeError or ValueError.
    Sources: Vaswani et al. 2017 (arXiv 1706.03762); gated: Shazeer 2020 (arXiv 2002.05202).
    """
    arrays = Arrays("feedforward")
    axes = leading_axes(x, "dim")
    x = arrays.check("x", x, axes)
    w_up = arrays.check("w_up", w_up, "dim hidden")
    b_up = arrays.check_optional("b_up", b_up, "hidden")
    w_gate = arrays.check_optional("w_gate", w_gate, "dim hidden")
    b_gate = arrays.check_optional("b_gate", b_gate, "hidden")
    if w_gate is None and b_gate is not None:
        raise ValueError("feedforward: b_gate is the bias of w_gate, which must be given; got None")
    w_down = arrays.check("w_down", w_down, "hidden dim")
    b_down = arrays.check_optional("b_down", b_down, "dim")
    residual = arrays.check_optional("residual", residual, axes)
    code = ACTIVATIONS[check_choice("feedforward", "activation", activation, ACTIVATIONS)]
    drawn = check_dropout("feedforward", dropout, seed)
    out = arrays.output("out", out, axes)

    arrays.sizes["tokens"] = len(as_rows(x))
    keep = saved is not None or return_saved
    up, hidden, gate_pre = (None, None, None) if saved is None else (saved.up, saved.hidden, saved.gate_pre)
    hidden = arrays.output("saved.hidden", hidden, "tokens hidden")
    # without a gate up is only of use to backward; with one, gate_pre is
    up = arrays.output("saved.up", up, "tokens hidden") if keep or w_gate is not None else None
    gate_pre = arrays.output("saved.gate_pre", gate_pre, "tokens hidden") if keep and w_gate is not None else None
    read = {
        "x": x, "residual": residual, "w_up": w_up, "b_up": b_up, "w_gate": w_gate, "b_gate": b_gate, "w_down": w_down,
        "b_down": b_down,
    }  # fmt: skip
    written = {"out": out, "saved.up": up, "saved.hidden": hidden, "saved.gate_pre": gate_pre}
    require_all_apart("feedforward", written, read)
    if rounded is not None:
        _check_rounded("feedforward", rounded, w_up, w_down, w_gate)
    operands = (as_rows(x), w_gate, b_gate, w_up, b_up, w_down, b_down, as_rows(residual), code, gate_pre, up, hidden)
    if rounded is None:
        kernels("feedforward").feedforward_forward(*operands, as_rows(out), *drawn)
    else:
        _forward_bfloat16(rounded, *operands, as_rows(out), *drawn)
    if not return_saved:
        return out
    assert up is not None
    return out, FeedForwardSaved(up, hidden, gate_pre)


def feedforward_backward(
    d_out: np.ndarray,
    x: np.ndarray,
    w_up: np.ndarray,
    w_down: np.ndarray,
    saved: FeedForwardSaved,
    activation: str = "gelu",
    *,
    w_gate: np.ndarray | None = None,
    d_w_up: np.ndarray | None = None,
    d_b_up: np.ndarray | None = None,
    d_w_down: np.ndarray | None = None,
    d_b_down: np.ndarray | None = None,
    d_w_gate: np.ndarray | None = None,
    d_b_gate: np.ndarray | None = None,
    d_x: np.ndarray | None = None,
    scratch: FeedForwardSaved | None = None,
    rounded: FeedForwardRounded | None = None,
    overwrite_d_weights: bool = False,
) -> np.ndarray:
    """d_x, and the parameters' gradients added to those that are given (with overwrite_d_weights the old content of
    d_w_up, d_w_down, d_w_gate is lost); the residual's gradient is d_out itself.

    d_out, x, d_x: float32 [..., dim]; weights and biases, and the d_ of each: as in feedforward; saved: of the forward
    call; scratch: arrays as in saved whose content is lost (up and gate_pre receive their gradients; hidden is not
    used), or None. What is written shares no memory with anything else. Raises TypeError or ValueError.
    """
    arrays = Arrays("feedforward_backward", "feedforward")
    axes = leading_axes(x, "dim")
    x = arrays.check("x", x, axes)
    d_out = arrays.check("d_out", d_out, axes)
    w_up = arrays.check("w_up", w_up, "dim hidden")
    w_gate = arrays.check_optional("w_gate", w_gate, "dim hidden")
    w_down = arrays.check("w_down", w_down, "hidden dim")
    code = ACTIVATIONS[check_choice("feedforward_backward", "activation", activation, ACTIVATIONS)]
    arrays.sizes["tokens"] = len(as_rows(x))
    up = arrays.check("saved.up", saved.up, "tokens hidden")
    hidden = arrays.check("saved.hidden", saved.hidden, "tokens hidden")
    gate_pre = None if w_gate is None else arrays.check("saved.gate_pre", saved.gate_pre, "tokens hidden")
    gradients = {
        "d_w_gate": d_w_gate, "d_b_gate": d_b_gate, "d_w_up": d_w_up, "d_b_up": d_b_up, "d_w_down": d_w_down,
        "d_b_down": d_b_down,
    }  # fmt: skip
    _check_gradients(arrays, gradients, gated=w_gate is not None)
    d_up, d_gate_pre = (None, None) if scratch is None else (scratch.up, scratch.gate_pre)
    d_up = arrays.output("scratch.up", d_up, "tokens hidden")
    d_gate_pre = None if w_gate is None else arrays.output("scratch.gate_pre", d_gate_pre, "tokens hidden")
    d_x = arrays.output("d_x", d_x, axes)
    read = {
        "d_out": d_out, "x": x, "w_up": w_up, "w_gate": w_gate, "w_down": w_down, "saved.up": up, "saved.hidden": hidden,
        "saved.gate_pre": gate_pre,
    }  # fmt: skip
    written = {"d_x": d_x, "scratch.up": d_up, "scratch.gate_pre": d_gate_pre, **gradients}
    require_all_apart("feedforward_backward", written, read)
    if rounded is not None:
        _check_rounded("feedforward_backward", rounded, w_up, w_down, w_gate)

    operands = (gate_pre, up, hidden, d_gate_pre, d_up, as_rows(d_x), *gradients.values())
    if rounded is None:
        kernel = kernels("feedforward").feedforward_backward
        kernel(as_rows(d_out), as_rows(x), w_gate, w_up, w_down, code, *operands, not overwrite_d_weights)
    else:
        _backward_bfloat16(rounded, not overwrite_d_weights, as_rows(d_out), as_rows(x), code, *operands)
    return d_x


def _check_gradients(arrays: Arrays, gradients: dict[str, np.ndarray | None], *, gated: bool) -> None:
    """Of the parameters, each None or an array to write into, in the order in which kernels take them."""
    if not gated and (gradients["d_w_gate"] is not None or gradients["d_b_gate"] is not None):
        raise ValueError(f"{arrays.op}: d_w_gate and d_b_gate need w_gate; got None")
    axes = ("dim hidden", "hidden", "dim hidden", "hidden", "hidden dim", "dim")
    for (name, value), value_axes in zip(gradients.items(), axes, strict=True):
        if value is not None:
            arrays.check_output(name, value, value_axes)


# ---- in bfloat16: the linear layer's kernels one after another; each rounds what it multiplies ----


def _check_rounded(
    op: str, rounded: FeedForwardRounded, w_up: np.ndarray, w_down: np.ndarray, w_gate: np.ndarray | None
) -> None:
    if not isinstance(rounded, FeedForwardRounded):
        raise TypeError(f"{op}: rounded must be FeedForwardRounded; got {type(rounded).__name__}")
    check_rounded(op, "rounded.up", rounded.up, w_up)
    check_rounded(op, "rounded.down", rounded.down, w_down)
    if w_gate is None:
        if rounded.gate is not None:
            raise ValueError(f"{op}: rounded.gate is of w_gate, which must be given; got None")
    elif rounded.gate is None:
        raise ValueError(f"{op}: rounded.gate must be given with w_gate; got None")
    else:
        check_rounded(op, "rounded.gate", rounded.gate, w_gate)


def _forward_bfloat16(
    rounded: FeedForwardRounded, x: Any, w_gate: Any, b_gate: Any, w_up: Any, b_up: Any, w_down: Any, b_down: Any,
    residual: Any, code: int, gate_pre: Any, up: Any, hidden: Any, out: Any, dropout: float, seed: int,
) -> None:  # fmt: skip
    forward = kernels("matmul").linear_forward_bfloat16
    # 1. up, and the bend
    if rounded.gate is None:
        forward(x, rounded.up.over_rows, b_up, None, None, up, hidden, code)
    else:
        forward(x, rounded.up.over_rows, b_up, None, None, None, up, 0)
        forward(x, rounded.gate.over_rows, b_gate, up, None, gate_pre, hidden, code)
    # 2. down
    forward(hidden, rounded.down.over_rows, b_down, None, residual, None, out, 0, dropout, seed)


def _backward_bfloat16(
    rounded: FeedForwardRounded, add: bool, d_out: Any, x: Any, code: int, gate_pre: Any, up: Any, hidden: Any,
    d_gate_pre: Any, d_up: Any, d_x: Any, d_w_gate: Any, d_b_gate: Any, d_w_up: Any, d_b_up: Any, d_w_down: Any,
    d_b_down: Any,
) -> None:  # fmt: skip
    kernel = kernels("matmul")
    backward = kernel.linear_backward_bfloat16
    # 2. down, and the bend
    if rounded.gate is None:
        backward(d_out, hidden, rounded.down.over_columns, up, None, d_up, None, d_w_down, False, code, False, add)
    else:
        backward(
            d_out, hidden, rounded.down.over_columns, gate_pre, up, d_gate_pre, d_up, d_w_down, False, code, False, add
        )
    # 1. up
    backward(d_up, x, rounded.up.over_columns, None, None, d_x, None, d_w_up, False, 0, False, add)
    if rounded.gate is not None:
        backward(d_gate_pre, x, rounded.gate.over_columns, None, None, d_x, None, d_w_gate, False, 0, True, add)
    for d_rows, d_bias in ((d_out, d_b_down), (d_up, d_b_up), (d_gate_pre, d_b_gate)):
        if d_bias is not None:
            kernel.linear_backward_bias(d_rows, d_bias)
