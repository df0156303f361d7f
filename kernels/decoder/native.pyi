"""What every native level of this op offers; shapes and meaning: reference.py, spec.py, pages.py."""

import numpy as np

from fastmixer.kernels.decoder.pages import KVPages
from fastmixer.kernels.decoder.spec import DecoderSpec

class Decoder:
    spec: DecoderSpec
    def __init__(self, spec: DecoderSpec) -> None: ...
    def forward(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        first_positions: np.ndarray,
        pages: KVPages,
        tables: np.ndarray,
        wanted: np.ndarray,
        logits: np.ndarray | None,
        hidden: np.ndarray | None,
        written: np.ndarray | None = None,
    ) -> None: ...
