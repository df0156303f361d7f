"""Vectors for text: sentences -> tokens -> an encoder -> one vector each; and scores of pairs from cross-encoders."""

from fastmixer.embed.sentence_model import Ranked, SentenceModel, load_sentence_model
from fastmixer.embed.vector_file import open_vectors

__all__ = ["Ranked", "SentenceModel", "load_sentence_model", "open_vectors"]
