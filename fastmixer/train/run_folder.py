"""A run's folder: written by one run at a time, its files replaced as a whole. Knows nothing of what they hold."""

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmixer.weights.files import sync

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_owners: dict[Path, tuple[int, int]] = {}  # whose a locked folder is: process (a fork has a copy of this) and thread


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block no other process or thread gets into such a block of the same folder (which is made); the thread
    itself may. OSError if another one is in it. The system lets go of the lock of a process that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    key, owner = folder.resolve(), (os.getpid(), threading.get_ident())
    if fcntl is None or _owners.get(key) == owner:
        yield
        return
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OSError(
                    f"{folder} is in use: another run writes there; wait for its end, or choose another folder"
                ) from error
            warnings.warn(  # some network folders have no locks
                f"{folder / LOCK} cannot be locked ({error.strerror}): see to it that no other run uses this folder",
                RuntimeWarning,
                stacklevel=3,
            )
        _owners[key] = owner
        try:
            yield
        finally:
            _owners.pop(key, None)
    finally:
        os.close(descriptor)  # which unlocks; the file stays, as deleting it would let two in that opened it before


def replace_file(path: Path, text: str) -> None:
    """Make a file hold this text: written beside, synced, then renamed into place. OSError names the file."""
    temporary = path.with_name(f".writing-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
