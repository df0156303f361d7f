"""The workloads of attention: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("attention"), ids=str)
def bench_attention(time_workload, workload):
    time_workload(workload)
