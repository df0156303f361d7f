"""The workloads of norm: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("norm"), ids=str)
def bench_norm(time_workload, workload):
    time_workload(workload)
