"""The workloads of positions: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("positions"), ids=str)
def bench_positions(time_workload, workload):
    time_workload(workload)
