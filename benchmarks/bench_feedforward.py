"""The workloads of feedforward: fastmixer/bench/workloads.py says what they are."""

import pytest

from fastmixer.bench.workloads import workloads


@pytest.mark.parametrize("workload", workloads("feedforward"), ids=str)
def bench_feedforward(time_workload, workload):
    time_workload(workload)
