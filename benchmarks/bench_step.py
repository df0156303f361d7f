"""The workloads of step: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("step"), ids=str)
def bench_step(time_workload, workload):
    time_workload(workload)
