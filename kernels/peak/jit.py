"""The peak probes in Numba, for machines where nothing native was built. Same arguments as native.pyx."""

import numpy as np

from fastmixer.kernels.jit import compiled
from fastmixer.kernels.threads import parallel_for

PEAK_SUMS = 96  # enough independent sums for LLVM to fill its vector registers
READ_BLOCK = 1 << 16


@compiled
def _fma_task(rounds):
    sums = np.arange(PEAK_SUMS).astype(np.float32)
    a, b = np.float32(0.5), np.float32(0.25)
    for _ in range(rounds):
        for i in range(PEAK_SUMS):
            sums[i] = a * sums[i] + b
    return sums.sum()


def fma_rounds(sink, rounds):
    """One task an element of sink: float32 [threads], each `rounds` times; returns the floating-point operations."""

    def task(index):
        sink[index] = _fma_task(rounds)

    parallel_for(task, len(sink))
    return 2.0 * PEAK_SUMS * rounds * len(sink)


@compiled
def _dot_task(a, b, sums, rounds):
    for _ in range(rounds):
        for i in range(PEAK_SUMS):
            sums[i] += np.int16(a[i]) * np.int16(b[i])


def int8_rounds(sink, rounds):
    """As fma_rounds, with products of 8-bit integers added up in 32 bits."""
    ones = np.ones(PEAK_SUMS, np.int8)

    def task(index):
        sums = np.zeros(PEAK_SUMS, np.int32)
        _dot_task(ones, ones, sums, rounds)
        sink[index] = sums.sum()

    parallel_for(task, len(sink))
    return 2.0 * PEAK_SUMS * rounds * len(sink)


@compiled
def _read_task(block):
    total = np.float32(0)
    for i in range(len(block)):
        total += block[i]
    return total


def read_memory(data, sink):
    """Read data: float32 [n] once on all threads into sink: float32 [ceil(n / 65536)]; returns the bytes read."""

    def task(index):
        sink[index] = _read_task(data[index * READ_BLOCK : (index + 1) * READ_BLOCK])

    parallel_for(task, len(sink))
    return 4.0 * len(data)


@compiled
def _update_task(block):
    half = np.float32(0.5)
    for i in range(len(block)):
        block[i] = half * block[i] + half


def update_memory(data):
    """Read data: float32 [n], change it and write it back, once, on all threads; returns the bytes read and written."""
    parallel_for(
        lambda index: _update_task(data[index * READ_BLOCK : (index + 1) * READ_BLOCK]), -(-len(data) // READ_BLOCK)
    )
    return 8.0 * len(data)
