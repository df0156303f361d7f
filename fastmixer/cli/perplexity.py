"""`fastmixer perplexity`: how well a model foresees a text. Knows only how to ask and to print."""

import math
import time
from pathlib import Path

import click

from fastmixer.cli import options


@click.command("perplexity")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--stride", type=int, help="Tokens from window to window (default: half of --context).")
@options.loading
def perplexity(
    model: str,
    file: Path,
    stride: int | None,
    weights: str,
    cache: str,
    context: int | None,
    packed_cache: bool | None,
    offline: bool,
) -> None:
    """Print the perplexity of MODEL (a .gguf file, a folder, a training run, or org/name) on the text in FILE.

    A text longer than --context is read in windows of so many tokens; each token counts once.

    \b
    Examples:
      fastmixer perplexity model.gguf book.txt
      fastmixer perplexity model.gguf book.txt --context 512 --stride 256 --weights int8
    """
    from fastmixer.text.files import read_text

    text = read_text(file)

    from fastmixer.progress import LateBar

    opened = options.load_language_model(model, weights, cache, context, packed_cache, offline)
    if opened.tokenizer is None:
        raise ValueError(f"perplexity: {opened.name} has no tokenizer")
    ids = opened.tokenize(text, begin=True)
    began = time.perf_counter()
    with LateBar(max(0, len(ids) - 1), shown=options.at_terminal(), desc="reading", unit=" tokens") as bar:
        found = opened.perplexity(ids, stride=stride, progress=bar.update)
    seconds = time.perf_counter() - began
    tokens, nats = len(ids) - 1, math.log(found)
    first = int(ids[0])  # is given, not foreseen
    known = 0 if first == opened.tokenizer.begin_id else len(opened.tokenizer.piece_bytes(first))
    size = len(text.encode()) - known
    click.echo(f"perplexity {found:.4f}, {nats:.5f} nats a token, {nats * tokens / math.log(2) / size:.5f} bits a byte")
    click.echo(f"{tokens:,} tokens, {size:,} bytes, {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")
