"""Any model that can be opened, written as a GGUF file or as a folder that transformers opens."""

from collections.abc import Callable
from pathlib import Path

from fastmixer.weights.gguf_export import write_gguf_model
from fastmixer.weights.hf_export import write_hf_folder
from fastmixer.weights.quantized import WRITABLE
from fastmixer.weights.source import ModelSource


def convert(
    source: ModelSource,
    target: str | Path,
    type: str | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Path:
    """Write a model to target, all or nothing; returns its path.

    target: a name that ends in .gguf, or a folder. type: of the matrices, F32, F16, BF16 and for GGUF also Q8_0 and Q4_0, in
    any case (None: as they are stored; quantized ones become F32 in a folder); a warning tells which matrices of a GGUF file
    are F16 instead, as their rows are no multiple of the 32 numbers of a block. progress is called with the bytes of each
    tensor that is written. Raises ValueError naming what cannot be written; FileExistsError for a folder that holds
    anything that is not a model's.
    """
    target = Path(target)
    name = None if type is None else type.upper()
    if name is not None and name not in WRITABLE:
        raise ValueError(f"convert: type must be one of {', '.join(WRITABLE)}; got {type!r}")
    if target.suffix.lower() == ".gguf":
        if target.is_dir():
            raise FileExistsError(f"{target} is a folder; choose another name for the file")
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_gguf_model(source, target, name, progress)
    return write_hf_folder(source, target, name, progress)
