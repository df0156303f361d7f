"""NumPy's OpenBLAS and our matrix products, both held to AVX2: what one makes of the same instructions.

Runs where FASTMIXER_ISA=x86_64_v3 and OPENBLAS_CORETYPE=Haswell were set before NumPy was imported.
"""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmixer.bench.arrays import empty, normal
from fastmixer.bench.peers import Comparison, Prepare
from fastmixer.bench.workloads import LINEAR_SHAPES, PADDED_VOCAB
from fastmixer.ops.matmul import matmul

MAPS = Path("/proc/self/maps")
CONFIG_NAMES = (
    "scipy_openblas_get_config64_",
    "scipy_openblas_get_config",
    "openblas_get_config64_",
    "openblas_get_config",
)
CORE = "Haswell"
PARTS = ("forward", "d_x", "d_weight")


def _openblas() -> str:
    """What the OpenBLAS in this process says of itself, with the kernels it chose; ImportError where there is none."""
    paths = re.findall(r"(/\S*openblas\S*)$", MAPS.read_text(), re.MULTILINE) if MAPS.exists() else []
    for path in dict.fromkeys(paths):
        library = ctypes.CDLL(path)
        for name in CONFIG_NAMES:
            if hasattr(library, name):
                get_config = getattr(library, name)
                get_config.restype = ctypes.c_char_p
                return get_config().decode()
    raise ImportError("NumPy does not compute with OpenBLAS", name="a NumPy that computes with OpenBLAS")


_openblas()  # an ImportError says what is missing


def versions() -> dict[str, str]:
    """What is compared against. RuntimeError if OpenBLAS is not held to AVX2."""
    config = _openblas()
    if CORE not in config.split():
        raise RuntimeError(f"OPENBLAS_CORETYPE={CORE} must be set before NumPy is imported; OpenBLAS runs {config!r}")
    version = re.search(r"OpenBLAS (\S+)", config)
    return {"OpenBLAS": f"{version[1] if version else config} held to {CORE} (AVX2), ours to x86_64_v3"}


def comparisons() -> list[Comparison]:
    """The linear layers of GPT-2 124M on 256 tokens, forward and both gradients, named tokens x out x in."""
    return [
        Comparison(
            "GEMM AVX2", f"{tokens}x{outputs}x{inputs} {part}", _product(tokens, outputs, inputs, part, ours=True),
            {"OpenBLAS": _product(tokens, outputs, inputs, part, ours=False)}, 1.0,
        )
        for tokens, outputs, inputs in LINEAR_SHAPES
        for part in PARTS
    ]  # fmt: skip


def _product(tokens: int, outputs: int, inputs: int, part: str, *, ours: bool) -> Prepare:
    """x W, d_out W^T or x^T d_out; the head's weight is [out, in], all others are [in, out]."""
    head = outputs == PADDED_VOCAB

    def prepare() -> Callable[[], object]:
        rng = np.random.default_rng(0)
        x, d_out = (normal(rng, tokens, width) for width in (inputs, outputs))
        weight = normal(rng, *((outputs, inputs) if head else (inputs, outputs)))
        if part == "forward":
            a, b, transpose_a, transpose_b = x, weight, False, head
        elif part == "d_x":
            a, b, transpose_a, transpose_b = d_out, weight, False, not head
        else:
            a, b, transpose_a, transpose_b = (d_out, x, True, False) if head else (x, d_out, True, False)
        rows, columns = a.shape[1] if transpose_a else a.shape[0], b.shape[0] if transpose_b else b.shape[1]
        out = empty(rows, columns)
        if ours:
            return lambda: matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b, out=out)
        left, right = a.T if transpose_a else a, b.T if transpose_b else b
        return lambda: np.matmul(left, right, out=out)

    return prepare
