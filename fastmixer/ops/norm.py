"""LayerNorm and RMSNorm over the last axis, and their gradients.

Knows nothing of where in a layer it stands; the residual that backward adds is any array of x's shape.
"""

from typing import Literal, overload

import numpy as np

from fastmixer.kernels.norm import row_blocks
from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, as_rows, check_number, leading_axes, require_apart, require_same_or_apart

LayerNormSaved = tuple[np.ndarray, np.ndarray]  # mean, inverse_std: float32 [tokens]
RMSNormSaved = np.ndarray  # inverse_rms: float32 [tokens]


@overload
def layernorm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = ...,
    *,
    epsilon: float = ...,
    out: np.ndarray | None = ...,
    return_saved: Literal[False] = ...,
) -> np.ndarray: ...
@overload
def layernorm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = ...,
    *,
    epsilon: float = ...,
    out: np.ndarray | None = ...,
    return_saved: Literal[True],
) -> tuple[np.ndarray, LayerNormSaved]: ...
def layernorm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    epsilon: float = 1e-5,
    out: np.ndarray | None = None,
    return_saved: bool = False,
) -> np.ndarray | tuple[np.ndarray, LayerNormSaved]:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, with mean and variance of each row of the last axis.

    x, out: float32 [..., dim] (out may be x, but no part of it); weight, bias: float32 [dim]. With return_saved also gives
    (mean, inverse_std), float32 [tokens] each, which layernorm_backward wants; tokens is the product of the leading axes.
    Raises TypeError or ValueError. Source: Ba, Kiros, Hinton 2016.
    """
    arrays = Arrays("layernorm", "norm")
    axes = leading_axes(x, "dim")
    x = arrays.check("x", x, axes)
    weight = arrays.check("weight", weight, "dim")
    bias = arrays.check_optional("bias", bias, "dim")
    check_number("layernorm", "epsilon", epsilon, at_least=0)
    out = arrays.output("out", out, axes)
    require_same_or_apart("layernorm", "out", out, x=x)
    require_apart("layernorm", "out", out, weight=weight, bias=bias)
    rows = as_rows(x)
    saved = np.empty(len(rows), x.dtype), np.empty(len(rows), x.dtype)
    kernels("norm").layernorm_forward(rows, weight, bias, float(epsilon), as_rows(out), *saved)
    return (out, saved) if return_saved else out


def layernorm_backward(
    d_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    saved: LayerNormSaved,
    d_weight: np.ndarray,
    d_bias: np.ndarray | None = None,
    *,
    d_residual: np.ndarray | None = None,
    d_x: np.ndarray | None = None,
) -> np.ndarray:
    """d_x = d_residual + the gradient of layernorm; d_weight and d_bias have theirs added.

    d_out, x, d_residual, d_x: float32 [..., dim] (d_x may be d_out or d_residual, but no part of either);
    weight, d_weight, d_bias: float32 [dim]; saved: (mean, inverse_std) of the forward call. Raises TypeError or ValueError.
    """
    arrays = Arrays("layernorm_backward", "norm")
    d_out, x, weight, d_residual, d_x = _check_backward(arrays, d_out, x, weight, d_residual, d_x)
    rows = as_rows(x)
    arrays.sizes["tokens"] = len(rows)
    mean = arrays.check("saved[0] (mean)", saved[0], "tokens")
    inverse_std = arrays.check("saved[1] (inverse_std)", saved[1], "tokens")
    d_weight = arrays.check_output("d_weight", d_weight, "dim")
    d_bias = None if d_bias is None else arrays.check_output("d_bias", d_bias, "dim")
    others = {"mean": mean, "inverse_std": inverse_std, "d_weight": d_weight, "d_bias": d_bias}
    require_apart("layernorm_backward", "d_x", d_x, **others)
    require_apart("layernorm_backward", "d_weight", d_weight, d_bias=d_bias)
    partial = np.empty((row_blocks(len(rows)), 2, len(weight)), x.dtype)
    kernels("norm").layernorm_backward(
        as_rows(d_out), rows, weight, mean, inverse_std, as_rows(d_residual), as_rows(d_x), d_weight, d_bias, partial
    )
    return d_x


@overload
def rmsnorm(
    x: np.ndarray,
    weight: np.ndarray,
    *,
    epsilon: float = ...,
    out: np.ndarray | None = ...,
    return_saved: Literal[False] = ...,
) -> np.ndarray: ...
@overload
def rmsnorm(
    x: np.ndarray,
    weight: np.ndarray,
    *,
    epsilon: float = ...,
    out: np.ndarray | None = ...,
    return_saved: Literal[True],
) -> tuple[np.ndarray, RMSNormSaved]: ...
def rmsnorm(
    x: np.ndarray,
    weight: np.ndarray,
    *,
    epsilon: float = 1e-5,
    out: np.ndarray | None = None,
    return_saved: bool = False,
) -> np.ndarray | tuple[np.ndarray, RMSNormSaved]:
    """x / sqrt(mean of x^2 + epsilon) * weight, with the mean of each row of the last axis.

    x, out: float32 [..., dim] (out may be x, but no part of it); weight: float32 [dim]. With return_saved also gives
    inverse_rms: float32 [tokens], which rmsnorm_backward wants. Raises TypeError or ValueError.
    Source: Zhang, Sennrich 2019.
    """
    arrays = Arrays("rmsnorm", "norm")
    axes = leading_axes(x, "dim")
    x = arrays.check("x", x, axes)
    weight = arrays.check("weight", weight, "dim")
    check_number("rmsnorm", "epsilon", epsilon, at_least=0)
    out = arrays.output("out", out, axes)
    require_same_or_apart("rmsnorm", "out", out, x=x)
    require_apart("rmsnorm", "out", out, weight=weight)
    rows = as_rows(x)
    saved = np.empty(len(rows), x.dtype)
    kernels("norm").rmsnorm_forward(rows, weight, float(epsilon), as_rows(out), saved)
    return (out, saved) if return_saved else out


def rmsnorm_backward(
    d_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    saved: RMSNormSaved,
    d_weight: np.ndarray,
    *,
    d_residual: np.ndarray | None = None,
    d_x: np.ndarray | None = None,
) -> np.ndarray:
    """d_x = d_residual + the gradient of rmsnorm; d_weight has its own added.

    d_out, x, d_residual, d_x: float32 [..., dim] (d_x may be d_out or d_residual, but no part of either);
    weight, d_weight: float32 [dim]; saved: inverse_rms of the forward call. Raises TypeError or ValueError.
    """
    arrays = Arrays("rmsnorm_backward", "norm")
    d_out, x, weight, d_residual, d_x = _check_backward(arrays, d_out, x, weight, d_residual, d_x)
    rows = as_rows(x)
    arrays.sizes["tokens"] = len(rows)
    inverse_rms = arrays.check("saved (inverse_rms)", saved, "tokens")
    d_weight = arrays.check_output("d_weight", d_weight, "dim")
    require_apart("rmsnorm_backward", "d_x", d_x, inverse_rms=inverse_rms, d_weight=d_weight)
    partial = np.empty((row_blocks(len(rows)), 1, len(weight)), x.dtype)
    kernels("norm").rmsnorm_backward(
        as_rows(d_out), rows, weight, inverse_rms, as_rows(d_residual), as_rows(d_x), d_weight, partial
    )
    return d_x


def _check_backward(arrays, d_out, x, weight, d_residual, d_x):
    """The arrays that both backwards share, checked, d_x made if None."""
    axes = leading_axes(x, "dim")
    x = arrays.check("x", x, axes)
    d_out = arrays.check("d_out", d_out, axes)
    weight = arrays.check("weight", weight, "dim")
    d_residual = arrays.check_optional("d_residual", d_residual, axes)
    d_x = arrays.output("d_x", d_x, axes)
    require_same_or_apart(arrays.op, "d_x", d_x, d_out=d_out, x=x, d_residual=d_residual)
    require_apart(arrays.op, "d_x", d_x, weight=weight)
    return d_out, x, weight, d_residual, d_x
