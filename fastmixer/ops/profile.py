"""Where time goes: every kernel call inside a `with profiled()` block is timed and held against its least work.

Knows nothing of models or steps; outside such a block nothing is measured and nothing costs.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from fastmixer.kernels import select
from fastmixer.kernels.peak import STREAMS, measured_bandwidth, measured_peak_flops
from fastmixer.ops.costs import cost

REST = "Python and the rest"


@dataclass
class Row:
    """One kind of work. seconds, flops, bytes: summed over its calls; floor: the least seconds the machine could take."""

    label: str
    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    floor: float = 0.0
    limit: str = ""

    @property
    def share(self) -> float:
        """The part of the machine's limit that was reached: floor over seconds; 0 where no work is known."""
        return self.floor / self.seconds if self.seconds else 0.0


@dataclass
class Profile:
    """What `profiled` gathers. seconds: the whole of the blocks; steps: how many there were."""

    seconds: float = 0.0
    steps: int = 0
    by_label: dict[str, Row] = field(default_factory=dict)

    def add(self, op: str, function: str, arguments: tuple[Any, ...], seconds: float) -> None:
        """Count one kernel call."""
        work = cost(op, function, arguments)
        row = self.by_label.setdefault(work.label, Row(work.label))
        compute, memory = work.flops / measured_peak_flops(work.precision), work.bytes / measured_bandwidth(work.stream)
        row.calls, row.seconds = row.calls + 1, row.seconds + seconds
        row.flops, row.bytes, row.floor = (
            row.flops + work.flops,
            row.bytes + work.bytes,
            row.floor + max(compute, memory),
        )
        if work.flops or work.bytes:
            row.limit = ("FMA" if work.precision == "float32" else "bf16") if compute >= memory else "memory"

    def rows(self) -> list[Row]:
        """By time, longest first; at the end what was spent outside kernels."""
        rows = sorted(self.by_label.values(), key=lambda row: -row.seconds)
        rest = max(0.0, self.seconds - sum(row.seconds for row in rows))
        return [*rows, Row(REST, seconds=rest)]

    def table(self, most: int = 20) -> str:
        """Aligned lines, a step's time each: `most` rows, the shortest ones taken together."""
        rows = self.rows()
        if len(rows) > most:
            short = Row("other kernels")
            for row in rows[most - 2 : -1]:
                short.calls, short.seconds = short.calls + row.calls, short.seconds + row.seconds
            rows = [*rows[: most - 2], short, rows[-1]]
        steps = max(1, self.steps)
        lines = [f"{'where a step goes':<26}{'calls':>6}{'time':>11}{'of step':>9}{'work':>13}{'of limit':>10}  limit"]
        for row in rows:
            work = f"{row.bytes / steps / 1e9:,.2f} GB" if row.bytes else ""
            work = f"{row.flops / steps / 1e9:,.1f} GFLOP" if row.flops else work
            share = f"{row.share:.0%}" if row.floor else ""
            spent = f"{row.seconds / steps * 1e3:>8,.1f} ms{row.seconds / self.seconds:>9.1%}"
            line = f"{row.label:<26}{row.calls // steps or '':>6}{spent}{work:>13}{share:>10}  {row.limit}"
            lines.append(line.rstrip())
        floor = sum(row.floor for row in rows)
        lines.append(
            f"{'whole step':<26}{'':>6}{self.seconds / steps * 1e3:>8,.1f} ms{'':>9}{'':>13}{floor / self.seconds:>10.0%}"
        )
        return "\n".join(lines)


class _Timed:
    """A kernel module whose functions report to a profile."""

    def __init__(self, op: str, module: ModuleType, profile: Profile):
        self._op, self._module, self._profile = op, module, profile
        self.__name__ = module.__name__

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self._profile.add(self._op, name, arguments, time.perf_counter() - start)
            return result

        return timed


@contextmanager
def profiled(profile: Profile) -> Iterator[Profile]:
    """Add to profile what happens inside, as one step."""
    measured_peak_flops(), measured_peak_flops("bfloat16")  # probed before the clock starts
    for stream in STREAMS:
        measured_bandwidth(stream)
    with select.observed(lambda op, module: _Timed(op, module, profile)):
        start = time.perf_counter()
        yield profile
        profile.seconds += time.perf_counter() - start
        profile.steps += 1
