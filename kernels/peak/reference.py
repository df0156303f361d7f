"""The peak probes in NumPy, with the arguments of native.pyx. NumPy has no multiply-add from registers, so its matrix
product, the nearest thing, stands for it.
"""

import numpy as np

SIDE = 512


def fma_rounds(sink, rounds):
    """A matrix product of about the asked size; returns the floating-point operations (NumPy picks the threads)."""
    repeats = max(1, round(rounds * len(sink) / SIDE**3))
    a = np.ones((SIDE, SIDE), np.float32)
    for _ in range(repeats):
        sink[:] = (a @ a)[0, 0]
    return 2.0 * SIDE**3 * repeats


def int8_rounds(sink, rounds):
    """Dot products of 8-bit integers, added up in 32 bits; returns the operations."""
    ones = np.ones(SIDE * SIDE, np.int8)
    repeats = max(1, round(rounds * len(sink) / SIDE**2))
    for _ in range(repeats):
        sink[:] = np.einsum("i,i->", ones, ones, dtype=np.int32)
    return 2.0 * SIDE**2 * repeats


def read_memory(data, sink):
    """Read data: float32 [n] once; returns the bytes read."""
    sink[:] = data.sum()
    return 4.0 * len(data)


def update_memory(data):
    """Read data: float32 [n], change it and write it back; returns the bytes read and written."""
    np.multiply(data, np.float32(0.5), out=data)
    np.add(data, np.float32(0.5), out=data)
    return 8.0 * len(data)
