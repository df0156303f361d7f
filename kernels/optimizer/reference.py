"""AdamW, SGD and the gradient's norm in NumPy.

Loshchilov, Hutter, "Decoupled weight decay regularization" (ICLR 2019), in the form of torch.optim.AdamW. Knows
nothing of parameters' names or which of them decay: arrays arrive flat.
"""

import numpy as np

from fastmixer.kernels.bfloat16 import panels_over_columns, panels_over_rows
from fastmixer.kernels.optimizer import BLOCK, adamw_factors


def adamw(
    p, m, v, g, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale, zero_gradient
):  # fmt: skip
    """One AdamW step, in place. p, m, v, g: float [n]; step counts from 1; g is written only if zero_gradient."""
    keep, step_size, root_scale = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    for start in range(0, len(p), BLOCK):  # a block at a time: temporaries stay in cache
        part = slice(start, start + BLOCK)
        # 1. clip
        gradient = g[part] * p.dtype.type(gradient_scale)
        # 2. the moments
        m[part] = beta1 * m[part] + (1 - beta1) * gradient
        v[part] = beta2 * v[part] + (1 - beta2) * gradient * gradient
        # 3. decay and step
        p[part] = keep * p[part] - step_size * m[part] / (root_scale * np.sqrt(v[part]) + epsilon)
        # 4. zero the gradient
        if zero_gradient:
            g[part] = 0


def adamw_bfloat16(
    p, m, v, g, over_rows, over_columns, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale,
    zero_gradient,
):  # fmt: skip
    """One AdamW step of a matrix p, m, v, g: float32 [rows, columns], and its rounded copies in panels
    (kernels/bfloat16.py), over_rows: uint32 [ceil(columns / 48), ceil(rows / 2), 48] and over_columns: uint32
    [ceil(rows / 48), ceil(columns / 2), 48]."""
    adamw(
        p.reshape(-1), m.reshape(-1), v.reshape(-1), g.reshape(-1), learning_rate, beta1, beta2, epsilon, weight_decay, step,
        gradient_scale, zero_gradient,
    )  # fmt: skip
    over_rows[...], over_columns[...] = panels_over_rows(p), panels_over_columns(p)


def sgd(p, g, learning_rate, gradient_scale, zero_gradient):
    """p -= learning_rate * gradient_scale * g. p, g: float [n]; g is written only if zero_gradient."""
    p -= (learning_rate * gradient_scale) * g
    if zero_gradient:
        g[:] = 0


def squared_norm(g, partial):
    """The sum of g^2 as a float, summed in float64. g: float [n]; partial: float64 [blocks(n)], scratch."""
    for block in range(len(partial)):
        part = g[block * BLOCK : (block + 1) * BLOCK].astype(np.float64)
        partial[block] = part @ part
    return float(sum(partial))


def first_nonfinite(x, partial):
    """The index of the first NaN or infinity in x: float [n], -1 if none; partial: int64 [blocks(n)], scratch."""
    finite = np.isfinite(x)
    return -1 if finite.all() else int(finite.argmin())
