"""Linear maps over weights kept in 4 or 8 bits, bfloat16 or float32."""

from dataclasses import dataclass

import numpy as np

BLOCK = 32  # numbers with one scale
KINDS = ("float32", "bfloat16", "int8", "int4")
CHANNEL_KIND = "int8_channel"  # what "int8" comes to where nothing is read one row at a time: encoders' linear maps
CHANNEL_GROUP = 48  # inputs with one scale in a row of x, where the weight's kind is that


@dataclass(frozen=True)
class PackedWeight:
    """A weight [outputs, inputs] of one kind, as pack_weight of an implementation laid it out; only that one reads it.

    "float32" and "bfloat16": arrays["rows"], float32 or uint16 [outputs, inputs or more]; "int8" and "int4": blocks of
    32 numbers with a scale and, where the kind or the source has it, a minimum, in the implementation's own order;
    "int8_channel": one scale an output.
    """

    kind: str
    outputs: int
    inputs: int
    arrays: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())
