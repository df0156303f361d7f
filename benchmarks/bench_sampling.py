"""The workloads of sampling: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("sampling"), ids=str)
def bench_sampling(time_workload, workload):
    time_workload(workload)
