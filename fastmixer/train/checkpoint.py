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
    WEIGHTS,
    list_checkpoints,
    newest_checkpoint,
    read_tensors,
    write_model,
    write_tensors,
)

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


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

    FileNotFoundError if there is none; ValueError names a file that is damaged, cut short or missing.
    """
    folder = newest_checkpoint(run)
    if folder is None:
        raise FileNotFoundError(f"{run} has no checkpoint to resume from")
    saved = read_json(folder / STATE)
    for field in ("step", "optimizer_steps", "state", "files"):
        if field not in saved:
            raise ValueError(f"{folder / STATE}: field {field!r} is missing")
    for name, expected in saved["files"].items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise ValueError(f"{path} must have {expected['bytes']} bytes; it has {path.stat().st_size}")
        if _digest(path) != expected["blake2b"]:
            raise ValueError(f"{path} is damaged: its hash is not the one in {STATE}")
    model.set_weights(read_tensors(folder / WEIGHTS), source=str(folder / WEIGHTS))
    moments = read_tensors(folder / OPTIMIZER)
    for name, moment in (("m", optimizer.m), ("v", optimizer.v)):
        if name not in moments or moments[name].shape != moment.shape:
            raise ValueError(f"{folder / OPTIMIZER}: tensor {name!r} must be {moment.shape}")
        moment[...] = moments[name]
    optimizer.step_count = saved["optimizer_steps"]
    return saved["step"], saved["state"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
