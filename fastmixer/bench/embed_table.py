"""Rows of sentence embeddings as lines and as a page. Knows nothing of how they were measured."""

from fastmixer.bench.embed import EmbedBench
from fastmixer.bench.inference import Row
from fastmixer.bench.inference_table import cells

HEADER = (
    f"{'':<52}{'ours':>8}{'theirs':>9} {'':<9}{'their mode':<32}{'ratio':>7}{'spread':>11}  {'target':<13}of the peak"
)
EXPLANATION = (
    "All of a call is timed, from strings to unit vectors: tokens, encoder, mean pooling, length. Ours takes the texts as",
    "one list. Peers have theirs sorted by length, padded to the longest of a batch, tokenized by the tokenizers library,",
    "with pooling and length inside the ONNX graph, and each its best batch of 8, 16, 32, 64 (of long texts 8, 32).",
    "ONNX Runtime runs with all graph optimizations, on the graph as torch exports it (plain) and with its own fusions for",
    "BERT (fused), int8 by its dynamic quantization; OpenVINO with its latency hint. Ratios are of medians, beside the best",
    "of theirs; spread is (largest - smallest) / median. One sentence: the median of 20 calls a round. Of the peak:",
    "operations of linear maps and attention by time, beside multiply-adds from registers, probed among the rounds.",
    "Loading: a new process each time, files cached; ours with weights=\"auto\", its trial included.",
)


def row(one: Row) -> str:
    """One comparison as one line."""
    ours, theirs, ratio, spread, target = _cells(one)
    mode = one.best if one.theirs else ""
    numbers = f"{one.name:<52}{ours:>8}{theirs:>9} {one.unit:<9}{mode:<32}{ratio:>7}{spread:>11}"
    return f"{numbers}  {target:<13}{one.limit}".rstrip()


def footer(bench: EmbedBench) -> str:
    """What was seen by the way."""
    return "\n".join([*bench.remarks, ", ".join(f"{name} {value}" for name, value in bench.versions.items())])


def markdown(rows: list[Row], bench: EmbedBench, about: dict[str, str]) -> str:
    """A page of results: the machine, the versions, a table, remarks."""
    against = f" --against {','.join(bench.peers)}" if bench.peers else ""
    lines = ["# Results of sentence embeddings", ""]
    lines += [f"Written by `fastmixer bench embed{against} --markdown benchmarks/RESULTS-embed.md`: all-MiniLM-L6-v2,"]
    lines += ["each engine in a process of its own, on the same texts, round by round in turn.", ""]
    lines += [f"- {name}: {value}" for name, value in {**about, **bench.versions}.items()]
    lines += [f"- rounds: {bench.rounds}, all warm", ""]
    lines += ["| | ours | theirs | | their mode | ratio | spread (ours / theirs) | target | of the peak |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for one in rows:
        ours, theirs, ratio, spread, target = _cells(one)
        target = target.replace(" yes", ", reached").replace(" NO", ", not reached")
        mode = one.best if one.theirs else ""
        columns = [one.name, ours, theirs, one.unit, mode, ratio, spread.replace("/", " / "), target, one.limit]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join([*lines, "", *EXPLANATION, "", *(f"- {remark}" for remark in bench.remarks)]) + "\n"


def _cells(one: Row) -> tuple[str, str, str, str, str]:
    """As inference_table's; where nothing stands beside ours, only what is ours."""
    if one.theirs:
        return cells(one)
    ours, _, _, spread, target = cells(Row(one.name, one.unit, one.ours, {"": one.ours}))
    return ours, "", "", spread.split("/")[0], target
