"""One way in to every kind of model: a GGUF file, a folder, a training run, a name on a hub. Knows no format itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmixer.model.config import ModelConfig
from fastmixer.weights.hub import is_hub_name
from fastmixer.weights.stored import StoredTensor

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer


@dataclass
class ModelSource:
    """A model that is open but not yet loaded: tensors (see stored.expected_tensors for names) are views of its files.

    generation: defaults that its makers advise (temperature, top_k, top_p, ...).
    """

    name: str
    path: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    tokenizer: "Tokenizer | None" = None
    generation: dict[str, Any] = field(default_factory=dict)


def open_source(
    path_or_name: str | Path, *, context: int | None = None, offline: bool | None = None, revision: str | None = None
) -> ModelSource:
    """The model in a .gguf file, a model folder, a training run's folder (its newest checkpoint), or "org/name" on
    huggingface.co (through its cache; offline: that alone, revision: a branch, tag or commit).

    context: the longest sequence to make ready for, up to the model's own (None). Raises FileNotFoundError, or ValueError
    that names file, field and value; for names also ConnectionError and PermissionError.
    """
    from fastmixer.weights.folder import CONFIG, newest_checkpoint
    from fastmixer.weights.hf_folder import open_folder
    from fastmixer.weights.hub import download
    from fastmixer.weights.safetensors_file import refuse_pickle

    path = Path(path_or_name)
    if path.is_dir():
        folder = path if (path / CONFIG).exists() else newest_checkpoint(path) or path
        files = sorted(path.glob("*.gguf"))
        if not (folder / CONFIG).exists() and files:
            raise FileNotFoundError(f"{path} holds no {CONFIG}; open {files[0]} itself")
        return open_folder(folder, context)
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if path.suffix.lower() == ".gguf" or magic == b"GGUF":
            from fastmixer.weights.gguf_model import open_gguf

            return open_gguf(path, context=context)
        refuse_pickle(path)
        if path.suffix.lower() == ".safetensors":
            raise ValueError(f"{path} holds weights alone; open the folder that has its {CONFIG} too")
        raise ValueError(f"{path} must be a .gguf file or a model's folder; it begins with {magic!r}")
    name = str(path_or_name)
    if isinstance(path_or_name, Path) or not may_be_on_hub(name):
        raise FileNotFoundError(f"{name} does not exist (expected a .gguf file, a model's folder, or org/name)")
    return open_folder(download(name, offline=offline, revision=revision), context, name=name)


def may_be_on_hub(name: str) -> bool:
    """Whether a text may name a model on the hub: it has the form org/name, and does not end as a file of weights, which
    was mistyped then."""
    return is_hub_name(name) and Path(name).suffix.lower() not in (".gguf", ".safetensors")
