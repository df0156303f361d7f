"""What fastmixer chose on this machine, for people and bug reports: kernels, levels, threads, measured limits.

Knows nothing of models.
"""

import platform
from importlib.metadata import version

from fastmixer import __version__
from fastmixer.kernels.cpu import processor_name, runnable_levels
from fastmixer.kernels.peak import measured_bandwidth, measured_peak_flops
from fastmixer.kernels.select import implementation
from fastmixer.kernels.threads import get_threads
from fastmixer.kernels.threads.limits import allowed_processors, cgroup_quota, physical_cores

OPS = (
    "embedding", "positions", "matmul", "norm", "attention", "feedforward", "dropout", "cross_entropy", "optimizer",
    "sampling", "search",
)  # fmt: skip


def config_report(measure: bool = True) -> dict:
    """Everything that show_config prints, as one JSON-able dictionary."""
    allowed = allowed_processors()
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
        "kernels": {op: implementation(op) for op in OPS},
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
    print("kernels     " + "\n            ".join(f"{op:<14}{name}" for op, name in report["kernels"].items()))
    if measure:
        print(f"peak        {report['peak_gflops']:.0f} GFLOP/s float32 FMA, measured now")
        print(f"bandwidth   {report['bandwidth_gb_per_s']:.0f} GB/s read, measured now")
    print("change it   FASTMIXER_KERNELS=auto|native|jit|reference  FASTMIXER_ISA=<level>  FASTMIXER_THREADS=<n>")
