"""Models by name ("org/name") through huggingface_hub: its cache, its offline mode, its progress bars. Knows no formats."""

import os
import re
from pathlib import Path

FILES = [
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*/*.json", "[0-9]_*/*.safetensors",
]  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_name(name: str) -> bool:
    """Whether a text has the form org/name."""
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def download(name: str, *, offline: bool | None = None, revision: str | None = None) -> Path:
    """The folder in huggingface_hub's cache that holds a model's files, fetched first where they are not there yet.

    offline: use the cache alone (None: as HF_HUB_OFFLINE says). revision: a branch, tag or commit. Raises
    FileNotFoundError for a model that does not exist or is not in the cache, ConnectionError without a network,
    PermissionError for one that needs an account, ImportError without huggingface_hub.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ImportError(f"opening {name!r} by name needs huggingface_hub: pip install huggingface_hub") from error

    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    wanted = f"{name}" if revision is None else f"{name} at revision {revision}"
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=FILES, local_files_only=offline)
    except GatedRepoError as error:
        raise PermissionError(
            f"{wanted} asks for its terms to be accepted on huggingface.co, and for an account: run 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision!r} on huggingface.co") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is no folder or file here, and no model on huggingface.co (or a private one, without an account)"
        ) from error
    except LocalEntryNotFoundError as error:
        if offline:
            raise FileNotFoundError(f"{wanted} is not in the cache, and offline mode allows no download") from error
        raise ConnectionError(
            f"{wanted} is not in the cache, and huggingface.co could not be reached: {error}"
        ) from error
    except Exception as error:  # whatever its HTTP library raises; which one that is differs between versions
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, say
            raise
        raise ConnectionError(
            f"{wanted} could not be fetched from huggingface.co: {type(error).__name__}: {error}"
        ) from error
    found = Path(folder)
    if not (found / "config.json").exists():
        reason = "the cache holds" if offline else "it holds"
        raise FileNotFoundError(
            f"{wanted}: {reason} no config.json (a collection of GGUF files? open one of them by its path)"
        )
    return found
