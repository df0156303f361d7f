"""The workloads of dropout: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("dropout"), ids=str)
def bench_dropout(time_workload, workload):
    time_workload(workload)
