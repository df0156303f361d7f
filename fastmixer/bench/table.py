"""Shows timings as one aligned text table, or as JSON-able rows. Knows nothing of how they were taken."""

from collections.abc import Iterable, Sequence

from fastmixer.bench.runner import Timing

TITLES = {"reference": "NumPy", "jit": "Numba"}


def header(names: list[str]) -> str:
    """The table's first two lines for these implementations."""
    titles = [_title(name, names) for name in names]
    line = f"{'op':<14}{'workload':<46}" + "".join(f"{title:>12}" for title in titles)
    line += f"{'Numba/NumPy':>13}{'Cython/NumPy':>14}{'of peak':>9}  {'limit':<8}{'target':<14}"
    return line.rstrip() + "\n" + "-" * len(line.rstrip())


def row(timing: Timing, names: list[str]) -> str:
    """One workload as one line."""
    native = timing.best_native()
    line = f"{timing.workload.op:<14}{timing.workload.name:<46}"
    line += "".join(f"{_duration(timing.seconds[name]):>12}" for name in names)
    line += f"{_ratio(timing, 'jit'):>13}{_ratio(timing, native):>14}"
    share, limit = timing.share(native or names[-1])
    return (line + f"{share:>9.0%}  {limit:<8}{_target(timing):<14}").rstrip()


def footer(timings: Sequence[Timing]) -> str:
    """The limits that shares stand over."""
    limits = []
    for precision, name in (("float32", "float32 FMA"), ("bfloat16", "bfloat16 dot product")):
        peaks = [timing.peak_flops for timing in timings if timing.workload.precision == precision]
        if peaks:
            limits.append(f"{max(peaks) / 1e9:.0f} GFLOP/s {name}")
    for stream, name in (("read", "read"), ("update", "read and written back")):
        bandwidths = [timing.bandwidth for timing in timings if timing.workload.stream == stream]
        if bandwidths:
            limits.append(f"{max(bandwidths) / 1e9:.0f} GB/s {name}")
    return f"\npeak {', '.join(limits)}, best of all rounds"


def rows(timings: Iterable[Timing]) -> list[dict]:
    """Timings as dictionaries, for JSON."""
    return [
        {
            "op": timing.workload.op,
            "workload": timing.workload.name,
            "seconds": timing.seconds,
            "spread": {name: round(value, 3) for name, value in timing.spread.items()},
            "ratio_to_numpy": {name: round(timing.ratio(name), 3) for name in timing.seconds},
            "share_of_limit": {name: round(timing.share(name)[0], 4) for name in timing.seconds},
            "limit": timing.share("reference")[1],
            "peak_gflops": round(timing.peak_flops / 1e9, 1),
            "bandwidth_gb_per_s": round(timing.bandwidth / 1e9, 1),
            "target": timing.workload.target,
            "reaches_target": timing.reaches_target(),
        }
        for timing in timings
    ]


def _title(name: str, names: list[str]) -> str:
    if name in TITLES:
        return TITLES[name]
    natives = [other for other in names if other.startswith("native")]
    return "Cython" if len(natives) == 1 else name.removeprefix("native-x86_64_").removeprefix("native-")


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds / scale < 100 else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def _ratio(timing: Timing, name: str | None) -> str:
    return f"{timing.ratio(name):.1f}x" if name in timing.seconds else ""


def _target(timing: Timing) -> str:
    if timing.workload.target is None:
        return ""
    kind, wanted = timing.workload.target
    text = f">= {wanted:g}x" if kind == "ratio" else f">= {wanted:.0%}"
    return f"{text} {'yes' if timing.reaches_target() else 'NO'}"
