"""LayerNorm and RMSNorm in NumPy.

Ba, Kiros, Hinton, "Layer normalization" (2016); Zhang, Sennrich, "Root mean square layer normalization" (2019).
Knows nothing of where in a layer it stands.
"""

import numpy as np


def layernorm_forward(x, weight, bias, epsilon, out, mean, inverse_std):
    """out = (x - mean) * inverse_std * weight + bias, each row of x by its own mean and variance.

    x, out: float [tokens, dim]; weight, bias (or None): float [dim]; mean, inverse_std: float [tokens].
    """
    if x.size == 0:  # NumPy would warn of the mean of nothing
        return
    # 1. the row's mean and inverse standard deviation
    mean[:] = x.mean(axis=1)
    centred = x - mean[:, None]
    inverse_std[:] = 1 / np.sqrt((centred * centred).mean(axis=1) + x.dtype.type(epsilon))
    # 2. normalize, scale and shift
    result = centred * inverse_std[:, None] * weight
    out[:] = result if bias is None else result + bias


def layernorm_backward(d_out, x, weight, mean, inverse_std, d_residual, d_x, d_weight, d_bias, partial):
    """d_x = d_residual + the gradient; d_weight += ...; d_bias += ...

    d_out, x, d_residual (or None), d_x: float [tokens, dim]; weight, d_weight, d_bias (or None): float [dim];
    mean, inverse_std: float [tokens]; partial: float [row_blocks(tokens), 2, dim], scratch.
    """
    if x.size == 0:
        return
    # 1. the parameter gradients
    normalized = (x - mean[:, None]) * inverse_std[:, None]
    d_weight += (d_out * normalized).sum(axis=0)
    if d_bias is not None:
        d_bias += d_out.sum(axis=0)
    # 2. what the row's mean and variance take out of the gradient
    d_normalized = d_out * weight
    along_mean = d_normalized.mean(axis=1)
    along_normalized = (d_normalized * normalized).mean(axis=1)
    # 3. the gradient of the row
    gradient = d_normalized - along_mean[:, None] - normalized * along_normalized[:, None]
    gradient *= inverse_std[:, None]
    d_x[:] = gradient if d_residual is None else gradient + d_residual


def rmsnorm_forward(x, weight, epsilon, out, inverse_rms):
    """out = x * inverse_rms * weight, each row of x by its own root mean square.

    x, out: float [tokens, dim]; weight: float [dim]; inverse_rms: float [tokens].
    """
    if x.size == 0:
        return
    # 1. the row's inverse root mean square
    inverse_rms[:] = 1 / np.sqrt((x * x).mean(axis=1) + x.dtype.type(epsilon))
    # 2. normalize and scale
    out[:] = x * inverse_rms[:, None] * weight


def rmsnorm_backward(d_out, x, weight, inverse_rms, d_residual, d_x, d_weight, partial):
    """d_x = d_residual + the gradient; d_weight += ...

    d_out, x, d_residual (or None), d_x: float [tokens, dim]; weight, d_weight: float [dim];
    inverse_rms: float [tokens]; partial: float [row_blocks(tokens), 1, dim], scratch.
    """
    if x.size == 0:
        return
    # 1. the parameter gradient
    normalized = x * inverse_rms[:, None]
    d_weight += (d_out * normalized).sum(axis=0)
    # 2. what the row's root mean square takes out of the gradient
    d_normalized = d_out * weight
    along_normalized = (d_normalized * normalized).mean(axis=1)
    # 3. the gradient of the row
    gradient = d_normalized - normalized * along_normalized[:, None]
    gradient *= inverse_rms[:, None]
    d_x[:] = gradient if d_residual is None else gradient + d_residual
