"""One pass over the parameters: AdamW and SGD; the gradient's norm, and where a number is not finite.

All work is cut into blocks of BLOCK elements, whatever the number of threads; `partial` has one place a block.
"""

BLOCK = 1 << 15


def blocks(count: int) -> int:
    """The number of blocks of `count` elements."""
    return -(-count // BLOCK)


def adamw_factors(
    learning_rate: float, beta1: float, beta2: float, weight_decay: float, step: int
) -> tuple[float, float, float]:
    """What a step multiplies with: (keep, step_size, root_scale), so that

    p = keep * p - step_size * m / (root_scale * sqrt(v) + epsilon), both moments corrected for their start at 0.
    """
    keep = 1.0 - learning_rate * weight_decay
    step_size = learning_rate / (1.0 - beta1**step)
    root_scale = (1.0 - beta2**step) ** -0.5
    return keep, step_size, root_scale
