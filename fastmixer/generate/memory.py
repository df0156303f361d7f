"""More memory than there is refused in words, and free memory given back. Knows nothing of what it is for."""

import ctypes

from fastmixer.memory import available_memory


def require_memory(what: str, size: int, advice: str) -> None:
    """MemoryError, saying what for and what to do, if `size` bytes are more than there is."""
    available = available_memory()
    if available is not None and size > available:
        raise MemoryError(f"{what} takes {size / 1e9:.2f} GB, but {available / 1e9:.2f} GB are available; {advice}")


def return_free_memory() -> None:
    """What the C library keeps of memory that was freed goes back to the system: opening a model leaves 3 MB behind for
    every 100 MB of it. Does nothing where the C library has no such call (it is glibc's)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
