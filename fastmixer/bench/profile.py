"""The profile of a whole training step. Knows the workload only; fastmixer/ops/profile.py does the timing."""

import numpy as np

from fastmixer.bench.workload import Workload
from fastmixer.ops.profile import Profile, profiled

WARM, STEPS = 2, 5


def profile_step(workload: Workload) -> Profile:
    """STEPS steps of the workload after WARM ones."""
    call = workload.prepare(np.random.default_rng(0))
    for _ in range(WARM):
        call()
    profile = Profile()
    for _ in range(STEPS):
        with profiled(profile):
            call()
    return profile
