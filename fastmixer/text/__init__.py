"""Text to ids and back: characters, whole words, or subwords (byte-level BPE). Knows nothing of models."""

from fastmixer.text.tokenizer import KINDS, Tokenizer
from fastmixer.text.training import train_tokenizer

__all__ = ["KINDS", "Tokenizer", "train_tokenizer"]
