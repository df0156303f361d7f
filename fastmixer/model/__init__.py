"""One config-driven transformer: ModelConfig says what it is made of, Transformer computes, load opens a folder."""

from pathlib import Path

from fastmixer.model.config import ModelConfig
from fastmixer.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "load"]


def load(path: str | Path) -> Transformer:
    """The model in a folder that model.save() or a training run wrote, with its tokenizer.

    Raises FileNotFoundError or ValueError naming the file, the field and the value.
    """
    return Transformer.load(path)
