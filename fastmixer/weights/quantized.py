"""The block formats of quantized weights, as readers and writers of files name them. The formats themselves stand with
the kernels that pack them: kernels/packed/formats.py."""

from fastmixer.kernels.packed.formats import (
    BY_NAME,
    IQ4_VALUES,
    NUMBERS,
    SUPER,
    TYPES,
    WRITABLE,
    BlockType,
    dequantize,
    quantize,
)

__all__ = [
    "BY_NAME", "IQ4_VALUES", "NUMBERS", "SUPER", "TYPES", "WRITABLE", "BlockType", "dequantize", "quantize",
]  # fmt: skip
