"""The workloads of cross_entropy: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("cross_entropy"), ids=str)
def bench_cross_entropy(time_workload, workload):
    time_workload(workload)
