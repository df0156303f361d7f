"""Our own Numba kernels, which carry the pipeline where no compiler is: how far from the native ones."""

from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from fastmixer.bench.peers import Comparison, Prepare
from fastmixer.bench.workload import Workload
from fastmixer.bench.workloads import step_workload
from fastmixer.kernels.select import use_kernels


def versions() -> dict[str, str]:
    """What is compared against."""
    return {"numba": version("numba")}


def comparisons() -> list[Comparison]:
    """One training step of GPT-2 124M; the ratio is published, and held to nothing."""
    workload = step_workload(4, 64)
    return [Comparison("step", workload.name, _ours(workload), {"Numba": in_numba(workload)}, None)]


def _ours(workload: Workload) -> Prepare:
    return lambda: workload.prepare(np.random.default_rng(0))


def in_numba(workload: Workload) -> Prepare:
    """The workload on Numba's kernels alone."""

    def prepare() -> Callable[[], object]:
        with use_kernels("jit"):
            call = workload.prepare(np.random.default_rng(0))

        def run() -> object:
            with use_kernels("jit"):
                return call()

        return run

    return prepare
