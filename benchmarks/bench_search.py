"""The workloads of search: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("search"), ids=str)
def bench_search(time_workload, workload):
    time_workload(workload)
