"""Positions in NumPy, float32 or float64: the truth that jit.py and native.pyx are held to.

Sources: sinusoids, Vaswani et al. 2017 (arXiv 1706.03762); RoPE, Su et al. 2021 (arXiv 2104.09864), with the pairs
(i, i + head_dim / 2) that Llama uses.
"""


def rotate(x, cos, sin, positions, inverse, out):
    """out = x [batch, heads, time, head_dim] (strided; out may be x) rotated by positions [batch, time]: the pair
    (i, i + half) turns by the angle whose cosine and sine stand in cos, sin [context, head_dim / 2]."""
    half = x.shape[-1] // 2
    c, s = cos[positions][:, None], sin[positions][:, None]
    if inverse:
        s = -s
    first, second = x[..., :half].copy(), x[..., half:].copy()
    out[..., :half] = first * c - second * s
    out[..., half:] = second * c + first * s


def add_positions(x, table, positions):
    """x [tokens, dim] += table [context, dim] at positions [tokens], in place."""
    x += table[positions]
