"""The workloads of optimizer: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("optimizer"), ids=str)
def bench_optimizer(time_workload, workload):
    time_workload(workload)
