"""The machine's own limit: as many multiply-adds from registers as a product needs, timed in turn with it."""

import numpy as np

from fastmixer.bench.peers import Comparison, Prepare
from fastmixer.bench.workload import Workload
from fastmixer.bench.workloads import workloads
from fastmixer.kernels.peak import flops_call
from fastmixer.ops.bfloat16 import is_fast

# op of the workloads: (group, the limit, the share of it that is held to)
LIMITS = {"matmul": ("GEMM float32", "FMA peak", 0.88), "bfloat16": ("GEMM bf16", "bf16 peak", 0.70)}


def versions() -> dict[str, str]:
    """Nothing: there is no library."""
    return {}


def comparisons() -> list[Comparison]:
    """The linear layers of GPT-2 124M; in bfloat16, with rounding of activations, where there are instructions for it."""
    return [
        Comparison(
            group, workload.name, _ours(workload), {limit: _theirs(workload)}, share, share=True
        )
        for op, (group, limit, share) in LIMITS.items()
        if op == "matmul" or is_fast()
        for workload in workloads(op)
    ]  # fmt: skip


def _ours(workload: Workload) -> Prepare:
    return lambda: workload.prepare(np.random.default_rng(0))


def _theirs(workload: Workload) -> Prepare:
    return lambda: flops_call(workload.flops, workload.precision)
