"""The profile of a whole training step of GPT-2 124M. Knows the workload only; fastmixer/ops/profile.py does the timing."""

import numpy as np

from fastmixer.bench.workload import Workload
from fastmixer.bench.workloads import step_workload
from fastmixer.ops.profile import Profile, profiled

WARM, STEPS = 2, 5


def profile_step(precision: str = "float32", workload: Workload | None = None) -> Profile:
    """STEPS steps of the workload (4 x 64 tokens of GPT-2 124M if None) after WARM ones."""
    call = (workload or step_workload(4, 64, precision)).prepare(np.random.default_rng(0))
    for _ in range(WARM):
        call()
    profile = Profile()
    for _ in range(STEPS):
        with profiled(profile):
            call()
    return profile
