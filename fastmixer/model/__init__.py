"""One config-driven transformer: ModelConfig says what it is made of, Transformer trains it, Decoder runs it."""

from typing import TYPE_CHECKING, Any

from fastmixer.model.config import ModelConfig

if TYPE_CHECKING:
    from fastmixer.model.transformer import Transformer as Transformer

__all__ = ["ModelConfig", "Transformer"]


def __getattr__(name: str) -> Any:
    """Transformer is imported when it is asked for: a model that only runs does without what trains it."""
    if name != "Transformer":
        raise AttributeError(f"module 'fastmixer.model' has no attribute {name!r}")
    from fastmixer.model.transformer import Transformer

    return Transformer
