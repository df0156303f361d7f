"""Checkpoints: a model folder plus the optimizer's moments and a state.json, each complete or not there.

Written beside, synced, renamed; every file's size and hash stand in state.json and are checked on reading. Knows nothing
of the loop that the state belongs to.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer import __version__
from fastmixer.model import Transformer
from fastmixer.train.optimizer import AdamW
from fastmixer.weights.files import read_json, remove_folder, remove_leftovers, replace_folder, write_json
from fastmixer.weights.folder import (
    CHECKPOINTS,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    list_checkpoints,
    read_tensors,
    write_model,
    write_tensors,
)

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER, OPTIMIZER)  # without which a run does not go on
_KINDS = {int: "an integer", dict: "an object"}


def save_checkpoint(
    run: Path, step: int, model: Transformer, optimizer: AdamW, state: dict[str, Any], keep: int
) -> Path:
    """Write run/checkpoints/step-<step> and delete all but the newest `keep`, once the new one is on the disk.

    state: JSON-able, what the loop needs to go on. Raises OSError (a full disk, say) with every older checkpoint intact.
    """

    def write(folder: Path) -> None:
        parameters = model.parameters
        write_model(folder, model.config.to_dict(), {name: parameters[name] for name in parameters}, model.tokenizer)
        write_tensors(folder / OPTIMIZER, {"m": optimizer.m, "v": optimizer.v})
        files = {
            path.name: {"bytes": path.stat().st_size, "blake2b": _digest(path)} for path in sorted(folder.iterdir())
        }
        write_json(
            folder / STATE,
            {
                "fastmixer": __version__,
                "numpy": np.__version__,
                "step": step,
                "optimizer_steps": optimizer.step_count,
                "state": state,
                "files": files,
            },
        )

    parent = run / CHECKPOINTS
    folder = replace_folder(parent / f"step-{step:08d}", write)
    for old in list_checkpoints(run)[:-keep]:
        remove_folder(old)
    return folder


def clean_up(run: Path) -> None:
    """Remove what a killed process left half written."""
    if (run / CHECKPOINTS).is_dir():
        remove_leftovers(run / CHECKPOINTS)


def restore_checkpoint(run: Path, model: Transformer, optimizer: AdamW) -> tuple[int, dict[str, Any]]:
    """(step, state) of the newest checkpoint, its weights and moments put into model and optimizer.

    FileNotFoundError if there is none; ValueError names a file that is damaged, cut short or missing, and the newest
    checkpoint that is whole.
    """
    folder, saved = whole_checkpoint(run)
    model.set_weights(read_tensors(folder / WEIGHTS), source=str(folder / WEIGHTS))
    moments = read_tensors(folder / OPTIMIZER)
    for name, moment in (("m", optimizer.m), ("v", optimizer.v)):
        if name not in moments or moments[name].shape != moment.shape:
            raise ValueError(f"{folder / OPTIMIZER}: tensor {name!r} must be {moment.shape}")
        moment[...] = moments[name]
    optimizer.step_count = saved["optimizer_steps"]
    return saved["step"], saved["state"]


def whole_checkpoint(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint and what its state.json holds, once every file is as it was written. Raises as
    restore_checkpoint does; OSError as it came, which says nothing of the checkpoint."""
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise FileNotFoundError(f"{run} has no checkpoint to resume from")
    try:
        return checkpoints[-1], _checked(checkpoints[-1])
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{error}. {way_on(run)}") from error


def way_on(run: Path) -> str:
    """What to do about a run whose newest checkpoint is damaged, as a sentence without its end."""
    *older, newest = list_checkpoints(run)
    for folder in reversed(older):
        try:
            _checked(folder)
        except (OSError, ValueError):
            continue
        return f"The checkpoint {folder} is whole: to go on from it, delete {newest} and resume"
    return "There is no older checkpoint that is whole"


def _checked(folder: Path) -> dict[str, Any]:
    """What state.json holds. ValueError names a file that is damaged, cut short or missing, or a field."""
    where, saved = folder / STATE, read_json(folder / STATE)
    for field, kind in (("step", int), ("optimizer_steps", int), ("state", dict), ("files", dict)):
        if field not in saved:
            raise ValueError(f"{where}: field {field!r} is missing")
        if type(saved[field]) is not kind:
            raise ValueError(f"{where}: field {field!r} must be {_KINDS[kind]}; got {str(saved[field])[:80]}")
    for name in FILES:
        if name not in saved["files"]:
            told = ", ".join(saved["files"]) or "nothing"
            raise ValueError(f"{where}: field 'files' must tell of {name}; it tells of {told}")
    for name, expected in saved["files"].items():
        path = folder / name
        if not isinstance(expected, dict) or not {"bytes", "blake2b"} <= set(expected):
            raise ValueError(f"{where}: field 'files' must have bytes and blake2b of {name}; got {str(expected)[:80]}")
        if not path.exists():
            raise ValueError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise ValueError(f"{path} must have {expected['bytes']} bytes; it has {path.stat().st_size}")
        if _digest(path) != expected["blake2b"]:
            raise ValueError(f"{path} is damaged: its hash is not the one in {STATE}")
    return saved


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
