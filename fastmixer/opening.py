"""load: a model that people have, ready to answer. Knows where the parts are, nothing of formats or kernels."""

from pathlib import Path
from typing import Any

from fastmixer.embed import load_sentence_model
from fastmixer.generate.language_model import LanguageModel
from fastmixer.generate.memory import require_memory, return_free_memory
from fastmixer.generate.pages import sequence_bytes
from fastmixer.generate.scheduler import CHUNK
from fastmixer.kernels.decoder.pages import DTYPES
from fastmixer.model.decoder import WEIGHTS, Decoder
from fastmixer.model.packed_cache import cache_folder
from fastmixer.model.plan import plan
from fastmixer.ops.checks import check_choice
from fastmixer.weights.encoder_folder import FIRST_ORG, is_encoder_folder, is_sentence_folder
from fastmixer.weights.hub import download, is_hub_name
from fastmixer.weights.source import ModelSource, open_source


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
    packed_cache: bool | str | Path | None = None,
) -> Any:
    """The model of a .gguf file, a folder (Hugging Face's or ours), a training run, or "org/name" on huggingface.co: a
    LanguageModel, or of an encoder, or a decoder in a folder of sentence-transformers (Qwen3-Embedding), a SentenceModel (of
    sentence-transformers' own models the name alone will do).

    weights: how matrices are kept: "auto" (as the file has them; an encoder's in the fastest kind here that keeps its
    vectors), "float32", "bfloat16", "int8" or "int4" (see fastmixer.model.decoder.Decoder). context: the longest sequence of
    a decoder, up to the model's own (None). cache: what keys and values are kept in, "float32", "bfloat16" or "int8";
    cache_tokens: how many, for all sequences together (None: some contexts' worth, as memory allows). offline,
    revision: for names on the hub. progress: a bar for what takes more than a second. packed_cache: where a decoder's packed
    weights are kept, so that the next load maps them instead of packing anew and processes share their memory: a folder,
    True (fastmixer/packed in the user's cache directory), False, or None: as the variable FASTMIXER_PACKED_CACHE says, a
    folder or 1 (without it, nowhere).

    To train a model further, open it with fastmixer.Transformer.load. Raises FileNotFoundError, or ValueError that names
    file, field and value; MemoryError where the cache would not fit.
    """
    check_choice("load", "weights", weights, WEIGHTS)
    check_choice("load", "cache", cache, tuple(DTYPES))
    kept = cache_folder(packed_cache)
    folder = vectors_folder(path_or_name, offline, revision)
    if folder is not None:
        if is_encoder_folder(folder) and (context is not None or packed_cache):
            raise ValueError(f"load: {path_or_name} is an encoder; context and packed_cache are for decoders")
        if cache_tokens is not None:
            raise ValueError(f"load: {path_or_name} is a model of vectors; cache_tokens is for models that write text")
        return load_sentence_model(folder, weights, context=context, progress=progress, packed_cache=kept)
    source = open_source(path_or_name, context=context, offline=offline, revision=revision)
    _require_memory(source, weights, cache)
    decoder = Decoder(source, weights, progress=progress, packed_cache=kept)
    return_free_memory()
    return LanguageModel(
        decoder, source.tokenizer, source.name, source.generation, cache_tokens=cache_tokens, cache_dtype=cache
    )


def _require_memory(source: ModelSource, weights: str, cache: str) -> None:
    """MemoryError, before any work, if the weights and one sequence as long as the context do not fit."""
    wanted = plan(source, weights)
    size = wanted.weight_bytes + sequence_bytes(wanted, CHUNK, cache)
    context = source.config.context
    require_memory(
        f"load: {source.name} with a context of {context} and a cache in {cache}", size,
        "a smaller context, weights of fewer bits or cache='int8' take less",
    )  # fmt: skip


def vectors_folder(path_or_name: str | Path, offline: bool | None, revision: str | None) -> Path | None:
    """Where what makes vectors lies, downloaded if it is a name on the hub; None if it is no such model."""
    path = Path(path_or_name)
    if not path.exists() and isinstance(path_or_name, str):
        name = path_or_name if "/" in path_or_name else f"{FIRST_ORG}/{path_or_name}"
        if not is_hub_name(name) or path.suffix.lower() in (".gguf", ".safetensors"):
            return None
        if "/" not in path_or_name and not _has_sentence_transformers_name(path_or_name):
            return None
        path = download(name, offline=offline, revision=revision)
    return path if path.is_dir() and is_sentence_folder(path) else None


def _has_sentence_transformers_name(name: str) -> bool:
    """Names without an organization are guessed at only where they look like theirs: a mistyped folder is no download."""
    return name.startswith(("all-", "multi-qa-", "paraphrase-", "msmarco-", "distiluse-", "gtr-", "sentence-"))
