"""One config-driven transformer: ModelConfig says what it is made of, Transformer trains it, Decoder runs it."""

from fastmixer.model.config import ModelConfig
from fastmixer.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer"]
