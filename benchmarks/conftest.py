"""Run the workloads of fastmixer.bench under pytest-benchmark, in every implementation that this machine can run.

Groups are workloads, so `--benchmark-group-by=group` (the default here) shows the ratio to NumPy of each line.
"""

import numpy as np
import pytest

from fastmixer.kernels import select


def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        metafunc.parametrize("implementation", select.implementations("matmul"))


@pytest.fixture
def time_workload(benchmark, implementation):
    """time_workload(workload): times the workload's call on the implementation at hand."""

    def run(workload):
        benchmark.group = str(workload)
        plain = workload.numpy is not None and implementation == "reference"
        with select.use_kernels(implementation):
            call = (workload.numpy if plain else workload.prepare)(np.random.default_rng(0))
            call()  # compiles (Numba), touches the memory
            if workload.heavy:
                benchmark.pedantic(call, rounds=3)
            else:
                benchmark(call)

    return run
