"""load: a model that people have, ready to answer. Knows where the parts are, nothing of formats or kernels."""

import os
from pathlib import Path
from typing import Any

from fastmixer.generate.language_model import LanguageModel
from fastmixer.generate.memory import require_memory, return_free_memory
from fastmixer.generate.pages import bytes_of_pages, cache_pages, sequence_bytes
from fastmixer.generate.scheduler import CHUNK
from fastmixer.kernels.decoder.pages import DTYPES, PAGE
from fastmixer.model.decoder import WEIGHTS, Decoder
from fastmixer.model.packed_cache import cache_folder
from fastmixer.model.plan import plan
from fastmixer.ops.checks import check_choice, check_integer
from fastmixer.weights.encoder_folder import hub_name_of, is_encoder_folder, is_sentence_folder
from fastmixer.weights.hub import download
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

    weights: how matrices are kept: "auto" (blocks of 4 and 8 bits as the file has them; F32, F16 and BF16 as bfloat16 where
    the processor multiplies it, else float32; an encoder's in the fastest kind here that keeps its vectors), "float32",
    "bfloat16", "int8" or "int4" (see fastmixer.model.decoder.Decoder). context: the longest sequence of
    a decoder, up to the model's own (None). cache: what keys and values are kept in, "float32", "bfloat16" or "int8";
    cache_tokens: how many, at least 64, for all sequences together (None: some contexts' worth, as memory allows). offline,
    revision: for names on the hub. progress: a bar for what takes more than a second. packed_cache: where a decoder's packed
    weights are kept, so that the next load maps them instead of packing anew and processes share their memory: a folder,
    True (fastmixer/packed in the user's cache directory), False, or None: as the variable FASTMIXER_PACKED_CACHE says, a
    folder or 1 (without it, nowhere).

    To train a model further, open it with fastmixer.Transformer.load. Raises FileNotFoundError, or ValueError that names
    file, field and value; MemoryError where the cache would not fit.
    """
    check_choice("load", "weights", weights, WEIGHTS)
    check_choice("load", "cache", cache, tuple(DTYPES))
    if cache_tokens is not None:
        check_integer("load", "cache_tokens", cache_tokens, at_least=PAGE)
    path_or_name = place_of("load", "path_or_name", path_or_name)
    kept = cache_folder(packed_cache)
    folder = vectors_folder(path_or_name, offline, revision)
    if folder is not None:
        if is_encoder_folder(folder) and (context is not None or packed_cache):
            raise ValueError(f"load: {path_or_name} is an encoder; context and packed_cache are for decoders")
        if cache_tokens is not None:
            raise ValueError(f"load: {path_or_name} is a model of vectors; cache_tokens is for models that write text")
        from fastmixer.embed import load_sentence_model  # what a language model does not wait for

        return load_sentence_model(folder, weights, context=context, progress=progress, packed_cache=kept)
    source = open_source(path_or_name, context=context, offline=offline, revision=revision)
    _require_memory(source, weights, cache, cache_tokens)
    decoder = Decoder(source, weights, progress=progress, packed_cache=kept)
    return_free_memory()
    return LanguageModel(
        decoder, source.tokenizer, source.name, source.generation, cache_tokens=cache_tokens, cache_dtype=cache
    )


def place_of(owner: str, name: str, path_or_name: Any) -> str | Path:
    """A model's path or name as it was meant: ~ is a home. TypeError or ValueError for what is neither; owner, name: whose
    argument it is and what that is called, as errors say."""
    if not isinstance(path_or_name, str | os.PathLike):
        kind = type(path_or_name).__name__
        raise TypeError(f"{owner}: {name} must be a string or a path; got {kind}")
    text = os.fspath(path_or_name)
    if not text or not isinstance(text, str):
        raise ValueError(f"{owner}: {name} must name a .gguf file, a model's folder, or org/name; got {text!r}")
    path = Path(text)
    if text.startswith("~") and not path.exists():
        text = os.path.expanduser(text)
        path = Path(text)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{text} is neither a file nor a folder; expected a .gguf file or a model's folder")
    return text if isinstance(path_or_name, str) else path


def _require_memory(source: ModelSource, weights: str, cache: str, cache_tokens: int | None) -> None:
    """MemoryError, before any work, if the weights and the cache (not told how large: one sequence as long as the context)
    do not fit."""
    wanted = plan(source, weights)
    of_what, advice = f"a cache in {cache}", "a smaller context, weights of fewer bits or cache='int8' take less"
    if cache_tokens is None:
        size = sequence_bytes(wanted, CHUNK, cache)
    else:
        size = bytes_of_pages(wanted, cache_pages(wanted, cache_tokens, CHUNK), cache)
        of_what, advice = f"a cache of {cache_tokens} tokens in {cache}", f"fewer cache_tokens, {advice}"
    require_memory(
        f"load: {source.name!r} with a context of {source.config.context} and {of_what}", wanted.weight_bytes + size, advice
    )


def vectors_folder(path_or_name: str | Path, offline: bool | None, revision: str | None) -> Path | None:
    """Where what makes vectors lies, downloaded if it is a name on the hub; None if it is no such model."""
    path = Path(path_or_name)
    if not path.exists() and isinstance(path_or_name, str):
        name = hub_name_of(path_or_name)
        if name is None:
            return None
        path = download(name, offline=offline, revision=revision)
    return path if path.is_dir() and is_sentence_folder(path) else None
