"""What every native level of this op offers; shapes and meaning: reference.py, spec.py."""

import numpy as np

from fastmixer.kernels.encoder.spec import EncoderSpec

class Encoder:
    spec: EncoderSpec
    def __init__(self, spec: EncoderSpec) -> None: ...
    def forward(
        self, ids: np.ndarray, starts: np.ndarray, token_types: np.ndarray | None, hidden: np.ndarray
    ) -> None: ...
