"""How much memory this process may still use, as the system and its control groups have it. Knows not what it is for."""

import re
from pathlib import Path

from fastmixer.kernels.threads.limits import CGROUP_ROOT, CGROUPS, cgroup_values, number_in, text_of

MEMINFO = Path("/proc/meminfo")


def available_memory(meminfo: Path = MEMINFO, proc: Path = CGROUPS, root: Path = CGROUP_ROOT) -> int | None:
    """Bytes that this process may still use: the least of what the system calls available and what its control groups
    leave (what they keep of files counts as free); None where the system does not tell."""
    left = cgroup_values("memory", _left_v2, _left_v1, proc, root)
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text_of(meminfo), re.MULTILINE)
    if found:
        left.append(int(found[1]) * 1024)
    return max(0, int(min(left))) if left else None


def _left_v2(folder: Path) -> float | None:
    return _left(folder, "memory.max", "memory.current", "inactive_file")


def _left_v1(folder: Path) -> float | None:
    return _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: str, use: str, cached: str) -> float | None:
    """limit - use + what the kernel would let go (files' pages that are not in use)."""
    most, used = number_in(folder / limit), number_in(folder / use)
    if most is None or used is None:
        return None
    found = re.search(rf"^{cached} (\d+)$", text_of(folder / "memory.stat"), re.MULTILINE)
    return most - used + (int(found[1]) if found else 0)
