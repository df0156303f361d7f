"""`fastmixer search`: the lines of a file that are nearest in meaning to queries. Knows only how to ask and to print."""

import json
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastmixer.cli import options

QUERY_PROMPT = "query"  # what models call the prompt that is for queries
LOOKED_AT = 1000  # rows whose lengths are looked at
OFF_LENGTH = 0.01  # float16's rounding is a tenth of it


@click.command("search")
@click.argument("model")
@click.argument("vectors", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1)
@click.option(
    "--queries", "query_file", help="A file of queries, one a line, or .jsonl; - reads stdin (default: none)."
)
@click.option("--texts", "text_file", help="What the vectors were made of, to show it (default: line numbers alone).")
@click.option("--field", help="The field of JSON lines in --texts and --queries (default: text, of .jsonl files).")
@click.option("-k", "--count", "k", type=int, default=10, show_default=True, help="Lines for each query.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a query instead of text.")
@options.prompts
@options.pooling
@options.weights
@options.threads
@options.offline
def search(
    model: str, vectors: Path, query: tuple[str, ...], query_file: str | None, text_file: str | None, field: str | None,
    k: int, as_json: bool, prompt: str | None, prompt_name: str | None, pooling: str | None, weights: str, offline: bool,
) -> None:  # fmt: skip
    """Find what is nearest in meaning to each QUERY: the K best of VECTORS, a .npy file that `fastmixer embed` wrote with
    the same MODEL, best first: cosine, line number and, with --texts, the text.

    The file is mapped, not read into memory. If the model has a prompt called "query", queries get it, unless --prompt or
    --prompt-name says otherwise.

    \b
    Examples:
      fastmixer search all-MiniLM-L6-v2 vectors.npy "a rabbit with a watch" --texts sentences.txt
      fastmixer search ./e5-small vectors.npy --queries questions.txt -k 3 --json --prompt "query: "
    """
    from fastmixer.embed import open_vectors
    from fastmixer.ops.search import search as best_rows
    from fastmixer.text.text_file import TextFile

    if bool(query) == (query_file is not None):
        raise click.UsageError("give one or more QUERY, or --queries FILE")
    queries = list(query) if query_file is None else list(TextFile(query_file, field))
    if not queries:
        raise ValueError(f"{query_file} holds no queries")
    if k < 1:
        raise click.UsageError(f"--count must be >= 1; got {k}")
    texts = None if text_file is None else TextFile(text_file, field)
    open_vectors(vectors)  # what is wrong with it is said before a model is loaded
    opened = options.load_sentence_model(model, weights, pooling, offline)
    rows = open_vectors(vectors, opened.dim, opened.name)
    _look_at_lengths(rows, vectors)
    if prompt is None and prompt_name is None and QUERY_PROMPT in opened.prompts:
        prompt_name = QUERY_PROMPT
    wanted = opened.embed(queries, prompt=prompt, prompt_name=prompt_name, show_progress=False)
    ids, scores = best_rows(rows, wanted, min(k, len(rows)))
    lines = _lines(texts, ids, len(rows), vectors) if texts is not None else {}
    for number, one in enumerate(queries):
        found = [_entry(int(row), float(score), lines) for row, score in zip(ids[number], scores[number], strict=True)]
        if as_json:
            click.echo(json.dumps({"query": one, "results": found}, ensure_ascii=False))
            continue
        if len(queries) > 1:
            click.echo(("\n" if number else "") + one)
        width = len(str(max(entry["line"] for entry in found)))
        for entry in found:
            click.echo(f"{entry['score']:7.4f}  {entry['line']:>{width}}  {entry.get('text', '')}".rstrip())


def _entry(row: int, score: float, lines: dict[int, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"score": round(score, 6), "row": row, "line": row + 1}
    if row in lines:
        entry["line"], entry["text"] = lines[row].number, lines[row].text
    return entry


def _lines(texts: Any, ids: np.ndarray, count: int, vectors: Path) -> dict[int, Any]:
    """The lines of these rows, by row; a file is read once, and only what is shown stays."""
    wanted, found, row = set(ids.ravel().tolist()), {}, -1
    for row, line in enumerate(texts.lines()):
        if row in wanted:
            found[row] = line
    if row + 1 != count:
        raise ValueError(
            f"{texts.name} has {row + 1:,} texts, {vectors} {count:,} vectors: they were not made of one another"
        )
    return found


def _look_at_lengths(rows: np.ndarray, path: Path) -> None:
    """A warning where scores will be no cosines."""
    some = rows[:: max(1, len(rows) // LOOKED_AT)].astype(np.float32)
    lengths = np.linalg.norm(some, axis=1)
    wrong = np.abs(lengths - 1) > OFF_LENGTH
    if wrong.any():
        length = float(lengths[int(wrong.argmax())])
        warnings.warn(
            f"{path}: not all vectors have length 1 (one has {length:.3g}), so that longer ones score more; "
            "`fastmixer embed` without --no-normalize makes unit vectors",
            UserWarning,
            stacklevel=2,
        )
