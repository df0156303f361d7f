"""Times workloads: every implementation and the machine's peak interleaved in one run, medians of many.

Knows nothing of particular ops, or of how results are shown.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fastmixer.bench.workload import Workload
from fastmixer.kernels.peak import READ_FLOATS, STREAMS, probe_bandwidth, probe_flops
from fastmixer.kernels.select import implementations, use_kernels

ROUNDS = 15  # per implementation, interleaved
HEAVY_ROUNDS = 5
ROUND_SECONDS = 0.02  # a quick call is repeated until a round takes about this long
# OpenBLAS workers spin for 60 to 100 ms after a product of NumPy's, on cores that the next column needs: without this
# pause ours took 1.8 times as long.
SETTLE_SECONDS = 0.12
SEED = 0


@dataclass(frozen=True)
class Timing:
    """One workload's result. seconds: median seconds a call, by column; spread: (slowest - fastest) / median."""

    workload: Workload
    seconds: dict[str, float]
    spread: dict[str, float]
    peak_flops: float
    bandwidth: float

    def ratio(self, column: str) -> float:
        """How many times faster this column is than NumPy."""
        return self.seconds["reference"] / self.seconds[column]

    def share(self, column: str) -> tuple[float, str]:
        """The part of the machine's limit that this column reaches, and which limit: "FMA" or "memory"."""
        floor, limit = self.workload.floor_seconds(self.peak_flops, self.bandwidth)
        return floor / self.seconds[column], limit

    def best_native(self) -> str | None:
        """The native column, None if nothing native was built."""
        return next((name for name in self.seconds if name.startswith("native")), None)

    def reaches_target(self) -> bool | None:
        """Whether the best native column reaches the workload's target; None without one."""
        column = self.best_native()
        if self.workload.target is None or column is None:
            return None
        kind, wanted = self.workload.target
        return (self.ratio(column) if kind == "ratio" else self.share(column)[0]) >= wanted


def columns(every_level: bool = False) -> list[str]:
    """Implementations to time: reference, jit and the best native level (or every one)."""
    found = list(implementations("matmul"))
    return found if every_level else found[:3]


def run(selected: Iterable[Workload], names: list[str], rounds: int = ROUNDS) -> Iterator[Timing]:
    """Time each workload in each implementation of names; yields a Timing as soon as it is there."""
    memory = np.ones(READ_FLOATS, np.float32)
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}  # limits: the best of all rounds so far
    bandwidths = {stream: [probe_bandwidth(memory, stream)] for stream in STREAMS}
    for workload in selected:
        yield _time_one(
            workload, names, min(rounds, HEAVY_ROUNDS) if workload.heavy else rounds, memory, peaks, bandwidths
        )


def _time_one(
    workload: Workload,
    names: list[str],
    rounds: int,
    memory: np.ndarray,
    peaks: dict[str, list[float]],
    bandwidths: dict[str, list[float]],
) -> Timing:
    calls: dict[str, Callable[[], object]] = {}
    repeats: dict[str, int] = {}
    for name in names:
        plain = workload.numpy is not None and name == "reference"
        with use_kernels(name):
            call = (workload.numpy if plain else workload.prepare)(np.random.default_rng(SEED))  # type: ignore[misc]
            call()  # compiles (Numba), touches the memory
            start = time.perf_counter()
            call()
            calls[name], repeats[name] = call, max(1, round(ROUND_SECONDS / (time.perf_counter() - start)))

    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for _ in range(rounds):
        peaks[workload.precision].append(probe_flops(ROUND_SECONDS / 2, workload.precision))
        bandwidths[workload.stream].append(probe_bandwidth(memory, workload.stream))
        for name in names:
            with use_kernels(name):
                calls[name]()  # wakes the threads that it needs, and the processor
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    calls[name]()
                times[name].append((time.perf_counter() - start) / repeats[name])
            if name == "reference":
                time.sleep(SETTLE_SECONDS)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    spread = {name: (max(values) - min(values)) / seconds[name] for name, values in times.items()}
    limits = max(peaks[workload.precision]), max(bandwidths[workload.stream])
    return Timing(workload, seconds, spread, *limits)
