"""Dropout in NumPy. Backward is the same call on d_out, since the mask is a function of seed and position.

Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (JMLR 2014), scaled while
training. Knows nothing of shapes: arrays arrive flat.
"""

import numpy as np

from fastmixer.kernels.philox import flat_words, keep_scale, keep_threshold

BLOCK = 1 << 14  # elements a task, a multiple of four


def dropout_forward(x, rate, seed, residual, out):
    """out = dropout(x) + residual; x, residual (or None), out: float [n]; out may be x or residual."""
    threshold, scale = keep_threshold(rate), keep_scale(rate)
    for start in range(0, len(x), BLOCK):
        stop = min(start + BLOCK, len(x))
        # 1. one random word an element
        words = flat_words(seed, start, stop)
        # 2. keep and scale, or drop
        value = np.where(words >= threshold, x[start:stop] * scale, 0)
        # 3. the residual
        out[start:stop] = value if residual is None else value + residual[start:stop]
