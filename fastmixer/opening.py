"""load: a model that people have, ready to answer. Knows where the parts are, nothing of formats or kernels."""

from pathlib import Path

from fastmixer.generate.language_model import LanguageModel
from fastmixer.model.decoder import Decoder
from fastmixer.weights.source import open_source


def load(
    path_or_name: str | Path,
    *,
    weights: str = "auto",
    context: int | None = None,
    cache: str = "bfloat16",
    cache_tokens: int | None = None,
    offline: bool | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> LanguageModel:
    """The model of a .gguf file, a folder (Hugging Face's or ours), a training run, or "org/name" on huggingface.co.

    weights: how matrices are kept: "auto" (as the file has them), "float32", "bfloat16", "int8" or "int4" (see
    fastmixer.model.decoder.Decoder). context: the longest sequence, up to the model's own (None). cache: what keys and
    values are kept in, "float32", "bfloat16" or "int8"; cache_tokens: how many, for all sequences together (None: some
    contexts' worth, as memory allows). offline, revision: for names on the hub. progress: a bar for what takes more than a
    second.

    To train a model further, open it with fastmixer.Transformer.load. Raises FileNotFoundError, or ValueError that names
    file, field and value; MemoryError where the cache would not fit.
    """
    source = open_source(path_or_name, context=context, offline=offline, revision=revision)
    decoder = Decoder(source, weights, progress=progress)
    return LanguageModel(
        decoder, source.tokenizer, source.name, source.generation, cache_tokens=cache_tokens, cache_dtype=cache
    )
