"""What a workload is: one named call of the public ops, and the least work that any implementation must do for it.

Knows nothing of timing or of particular ops.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark table.

    prepare(rng) -> call: builds the inputs and returns what is timed; it runs on whichever kernels are selected.
    flops: floating-point operations that the result needs; bytes: what must at least move to or from memory.
    numpy: prepare for the NumPy column where that is not the reference kernel but a plainer idiom (np.add.at).
    precision: of the products that flops counts, "float32" or "bfloat16": it sets which measured peak is the limit.
    stream: of the bytes, "read" or, where about half of them are written, "update": which measured bandwidth is.
    target: what this project holds itself to: ("ratio", 5), so many times faster than the NumPy column, or ("peak", 0.8),
    such a share of the limit; None where it sets no number.
    """

    op: str
    name: str
    prepare: Callable[[np.random.Generator], Callable[[], object]]
    flops: float = 0.0
    bytes: float = 0.0
    numpy: Callable[[np.random.Generator], Callable[[], object]] | None = None
    target: tuple[str, float] | None = None
    heavy: bool = field(default=False)  # seconds a call: timed fewer times
    precision: str = "float32"
    stream: str = "read"

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    def floor_seconds(self, peak_flops: float, bandwidth: float) -> tuple[float, str]:
        """The least time the machine could take, and which limit sets it: "FMA", "bf16" or "memory"."""
        compute, memory = self.flops / peak_flops, self.bytes / bandwidth
        return (compute, "FMA" if self.precision == "float32" else "bf16") if compute >= memory else (memory, "memory")
