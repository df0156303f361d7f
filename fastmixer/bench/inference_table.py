"""Rows of inference as lines and as a page. Knows nothing of how they were measured."""

import statistics

from fastmixer.bench.inference import WARM_ROUNDS, Bench, Row

HEADER = (
    f"{'':<58}{'ours':>9}{'theirs':>9} {'':<9}{'their mode':<17}{'ratio':>7}{'spread':>12}  {'target':<14}of the limit"
)
EXPLANATION = (
    "Q4_0 and Q8_0 files are the model's own, written by `fastmixer convert` (all matrices in that type). Ratios are of",
    "medians, beside the better mode of theirs; spread is (largest - smallest) / median. Tokens/s are what each engine",
    "tells of itself. GB/s: bytes of weights, and of keys and values, that tokens need, by time; GOP/s: operations of the",
    "layers' linear maps, by time, of what the machine does in the numbers that they are multiplied in. Caches have been",
    "written once before rounds count; ours holds as many tokens as llama.cpp's, or as a round's (loading: the default).",
)


def row(one: Row) -> str:
    """One comparison as one line."""
    ours, theirs, ratio, spread, target = cells(one)
    return (
        f"{one.name:<58}{ours:>9}{theirs:>9} {one.unit:<9}{one.best:<17}{ratio:>7}{spread:>12}  {target:<14}{one.limit}"
    ).rstrip()


def footer(bench: Bench) -> str:
    """The limits, and what was seen by the way."""
    lines = [_limits(bench), *bench.remarks]
    return "\n".join([*lines, ", ".join(f"{name} {value}" for name, value in bench.versions.items())])


def markdown(rows: list[Row], bench: Bench, about: dict[str, str]) -> str:
    """A page of results: the machine, the versions, a table, remarks."""
    lines = ["# Results of inference", ""]
    lines += ["Written by `fastmixer bench --against llama.cpp,openvino --markdown benchmarks/RESULTS-inference.md`:"]
    lines += ["each engine in a process of its own, on the same ids, round by round in turn.", ""]
    lines += [f"- {name}: {value}" for name, value in {**about, "model": bench.path.name, **bench.versions}.items()]
    lines += [f"- rounds: {bench.rounds}, after {WARM_ROUNDS} that are not counted", ""]
    lines += ["| | ours | theirs | | their mode | ratio | spread (ours / theirs) | target | of the limit |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for one in rows:
        ours, theirs, ratio, spread, target = cells(one)
        target = target.replace(" yes", ", reached").replace(" NO", ", not reached")
        columns = [one.name, ours, theirs, one.unit, one.best, ratio, spread.replace("/", " / "), target, one.limit]
        lines.append("| " + " | ".join(columns) + " |")
    lines += ["", f"{_limits(bench)}.", ""]
    lines += [*EXPLANATION, "", *(f"- {remark}" for remark in bench.remarks)]
    return "\n".join(lines) + "\n"


def _limits(bench: Bench) -> str:
    return (
        f"limits probed among the rounds: {bench.bandwidth / 1e9:.1f} GB/s read from memory, "
        f"{bench.int8_peak / 1e9:,.0f} GOP/s of 8-bit dot products, {bench.bfloat16_peak / 1e9:,.0f} of bfloat16's"
    )


def cells(one: Row) -> tuple[str, str, str, str, str]:
    """Ours, theirs, ratio, spread, target, as they are shown."""
    theirs = one.theirs[one.best]
    spread = f"{_spread(one.ours):.0%}/{_spread(theirs):.0%}"
    verdict = "" if one.target is None else f">= {one.target:.3g}x {'yes' if one.reached else 'NO'}"
    return _amount(one.median), _amount(statistics.median(theirs)), f"{one.ratio:.2f}x", spread, verdict


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
