"""What every native level of this op offers; shapes and meaning: reference.py."""

import numpy as np

from fastmixer.kernels.packed import PackedWeight

def pack_weight(raw: np.ndarray, type_name: str, outputs: int, inputs: int, kind: str) -> PackedWeight: ...
def packed_linear(
    x: np.ndarray, packed: PackedWeight, bias: np.ndarray | None, out: np.ndarray, outliers: int = 0
) -> None: ...
def packed_rows(packed: PackedWeight, ids: np.ndarray, out: np.ndarray) -> None: ...
