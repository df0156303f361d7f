"""How much memory this process has used at most. Knows nothing of what used it."""

import re
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes; 0 where the system does not tell."""
    if STATUS.exists():  # its own peak: ru_maxrss begins at that of the process which started this one
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
