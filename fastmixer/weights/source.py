"""One way in to every kind of model: a GGUF file, a folder, a training run, a name on a hub. Knows no format itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmixer.model.config import ModelConfig
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
