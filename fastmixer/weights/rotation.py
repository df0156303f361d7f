"""Rotary frequencies for longer texts than a model was first trained with, whatever its file calls them.

Knows no files and no fields.
"""

import math

import numpy as np


def yarn_factors(
    rotary_dim: int,
    base: float,
    factor: float,
    original: int,
    *,
    fast_turns: float,
    slow_turns: float,
    truncate: bool = True,
) -> np.ndarray:
    """float64 [rotary_dim / 2], what each frequency is divided by: those that turn fast_turns times within the original
    context by nothing, those that turn slow_turns times by factor, on a ramp over their number between (Peng et al. 2023,
    arXiv 2309.00071). base must be > 1; truncate: the ramp begins and ends at whole numbers."""

    def number(turns: float) -> float:
        """Of the frequency that turns so often. What is far outside, even too far for a float, lies just outside."""
        ratio = min(max(original / (turns * 2 * math.pi), 1e-300), 1e300)
        return min(max(rotary_dim * math.log(ratio) / (2 * math.log(base)), -1.0), float(rotary_dim))

    low, high = number(fast_turns), number(slow_turns)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    slow = ((np.arange(rotary_dim // 2) - low) / max(high - low, 0.001)).clip(0, 1)
    return 1 / (slow / factor + (1 - slow))
