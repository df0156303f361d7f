"""How many threads this process should use: affinity mask, cgroup CPU quota, physical cores.

Knows nothing of the pool. Every source that is absent (another operating system), not ours to read, or says what is no
number simply sets no limit.
"""

import os
from collections.abc import Callable
from pathlib import Path

MOST_THREADS = 1024  # MAX_THREADS in pool.c
CGROUPS, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
Reader = Callable[[Path], float | None]


def default_threads() -> int:
    """min(affinity mask, cgroup quota rounded down but at least 1, physical cores)."""
    allowed = allowed_processors()
    quota = cgroup_quota()
    limits = [len(allowed), physical_cores(allowed)]
    if quota is not None:
        limits.append(max(1, int(quota)))
    return max(1, min(limits))


def allowed_processors() -> set[int]:
    """Numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(processors: set[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Distinct cores among these logical processors; hyper-threads share their core's multipliers."""
    siblings = set()
    for processor in processors:
        path = root / f"cpu{processor}" / "topology" / "thread_siblings_list"
        siblings.add(text_of(path).strip() or f"alone:{processor}")
    return len(siblings)


def cgroup_quota(proc: Path = CGROUPS, root: Path = CGROUP_ROOT) -> float | None:
    """The tightest CPU quota, in processors, of this process's control groups (v2 or v1); None if unlimited."""
    return min(cgroup_values("cpu", _quota_v2, _quota_v1, proc, root), default=None)


def cgroup_values(controller: str, read_v2: Reader, read_v1: Reader, proc: Path, root: Path) -> list[float]:
    """What read_v2 or read_v1 find, if anything, in the folders of this process's control groups and all their parents:
    each of their limits binds."""
    values: list[float] = []
    for line in text_of(proc).splitlines():
        fields = line.split(":", 2)
        if len(fields) < 3:
            continue
        _, controllers, path = fields
        if controllers == "":
            values += _values_upwards(root, path, read_v2)
        elif controller in controllers.split(","):
            values += _values_upwards(root / controllers, path, read_v1)
            values += _values_upwards(root / controller, path, read_v1)
    return values


def _values_upwards(root: Path, path: str, read: Reader) -> list[float]:
    folder = root / path.lstrip("/")
    values = []
    while True:
        value = read(folder)
        if value is not None:
            values.append(value)
        if folder == root or root not in folder.parents:
            return values
        folder = folder.parent


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = text_of(folder / "cpu.max").strip().partition(" ")
    return _share(_number(quota), _number(period))


def _quota_v1(folder: Path) -> float | None:
    return _share(number_in(folder / "cpu.cfs_quota_us"), number_in(folder / "cpu.cfs_period_us"))


def _share(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period else None


def number_in(path: Path) -> int | None:
    """The number that a file holds; None where there is none: no such file, "max", -1, or anything else."""
    return _number(text_of(path).strip())


def text_of(path: Path) -> str:
    """A small file's text, "" where it is absent or not ours to read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
