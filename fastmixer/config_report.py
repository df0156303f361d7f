"""What fastmixer chose on this machine and why, for people and bug reports: kernels, levels, threads, measured limits.

Knows nothing of models.
"""

import os
import platform
from importlib.metadata import version
from importlib.resources import files

from fastmixer import __version__
from fastmixer.kernels.cpu import processor_name, runnable_levels
from fastmixer.kernels.levels import level_for
from fastmixer.kernels.peak import measured_bandwidth, measured_peak_flops
from fastmixer.kernels.select import forced_kernels, implementation
from fastmixer.kernels.threads import get_threads
from fastmixer.kernels.threads.limits import allowed_processors, cgroup_quota, physical_cores

# Every folder of kernels that has implementations, but for the probe of the machine's peak, which no model runs.
_FOLDERS = [folder.name for folder in files("fastmixer.kernels").iterdir() if (folder / "reference.py").is_file()]
OPS = tuple(sorted(name for name in _FOLDERS if name != "peak"))


def config_report(measure: bool = True) -> dict:
    """Everything that show_config prints, as one JSON-able dictionary."""
    allowed = allowed_processors()
    chosen = {op: implementation(op) for op in OPS}
    report = {
        "fastmixer": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: version(name) for name in ("numpy", "numba", "tokenizers", "safetensors")},
        "processor": processor_name(),
        "levels": list(runnable_levels()),
        "threads": get_threads(),
        "thread_limits": {
            "allowed processors": len(allowed),
            "physical cores": physical_cores(allowed),
            "cgroup quota": cgroup_quota(),
        },
        "kernels": chosen,
        "why": {op: _why(op, name) for op, name in chosen.items()},
    }
    if measure:
        report["peak_gflops"] = round(measured_peak_flops() / 1e9, 1)
        report["bandwidth_gb_per_s"] = round(measured_bandwidth() / 1e9, 1)
    return report


def show_config(measure: bool = True) -> None:
    """Print what was chosen for each op and why; measure=False leaves out the half second that the probes take."""
    report = config_report(measure)
    limits = ", ".join(
        f"{name} {'none' if value is None else value}" for name, value in report["thread_limits"].items()
    )
    libraries = ", ".join(f"{name} {number}" for name, number in report["libraries"].items())
    print(f"fastmixer {report['fastmixer']}   Python {report['python']}   {libraries}")
    print(f"processor   {report['processor']}   ({report['platform']})")
    print(f"levels      {', '.join(report['levels']) or 'none: no native kernels were built'}")
    print(f"threads     {report['threads']}   (limits: {limits})")
    width = max(map(len, report["kernels"].values()))
    lines = [f"{op:<14}{name:<{width}}   {report['why'][op]}" for op, name in report["kernels"].items()]
    print("kernels     " + "\n            ".join(lines))
    if measure:
        print(f"peak        {report['peak_gflops']:.0f} GFLOP/s float32 FMA, measured now")
        print(f"bandwidth   {report['bandwidth_gb_per_s']:.0f} GB/s read, measured now")
    print("change it   FASTMIXER_KERNELS=auto|native|jit|reference  FASTMIXER_ISA=<level>  FASTMIXER_THREADS=<n>")


def _why(op: str, chosen: str) -> str:
    """Why this implementation of an op runs, as kernels/select.py decides."""
    inside, levels = forced_kernels(), runnable_levels()
    forced = next((name for name in ("FASTMIXER_KERNELS", "FASTMIXER_ISA") if _forces(name)), None)
    if inside is not None:
        level = inside.removeprefix("native-")
        return "forced by use_kernels" + ("" if chosen in (inside, level) else f" ({level} adds nothing to it)")
    if chosen in ("jit", "reference"):
        return f"forced by {forced}" if forced else "no native kernel was built that this processor runs"
    level, wanted = chosen.removeprefix("native-"), os.environ.get("FASTMIXER_ISA") or levels[0]
    same = "" if level == wanted else f" ({wanted} adds nothing to it)"
    if forced == "FASTMIXER_ISA":
        return f"forced by FASTMIXER_ISA{same}"
    if level != level_for(op, wanted):
        return f"best that was built; this processor runs {wanted}"
    return f"best that this processor runs{same}"


def _forces(variable: str) -> bool:
    """FASTMIXER_KERNELS=native leaves the level open."""
    return os.environ.get(variable, "") not in ("", "auto", "native")
