"""The workloads of embedding: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("embedding"), ids=str)
def bench_embedding(time_workload, workload):
    time_workload(workload)
