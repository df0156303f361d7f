"""A model folder: config.json, model.safetensors, tokenizer.json. Knows the files, not what the fields mean."""

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.weights.files import read_json, replace_folder, write_json

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer

FORMAT = "fastmixer"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "generation_config.json")  # what Tokenizer.save may write
CHECKPOINTS = "checkpoints"  # where a training run's folder keeps its model folders


def write_model(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], tokenizer: "Tokenizer | None"
) -> None:
    """Write the files of a model into a folder that exists."""
    write_json(folder / CONFIG, {"model_type": FORMAT, **config})
    write_tensors(folder / WEIGHTS, tensors)
    if tokenizer is not None:
        tokenizer.save(folder)


def save_folder(
    folder: str | Path, config: dict[str, Any], tensors: dict[str, np.ndarray], tokenizer: "Tokenizer | None"
) -> None:
    """Write a model folder, all or nothing: a model that stood there is replaced only once the new one is on the disk.

    FileExistsError if folder holds anything that is not a model's: nothing else is ever deleted.
    """
    folder = Path(folder)
    if folder.exists():
        if not folder.is_dir():
            raise FileExistsError(f"{folder} is a file; a model is saved as a folder")
        others = sorted(path.name for path in folder.iterdir() if path.name not in (CONFIG, WEIGHTS, *TOKENIZER_FILES))
        if others:
            raise FileExistsError(f"{folder} holds {others[0]!r}, which is no part of a model; choose another folder")
    replace_folder(folder, lambda temporary: write_model(temporary, config, tensors, tokenizer))


def load_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray], "Tokenizer | None"]:
    """(config fields, tensors by name, tokenizer or None) of a model folder, or of a run's newest checkpoint.

    FileNotFoundError or ValueError names file and field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a model folder holds {CONFIG} and {WEIGHTS}")
    folder = newest_checkpoint(folder) or folder
    config = read_json(folder / CONFIG)
    kind = config.pop("model_type", None)
    if kind != FORMAT:
        raise ValueError(f"{folder / CONFIG}: model_type must be {FORMAT!r}; got {kind!r}")
    tensors = read_tensors(folder / WEIGHTS)
    tokenizer = None
    if (folder / TOKENIZER).exists():
        from fastmixer.text import Tokenizer

        tokenizer = Tokenizer.load(folder)
    return config, tensors, tokenizer


def list_checkpoints(run: str | Path) -> list[Path]:
    """Complete checkpoints in a training run's folder, oldest first; folders with other names are not looked at."""
    return sorted(path for path in (Path(run) / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest complete checkpoint in a training run's folder, None if it holds none."""
    return max(list_checkpoints(run), default=None)


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Arrays by name as one safetensors file. OSError names the file."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(path))
    except SafetensorError as error:  # which tells of a full disk in words
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise OSError(errno.EIO, str(error), str(path)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name of a safetensors file. FileNotFoundError, or ValueError that names the file and the problem."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
