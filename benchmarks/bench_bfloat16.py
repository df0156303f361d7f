"""The workloads of bfloat16: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("bfloat16"), ids=str)
def bench_bfloat16(time_workload, workload):
    time_workload(workload)
