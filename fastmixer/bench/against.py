"""Ours against a peer's, interleaved in one run: medians, ratios, and what a page of results says of the machine.

Knows nothing of particular peers.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fastmixer.bench.peers import Comparison

ROUNDS, QUICK_ROUNDS, LIMIT_ROUNDS = 5, 9, 15
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
        """Whether the target is reached; where none is set, nothing is missed."""
        return self.comparison.target is None or self.ratio >= self.comparison.target


def run(comparisons: Iterable[Comparison], rounds: int = LIMIT_ROUNDS) -> Iterator[Outcome]:
    """Measure each comparison, in at most so many rounds (fewer beside what needs pauses, fewest of what is slow).

    Yields an outcome as soon as it is there.
    """
    for comparison in comparisons:
        gc.collect()  # the models of the one before
        columns = {OURS: comparison.ours, **comparison.theirs}
        calls = {name: prepare() for name, prepare in columns.items()}
        if comparison.unit == "bytes":
            values = {name: [float(call())] for name, call in calls.items()}  # type: ignore[arg-type]
        else:
            values = _times(calls, rounds, 0.0 if comparison.share else SETTLE_SECONDS)
        medians = {name: statistics.median(found) for name, found in values.items()}
        spread = {name: (max(found) - min(found)) / medians[name] for name, found in values.items()}
        yield Outcome(comparison, medians, spread)


def _times(calls: dict[str, Callable[[], object]], rounds: int, pause: float) -> dict[str, list[float]]:
    """Seconds a call of each, round by round; a peer with threads of its own needs a pause after it."""
    repeats = {}
    for name, call in calls.items():
        call()  # compiles, touches the memory
        time.sleep(pause)
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(ROUND_SECONDS / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    if pause:
        rounds = min(rounds, QUICK_ROUNDS if min(repeats.values()) > 1 else ROUNDS)
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause)
            if repeats[name] > 1:
                call()  # wakes the threads that it needs
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


# ---- what is shown ----

HEADER = f"{'':<13}{'workload':<46}{'ours':>11}{'peer':>11}  {'its mode':<19}{'ratio':>7}{'spread':>12}  target"


def row(outcome: Outcome) -> str:
    """One comparison as one line."""
    one, best = outcome.comparison, outcome.best
    spread = f"{outcome.spread[OURS]:.0%}/{outcome.spread[best]:.0%}"
    verdict = "" if one.target is None else f">= {_ratio(one.target, one)} {'yes' if outcome.reached else 'NO'}"
    ours, theirs = (_amount(outcome.values[name], one.unit) for name in (OURS, best))
    measured = f"{ours:>11}{theirs:>11}  {best:<19}{_ratio(outcome.ratio, one, 2):>7}{spread:>12}"
    return f"{one.group:<13}{one.name:<46}{measured}  {verdict}".rstrip()


def markdown(outcomes: list[Outcome], about: dict[str, str], more: str = "") -> str:
    """A page of results: the machine, the versions, a table; more: sections that follow."""
    lines = [
        "# Results",
        "",
        "Written by `fastmixer bench --against all --long --markdown benchmarks/RESULTS.md`; ours and each peer in turn,",
        "in one run. Where the peer is the machine's own peak (as many multiply-adds from registers), the ratio is the",
        "share of it that ours reaches (AMX tiles make float32 products too, and may pass it). AVX2: both are held to it.",
        "Names of products: tokens x out x in.",
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
            _ratio(outcome.ratio, one, 2), f"{outcome.spread[OURS]:.0%} / {outcome.spread[best]:.0%}",
            "" if one.target is None else f"{_ratio(one.target, one)}, {'reached' if outcome.reached else 'not reached'}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Ratios are of medians; spread is (slowest - fastest) / median of the rounds."]
    return "\n".join(lines) + "\n" + more


def _ratio(value: float, one: Comparison, digits: int | None = None) -> str:
    if one.share:
        return f"{value:.0%}"
    return f"{value:.3g}x" if digits is None else f"{value:.{digits}f}x"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
