"""Writing folders and files so that a crash, a kill or a full disk never leaves half of one where a whole one stood.

Knows nothing of what the files hold.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".writing-"
OLD_PREFIX = f"{TEMPORARY_PREFIX}old-"  # what stood there, for the moment between two renames


def replace_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Make folder hold exactly what write(temporary folder) wrote: written beside, synced, then renamed into place.

    If write or syncing fails, the temporary is removed and what stood at folder still stands. Raises OSError; one of the
    system's that named nothing (a full disk is told of without a name) names the folder.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f"{TEMPORARY_PREFIX}{folder.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    old = folder.parent / f"{OLD_PREFIX}{folder.name}"
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def remove_folder(folder: Path) -> None:
    """Delete a folder; a process that is killed meanwhile leaves none of it under its name."""
    doomed = folder.parent / f"{TEMPORARY_PREFIX}{folder.name}-{os.getpid()}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: str | Path) -> None:
    """Clean up after a process that was killed in replace_folder or remove_folder: what it had moved aside and not yet
    replaced comes back under its name, and temporary folders go."""
    for old in Path(parent).glob(f"{OLD_PREFIX}*"):
        folder = old.with_name(old.name.removeprefix(OLD_PREFIX))
        if not folder.exists():
            old.rename(folder)
    for path in Path(parent).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def replace_file(path: Path, text: str) -> None:
    """Make a file hold this text: written beside, synced, then renamed into place. OSError names the file."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Have the operating system put a file or a folder's entries on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """value as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError, or ValueError that names the file and the place."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter: nested too deeply; the former also of numbers too long
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value
