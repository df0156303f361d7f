"""Dropout whose mask is a function of seed and position (Philox), so that backward is the same call on the gradient.

Knows nothing of layers or steps: the caller makes a seed for each use (fold_seed).
"""

import numpy as np

from fastmixer.kernels.philox import fold_seed
from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_integer, check_number, leading_axes, require_same_or_apart

__all__ = ["check_dropout", "check_seed", "dropout", "fold_seed"]


def dropout(
    x: np.ndarray, rate: float, seed: int, *, residual: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Zero each element of x with probability rate, scale the rest by 1 / (1 - rate), and add residual if given.

    x, residual, out: float32 [...], all of one shape; out may be x or residual, but no part of either. 0 <= rate < 1;
    seed: int in [0, 2^64). The same seed drops the same positions, so the gradient is dropout(d_out, rate, seed). Raises
    TypeError or ValueError. Source: Srivastava et al. 2014; random numbers: Philox4x32-10, Salmon et al. 2011.
    """
    check_number("dropout", "rate", rate, at_least=0, below=1)
    seed = check_seed("dropout", seed)
    axes = leading_axes(x)
    arrays = Arrays("dropout")
    x = arrays.check("x", x, axes)
    residual = arrays.check_optional("residual", residual, axes)
    out = arrays.output("out", out, axes)
    require_same_or_apart("dropout", "out", out, x=x, residual=residual)
    flat_residual = None if residual is None else residual.reshape(-1)
    kernels("dropout").dropout_forward(x.reshape(-1), float(rate), seed, flat_residual, out.reshape(-1))
    return out


def check_dropout(op: str, dropout: float, seed: int) -> tuple[float, int]:
    """(dropout, seed) of an op that drops on its way: a rate in [0, 1), an integer in [0, 2^64); TypeError or ValueError
    otherwise."""
    return float(check_number(op, "dropout", dropout, at_least=0, below=1)), check_seed(op, seed)


def check_seed(op: str, seed: int, name: str = "seed") -> int:
    """seed, the argument `name`, if it is an integer in [0, 2^64); TypeError or ValueError otherwise."""
    seed = check_integer(op, name, seed)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"{op}: {name} must be in [0, 2^64); got {seed}")
    return seed
