"""Matrix products and the linear layer with everything that can ride in its epilogue, and the layer's gradients.

Knows nothing of which layer it is. Weights are [in, out], or [out, in] with transpose_weight (output heads, and
weights as PyTorch stores them).
"""

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.select import kernels
from fastmixer.ops.bfloat16 import RoundedWeight, check_rounded
from fastmixer.ops.checks import Arrays, as_rows, check_choice, leading_axes, require_all_apart, require_apart
from fastmixer.ops.dropout import check_dropout


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    out: np.ndarray | None = None,
    accumulate: bool = False,
) -> np.ndarray:
    """out = A B, or out += A B with accumulate.

    a: float32 [m, k], [k, m] with transpose_a; b: float32 [k, n], [n, k] with transpose_b; out: float32 [m, n], no part
    of a or b. Raises TypeError or ValueError. Method: blocks packed for registers and caches, after Goto and
    van de Geijn 2008.
    """
    arrays = Arrays("matmul")
    a = arrays.check("a", a, "k m" if transpose_a else "m k")
    b = arrays.check("b", b, "n k" if transpose_b else "k n")
    if accumulate and out is None:
        raise ValueError("matmul: accumulate adds to out, which must be given; got None")
    out = arrays.output("out", out, "m n")
    require_apart("matmul", "out", out, a=a, b=b)
    kernels("matmul").matmul(a, b, out, bool(transpose_a), bool(transpose_b), bool(accumulate))
    return out


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    activation: str = "none",
    multiplier: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    pre_activation: np.ndarray | None = None,
    transpose_weight: bool = False,
    rounded: RoundedWeight | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """out = dropout(act(x W + bias) * multiplier) + residual; what is None is left out.

    x: float32 [..., in]; weight: float32 [in, out], [out, in] with transpose_weight; bias: float32 [out];
    multiplier, residual, out: float32 [..., out]; pre_activation: float32 [..., out], receives x W + bias;
    activation: "none", "gelu" (exact), "gelu_tanh", "silu", "relu". With rounded (of weight) x is rounded to bfloat16 too
    and multiplied with that, added up in float32. dropout: the rate, in [0, 1); seed: int in [0, 2^64); what is dropped
    is what fastmixer.ops.dropout drops of an array like out, so the gradient goes back through that. out and
    pre_activation share no memory with the others. Raises TypeError or ValueError.
    """
    arrays = Arrays("linear", "matmul")
    x = arrays.check("x", x, leading_axes(x, "in"))
    weight = arrays.check("weight", weight, "out in" if transpose_weight else "in out")
    axes = leading_axes(x, "out")
    bias = arrays.check_optional("bias", bias, "out")
    multiplier = arrays.check_optional("multiplier", multiplier, axes)
    residual = arrays.check_optional("residual", residual, axes)
    code = ACTIVATIONS[check_choice("linear", "activation", activation, ACTIVATIONS)]
    dropout, seed = check_dropout("linear", dropout, seed)
    if pre_activation is not None:
        pre_activation = arrays.check_output("pre_activation", pre_activation, axes)
    out = arrays.output("out", out, axes)
    inputs = {"x": x, "weight": weight, "bias": bias, "multiplier": multiplier, "residual": residual}
    require_apart("linear", "out", out, pre_activation=pre_activation, **inputs)
    require_apart("linear", "pre_activation", pre_activation, **inputs)
    arguments = (bias, as_rows(multiplier), as_rows(residual), as_rows(pre_activation), as_rows(out))
    if rounded is None:
        kernels("matmul").linear_forward(as_rows(x), weight, *arguments, bool(transpose_weight), code, dropout, seed)
    else:
        check_rounded("linear", "rounded", rounded, weight)
        panels = rounded.over_columns if transpose_weight else rounded.over_rows
        kernels("matmul").linear_forward_bfloat16(as_rows(x), panels, *arguments, code, dropout, seed)
    return out


def linear_backward(
    d_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    d_weight: np.ndarray | None,
    d_bias: np.ndarray | None = None,
    *,
    transpose_weight: bool = False,
    pre_activation: np.ndarray | None = None,
    multiplier: np.ndarray | None = None,
    activation: str = "none",
    d_x: np.ndarray | None = None,
    d_multiplier: np.ndarray | None = None,
    accumulate: bool = False,
    overwrite_d_weight: bool = False,
    rounded: RoundedWeight | None = None,
) -> np.ndarray:
    """The gradients of out = x W + bias: d_weight and d_bias have theirs added (with overwrite_d_weight
    d_weight's old content is lost), d_x = d_out W^T is returned.

    pre_activation (and multiplier) say how x was made: x = act(pre_activation) * multiplier. Then d_x is the gradient
    of pre_activation, d_h * multiplier * act'(pre_activation), and d_multiplier = d_h * act(pre_activation), where
    d_h = d_out W^T. With accumulate d_h starts from what d_x holds. d_x may take x's memory: x is read before.

    d_out: float32 [..., out]; x, pre_activation, multiplier, d_x, d_multiplier: float32 [..., in]; weight, d_weight
    (None: not wanted): float32 [in, out], [out, in] with transpose_weight; d_bias: float32 [out]. What is written
    otherwise shares no memory with what is read. With rounded (of weight) the products are those of d_out, x and weight
    rounded to bfloat16. Raises TypeError or ValueError.
    """
    arrays = Arrays("linear_backward", "matmul")
    axes = leading_axes(x, "in")
    x = arrays.check("x", x, axes)
    d_out = arrays.check("d_out", d_out, leading_axes(x, "out"))
    weight_axes = "out in" if transpose_weight else "in out"
    weight = arrays.check("weight", weight, weight_axes)
    if d_weight is not None:
        d_weight = arrays.check_output("d_weight", d_weight, weight_axes)
    if d_bias is not None:
        d_bias = arrays.check_output("d_bias", d_bias, "out")
    code = ACTIVATIONS[check_choice("linear_backward", "activation", activation, ACTIVATIONS)]
    pre_activation = arrays.check_optional("pre_activation", pre_activation, axes)
    multiplier = arrays.check_optional("multiplier", multiplier, axes)
    if pre_activation is None and not (activation == "none" and multiplier is None and d_multiplier is None):
        raise ValueError(
            "linear_backward: activation, multiplier and d_multiplier say how x was made and need pre_activation; "
            "got None"
        )
    if accumulate and d_x is None:
        raise ValueError("linear_backward: accumulate adds to d_x, which must be given; got None")
    if d_multiplier is not None:
        d_multiplier = arrays.check_output("d_multiplier", d_multiplier, axes)
    d_x = arrays.output("d_x", d_x, axes)
    inputs = {"d_out": d_out, "weight": weight, "pre_activation": pre_activation, "multiplier": multiplier}
    others = {"d_multiplier": d_multiplier, "d_weight": d_weight, "d_bias": d_bias}
    require_apart("linear_backward", "d_x", d_x, **inputs, **others)
    require_all_apart("linear_backward", others, {"x": x, **inputs})
    if rounded is not None:
        check_rounded("linear_backward", "rounded", rounded, weight)
    if d_bias is not None:
        kernels("matmul").linear_backward_bias(as_rows(d_out), d_bias)
    _run_backward(
        as_rows(d_out), as_rows(x), weight, rounded, as_rows(pre_activation), as_rows(multiplier), as_rows(d_x),
        as_rows(d_multiplier), d_weight, bool(transpose_weight), code, bool(accumulate), not overwrite_d_weight,
    )  # fmt: skip
    return d_x


def _run_backward(
    d_out: np.ndarray, x: np.ndarray, weight: np.ndarray, rounded: RoundedWeight | None,
    pre_activation: np.ndarray | None, multiplier: np.ndarray | None, d_x: np.ndarray, d_multiplier: np.ndarray | None,
    d_weight: np.ndarray | None, transpose: bool, code: int, accumulate: bool, accumulate_weight: bool,
) -> None:  # fmt: skip
    """linear_backward's products, over checked arrays whose leading axes are one: [tokens, ...]."""
    kernel = kernels("matmul")
    if rounded is not None:
        panels = rounded.over_rows if transpose else rounded.over_columns
        kernel.linear_backward_bfloat16(
            d_out, x, panels, pre_activation, multiplier, d_x, d_multiplier, d_weight, transpose, code, accumulate,
            accumulate_weight,
        )  # fmt: skip
        return
    if d_weight is not None:
        kernel.linear_backward_weight(x, d_out, d_weight, transpose, accumulate_weight)
    kernel.linear_backward_input(
        d_out, weight, pre_activation, multiplier, d_x, d_multiplier, transpose, code, accumulate
    )
