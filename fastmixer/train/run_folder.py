"""A run's folder: written by one run at a time. Knows nothing of what it holds."""

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
        if os.getpid() == owner[0]:  # a child made meanwhile has a copy of the descriptor, and would hold the lock on
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)  # which unlocks, too; the file stays, as deleting it would let two in that opened it before
