"""Linear maps over weights kept in 4 or 8 bits, bfloat16 or float32."""

from dataclasses import dataclass

import numpy as np

BLOCK = 32  # numbers with one scale
KINDS = ("float32", "bfloat16", "int8", "int4")
CHANNEL_KIND = "int8_channel"
# How linear maps of a kind are kept where many rows of x meet them in every call, as in encoders; others stay as they are.
FOR_MANY_ROWS = {"float32": "float32_panels", "bfloat16": "bfloat16_panels", "int8": CHANNEL_KIND}
CHANNEL_GROUP = 48  # inputs with one scale in a row of x, where the weight's kind is that


@dataclass(frozen=True)
class PackedWeight:
    """A weight [outputs, inputs] of one kind, as pack_weight of an implementation laid it out; only that one reads it.

    "float32" and "bfloat16": arrays["rows"], float32 or uint16 [outputs, inputs or more]; "int8" and "int4": blocks of
    32 numbers with a scale and, where the kind or the source has it, a minimum, in the implementation's own order;
    "int8_channel": one scale an output. "float32_panels" and "bfloat16_panels": the same numbers as without the word, as an
    implementation's products of many rows read them best.
    """

    kind: str
    outputs: int
    inputs: int
    arrays: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())
