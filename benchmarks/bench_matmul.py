"""The workloads of matmul: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("matmul"), ids=str)
def bench_matmul(time_workload, workload):
    time_workload(workload)
