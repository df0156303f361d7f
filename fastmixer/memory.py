"""How much memory this process has taken. Knows nothing of what took it."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
KILOBYTE = 1024  # the unit of /proc and of ru_maxrss everywhere but on macOS


def peak_memory() -> float:
    """The most memory this process has held at once (resident, not only reserved), in megabytes of 10^6 bytes."""
    if STATUS.exists():  # Linux; its ru_maxrss would begin with the peak of the process that started this one
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KILOBYTE / 1e6
    unit = 1 if sys.platform == "darwin" else KILOBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
