"""`fastmixer search`: the lines of a file that are nearest in meaning to queries. Knows only how to ask and to print."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastmixer.cli import options


@click.command("search")
@click.argument("model")
@click.argument("vectors", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1)
@click.option(
    "--queries", "query_file", help="A file of queries, one a line, or .jsonl; - reads stdin (default: none)."
)
@click.option("--texts", "text_file", help="What the vectors were made of, to show it (default: line numbers alone).")
@click.option("--field", help="--texts has a JSON object a line: show this field (default: text, of a .jsonl file).")
@click.option("--query-field", help="The same of --queries (default: text, of a .jsonl file).")
@click.option("-k", "--count", "k", type=int, default=10, show_default=True, help="Lines for each query.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a query instead of text.")
@options.prompts
@options.pooling
@options.weights
@options.threads
@options.offline
def search(
    model: str, vectors: Path, query: tuple[str, ...], query_file: str | None, text_file: str | None, field: str | None,
    query_field: str | None, k: int, as_json: bool, prompt: str | None, prompt_name: str | None, pooling: str | None,
    weights: str, offline: bool,
) -> None:  # fmt: skip
    """Find what is nearest in meaning to each QUERY: the K best of VECTORS, a .npy file that `fastmixer embed` wrote with
    the same MODEL, best first: cosine, line number and, with --texts, the text.

    The file is mapped, not read into memory; its vectors may have any length. If the model has a prompt called "query",
    queries get it, as texts get "document" in `fastmixer embed`, unless --prompt or --prompt-name says otherwise. Blank
    lines of --queries are no queries.

    \b
    Examples:
      fastmixer search all-MiniLM-L6-v2 vectors.npy "a rabbit with a watch" --texts sentences.txt
      fastmixer search ./e5-small vectors.npy --queries questions.txt -k 3 --json --prompt "query: "
    """
    from fastmixer.embed import open_vectors
    from fastmixer.ops.search import cosine_search
    from fastmixer.text.text_file import TextFile

    if bool(query) == (query_file is not None):
        raise click.UsageError("give one or more QUERY, or --queries FILE")
    if any(not one.strip() for one in query):
        raise click.UsageError("QUERY must not be blank")
    queries = list(query) if query_file is None else [one for one in TextFile(query_file, query_field) if one.strip()]
    if not queries:
        raise ValueError(f"{query_file} holds no queries")
    if k < 1:
        raise click.UsageError(f"--count must be >= 1; got {k}")
    texts = None if text_file is None else TextFile(text_file, field)
    open_vectors(vectors)  # what is wrong with it is said before a model is loaded
    opened = options.load_sentence_model(model, weights, pooling, offline)
    rows = open_vectors(vectors, opened.dim, opened.name)
    if prompt is None and prompt_name is None:
        prompt = opened.prompt_for("query")
    wanted = opened.embed(queries, prompt=prompt, prompt_name=prompt_name, show_progress=False)
    ids, scores = cosine_search(rows, wanted, min(k, len(rows)))
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
