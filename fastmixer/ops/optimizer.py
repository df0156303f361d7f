"""Parameter updates in place: AdamW and SGD in one pass, the gradient's norm, the search for a broken number.

Works on flat arrays. Knows nothing of parameters' names, of decay groups or of schedules.
"""

import math

import numpy as np

from fastmixer.kernels.optimizer import blocks
from fastmixer.kernels.select import kernels
from fastmixer.ops.bfloat16 import RoundedWeight, check_rounded
from fastmixer.ops.checks import Arrays, check_integer, check_number


def adamw_step(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    *,
    learning_rate: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    gradient_scale: float = 1.0,
    zero_gradient: bool = False,
    rounded: RoundedWeight | None = None,
) -> None:
    """One AdamW step in place, in one pass over the arrays.

    p (parameters), m, v (moments, zeros before the first step), g (gradient): float32 [n], or [rows, columns] with
    rounded, the matrix's copies in bfloat16, which are written anew in the same pass. step counts from 1. The
    gradient is multiplied by gradient_scale (clipping) before use and set to 0 afterwards if zero_gradient; otherwise
    it is only read. Weight decay is decoupled and scaled by the learning rate. Raises TypeError or ValueError.
    Source: Loshchilov, Hutter 2019, as torch.optim.AdamW computes it.
    """
    arrays = Arrays("adamw_step", "optimizer")
    axes = "n" if rounded is None else "rows columns"
    p = arrays.check_output("p", p, axes)
    m = arrays.check_output("m", m, axes)
    v = arrays.check_output("v", v, axes)
    g = arrays.check_output("g", g, axes) if zero_gradient else arrays.check("g", g, axes)
    check_number("adamw_step", "learning_rate", learning_rate, at_least=0)
    check_number("adamw_step", "beta1", beta1, at_least=0, below=1)
    check_number("adamw_step", "beta2", beta2, at_least=0, below=1)
    check_number("adamw_step", "epsilon", epsilon, at_least=0)
    check_number("adamw_step", "weight_decay", weight_decay, at_least=0)
    check_integer("adamw_step", "step", step, at_least=1)
    check_number("adamw_step", "gradient_scale", gradient_scale)
    settings = (
        float(learning_rate), float(beta1), float(beta2), float(epsilon), float(weight_decay), int(step),
        float(gradient_scale), bool(zero_gradient),
    )  # fmt: skip
    if rounded is None:
        kernels("optimizer").adamw(p, m, v, g, *settings)
    else:
        check_rounded("adamw_step", "rounded", rounded, p)
        kernels("optimizer").adamw_bfloat16(p, m, v, g, rounded.over_rows, rounded.over_columns, *settings)


def sgd_step(
    p: np.ndarray,
    g: np.ndarray,
    *,
    learning_rate: float,
    gradient_scale: float = 1.0,
    zero_gradient: bool = False,
) -> None:
    """p -= learning_rate * gradient_scale * g, in place; then g = 0 if zero_gradient.

    p, g: float32 [n]. Raises TypeError or ValueError.
    """
    arrays = Arrays("sgd_step", "optimizer")
    p = arrays.check_output("p", p, "n")
    g = arrays.check_output("g", g, "n") if zero_gradient else arrays.check("g", g, "n")
    check_number("sgd_step", "learning_rate", learning_rate, at_least=0)
    check_number("sgd_step", "gradient_scale", gradient_scale)
    kernels("optimizer").sgd(p, g, float(learning_rate), float(gradient_scale), bool(zero_gradient))


def global_norm(g: np.ndarray) -> float:
    """The Euclidean norm of g: float32 [n], summed in float64; NaN or infinite if an element is.

    The sum's order is fixed, so the same g gives the same bits on any number of threads. Raises TypeError or
    ValueError.
    """
    g = Arrays("global_norm", "optimizer").check("g", g, "n")
    return math.sqrt(kernels("optimizer").squared_norm(g, np.empty(blocks(len(g)), np.float64)))


def first_nonfinite(x: np.ndarray) -> int:
    """The index of the first NaN or infinity in x: float32 [n], or -1. Raises TypeError or ValueError."""
    x = Arrays("first_nonfinite", "optimizer").check("x", x, "n")
    return kernels("optimizer").first_nonfinite(x, np.empty(blocks(len(x)), np.int64))
