"""Ours against a peer's, interleaved in one run: medians, ratios, and what a page of results says of the machine.

Knows nothing of particular peers.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fastmixer.bench.peers import Comparison

ROUNDS = 5
# OpenMP's workers spin for up to 200 ms after a peer's call, OpenBLAS's for 100: on cores that the next one needs.
SETTLE_SECONDS = 0.4
ROUND_SECONDS = 0.05  # a quick call is repeated until a round takes about this long
OURS = "ours"


@dataclass(frozen=True)
class Outcome:
    """One comparison's result. values: the median by column, "ours" and each of the peer's modes, in the comparison's
    unit; spread: (largest - smallest) / median."""

    comparison: Comparison
    values: dict[str, float]
    spread: dict[str, float]

    @property
    def best(self) -> str:
        """The peer's best mode."""
        return min((mode for mode in self.values if mode != OURS), key=self.values.__getitem__)

    @property
    def ratio(self) -> float:
        """How many times less ours takes than the peer's best."""
        return self.values[self.best] / self.values[OURS]

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.ratio >= self.comparison.target


def run(comparisons: Iterable[Comparison], rounds: int = ROUNDS) -> Iterator[Outcome]:
    """Measure each comparison; yields as soon as one is there."""
    for comparison in comparisons:
        gc.collect()  # the models of the one before
        columns = {OURS: comparison.ours, **comparison.theirs}
        calls = {name: prepare() for name, prepare in columns.items()}
        if comparison.unit == "bytes":
            values = {name: [float(call())] for name, call in calls.items()}  # type: ignore[arg-type]
        else:
            values = _times(calls, rounds)
        medians = {name: statistics.median(found) for name, found in values.items()}
        spread = {name: (max(found) - min(found)) / medians[name] for name, found in values.items()}
        yield Outcome(comparison, medians, spread)


def _times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    repeats = {}
    for name, call in calls.items():
        call()  # compiles, touches the memory
        time.sleep(SETTLE_SECONDS)
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(ROUND_SECONDS / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(SETTLE_SECONDS)
            if repeats[name] > 1:
                call()  # wakes the threads that it needs
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


# ---- what is shown ----

HEADER = f"{'':<12}{'workload':<46}{'ours':>11}{'peer':>11}  {'its mode':<19}{'ratio':>7}{'spread':>12}  target"


def row(outcome: Outcome) -> str:
    """One comparison as one line."""
    one, best = outcome.comparison, outcome.best
    spread = f"{outcome.spread[OURS]:.0%}/{outcome.spread[best]:.0%}"
    verdict = f">= {one.target:.3g}x {'yes' if outcome.reached else 'NO'}"
    ours, theirs = (_amount(outcome.values[name], one.unit) for name in (OURS, best))
    measured = f"{ours:>11}{theirs:>11}  {best:<19}{outcome.ratio:>6.2f}x{spread:>12}"
    return f"{one.group:<12}{one.name:<46}{measured}  {verdict}"


def markdown(outcomes: list[Outcome], about: dict[str, str]) -> str:
    """A page of results: the machine, the versions, a table."""
    lines = [
        "# Results",
        "",
        "Written by `fastmixer bench --against PEER --markdown FILE`; ours and the peer interleaved in one run.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [
        "",
        "| | workload | ours | peer | its mode | ratio | spread (ours / peer) | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        one, best = outcome.comparison, outcome.best
        cells = [
            one.group, one.name, _amount(outcome.values[OURS], one.unit), _amount(outcome.values[best], one.unit), best,
            f"{outcome.ratio:.2f}x", f"{outcome.spread[OURS]:.0%} / {outcome.spread[best]:.0%}",
            f"{one.target:.3g}x, {'reached' if outcome.reached else 'not reached'}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Ratios are of medians; spread is (slowest - fastest) / median of the rounds."]
    return "\n".join(lines) + "\n"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
