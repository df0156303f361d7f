"""The measured limits of this machine, probed once a process: FLOP/s from registers, bytes/s from memory.

Memory has two: what is only read, and what is read, changed and written back (an optimizer's arrays, a residual stream),
which passes more bytes a second where reading and writing have channels of their own.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import numpy as np

from fastmixer.kernels.levels import MULTIPLY_BFLOAT16
from fastmixer.kernels.select import implementations, kernel_module
from fastmixer.kernels.threads import get_threads

PROBE_SECONDS = 0.02  # one timed piece: longer than a scheduler's hiccup is rare, shorter than a user notices
PROBE_REPEATS = 7  # best of: neighbours on a shared machine only ever slow a probe down
READ_FLOATS = 1 << 26  # 256 MB, well past every cache
READ_BLOCK = 1 << 16
STREAMS = ("read", "update")


def measured_peak_flops(precision: str = "float32") -> float:
    """Fused multiply-adds per second on the current number of threads, as FLOP/s (two an FMA); cached. precision
    "bfloat16", "int8": those of their dot products."""
    return _peak_flops(get_threads(), precision)


def measured_bandwidth(stream: str = "read") -> float:
    """Bytes per second between memory and the current number of threads; cached. stream "read", or "update": bytes read
    and written, of data changed in place."""
    return _bandwidth(get_threads(), stream)


def probe_flops(seconds: float = PROBE_SECONDS, precision: str = "float32") -> float:
    """One fresh probe of FLOP/s, not cached: for benchmarks that interleave probe and kernel.

    precision "bfloat16": of its dot product, added up in float32, by tiles where there are tiles; without instructions
    for it, of float32. "int8": of dot products of 8-bit integers, as this processor's kernels add them up.
    """
    probe = _flops_probe(precision)
    sink = np.zeros(get_threads(), np.float32)
    rounds, elapsed, operations = 1000, 0.0, 0.0
    while elapsed < seconds:
        rounds *= 2
        start = time.perf_counter()
        operations = probe(sink, rounds)
        elapsed = time.perf_counter() - start
    return operations / elapsed


def flops_call(flops: float, precision: str = "float32") -> Callable[[], float]:
    """A call that does about so many operations from registers, on the current threads, and returns their number: what
    a kernel that does as many is timed beside."""
    probe, sink, few = _flops_probe(precision), np.zeros(get_threads(), np.float32), 1000
    rounds = max(1, round(few * flops / probe(sink, few)))
    return lambda: probe(sink, rounds)


def probe_bandwidth(data: np.ndarray | None = None, stream: str = "read") -> float:
    """One fresh probe of bytes/s over data: float32 [n] (256 MB of its own if None); "update" changes it."""
    if data is None:
        data = np.ones(READ_FLOATS, np.float32)
    if stream == "update":
        start = time.perf_counter()
        count = _probes().update_memory(data)
        return count / (time.perf_counter() - start)
    sink = np.zeros((len(data) + READ_BLOCK - 1) // READ_BLOCK, np.float32)
    start = time.perf_counter()
    count = _probes().read_memory(data, sink)
    return count / (time.perf_counter() - start)


def _flops_probe(precision: str) -> Callable[[np.ndarray, int], float]:
    probes = _probes()
    if precision == "int8":
        return probes.int8_rounds
    rounded = precision == "bfloat16" and probes.__name__.endswith(MULTIPLY_BFLOAT16)
    return probes.bfloat16_rounds if rounded else probes.fma_rounds


@lru_cache
def _probes() -> ModuleType:
    """The best probes that run here, whatever kernels are forced: the limit is the machine's, not an implementation's."""
    _, jit, *native = implementations("peak")
    return kernel_module("peak", native[0] if native else jit)


@lru_cache
def _peak_flops(threads: int, precision: str) -> float:
    return max(probe_flops(precision=precision) for _ in range(PROBE_REPEATS))


@lru_cache
def _bandwidth(threads: int, stream: str) -> float:
    data = np.ones(READ_FLOATS, np.float32)
    return max(probe_bandwidth(data, stream) for _ in range(PROBE_REPEATS))
