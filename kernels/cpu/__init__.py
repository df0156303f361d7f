"""Which instruction-set levels this processor and operating system can run, best first.

Knows nothing of which levels were built: kernels/select.py joins the two.
"""

import platform
from importlib.util import find_spec
from pathlib import Path

from fastmixer.kernels.levels import levels_of


def runnable_levels() -> tuple[str, ...]:
    """Levels that may be executed here, best first; () when no native module was built."""
    if find_spec("fastmixer.kernels.cpu.native") is None:
        return ()
    from fastmixer.kernels.cpu import native

    best = native.level()
    return tuple(level for level, needed in levels_of(platform.machine()).items() if needed <= best)


def processor_name() -> str:
    """What the operating system calls the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Processor")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
