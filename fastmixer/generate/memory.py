"""How much memory there is to be had, and a refusal in words before it is asked for. Knows nothing of what it is for."""

import ctypes
import re
from pathlib import Path

MEMORY, GROUPS, OWN_GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# (folder below GROUPS, limit, use) of the two versions of control groups.
_VERSIONS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_memory() -> int | None:
    """Bytes that this process can still take: what the system has, within its control groups' limits (what they keep of
    files counts as free); None where nothing says."""
    found = []
    if MEMORY.exists():
        line = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMORY.read_text(), re.MULTILINE)
        if line:
            found.append(int(line[1]) * 1024)
    for folder, limit, use in _VERSIONS:
        for group in _own_groups(folder):
            most, used = _number(group / limit), _number(group / use)
            if most is not None and used is not None:
                found.append(max(0, most - used + _file_bytes(group / "memory.stat")))
    return min(found, default=None)


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


def _own_groups(folder: str) -> list[Path]:
    """The process's control group of this version, and those around it."""
    if not OWN_GROUPS.exists():
        return []
    paths = []
    for line in OWN_GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if folder in controllers.split(","):
            root = GROUPS / folder
            own = root / path.lstrip("/")
            paths += [group for group in (own, *own.parents) if group.is_relative_to(root)]
            paths.append(root)
    return list(dict.fromkeys(paths))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:  # it may be absent, or not ours to read
        return None
    return int(text) if text.isdecimal() else None


def _file_bytes(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    pairs = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(pairs.get("total_inactive_file", pairs.get("inactive_file", 0)))
