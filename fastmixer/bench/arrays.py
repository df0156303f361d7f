"""Arrays of benchmarks, ours and peers', as the trainer's lie: each begins on a cache line, in a piece that the system backs
with huge pages. NumPy asks for those from 4 MB on; with small pages, which lie anywhere, a product of 3 MB activations took
up to twice as long in one process as in the next. Knows no workloads.
"""

import numpy as np

from fastmixer.kernels.memory import Arena


def empty(*shape: int) -> np.ndarray:
    """float32 [*shape], uninitialized."""
    return Arena().empty(shape, np.float32)


def zeros(*shape: int) -> np.ndarray:
    """float32 [*shape] of zeros."""
    out = empty(*shape)
    out.fill(0)
    return out


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 [*shape] of a standard normal distribution."""
    return rng.standard_normal(out=empty(*shape), dtype=np.float32)
