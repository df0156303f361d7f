"""`fastmixer embed`: a file of texts in, a file of vectors out. Knows only how to ask and to print."""

import time
from pathlib import Path

import click

from fastmixer.cli import options


@click.command("embed")
@click.argument("model")
@click.argument("file")
@click.option(
    "-o", "--output", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .npy to write."
)
@click.option("--field", help="FILE has a JSON object a line: take this field (default: text, of a .jsonl file).")
@options.prompts
@options.pooling
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Vectors of length 1.")
@click.option("--dtype", default="float32", show_default=True, help="Of the vectors: float32 or float16.")
@click.option("--batch-tokens", type=int, default=4096, show_default=True, help="Tokens that are worked on at once.")
@click.option(
    "--truncate/--no-truncate",
    default=True,
    show_default=True,
    help="Cut texts longer than the model takes, or refuse.",
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="A bar for what takes over a second.")
@options.weights
@options.threads
@options.offline
def embed(
    model: str, file: str, output: Path, field: str | None, prompt: str | None, prompt_name: str | None,
    pooling: str | None, normalize: bool, dtype: str, batch_tokens: int, truncate: bool, progress: bool, weights: str,
    offline: bool,
) -> None:  # fmt: skip
    """Write the vectors of all texts in FILE, one a line, to a .npy file: row i is line i + 1.

    MODEL is an encoder's folder (BERT, MiniLM, BGE, E5, GTE, MPNet, ModernBERT), a decoder made for vectors
    (Qwen3-Embedding), their names on huggingface.co, or, with --pooling, any language model. FILE is text, or .jsonl with
    an object a line; - reads stdin. Texts are read as they are needed, so both files may be larger than memory. OUTPUT
    appears once all is well.

    \b
    Examples:
      fastmixer embed all-MiniLM-L6-v2 sentences.txt -o vectors.npy
      fastmixer embed ./e5-small articles.jsonl -o vectors.npy --field body --prompt "passage: "
      sort -u names.txt | fastmixer embed ./bge-small - -o names.npy --dtype float16
    """
    from fastmixer.text.text_file import TextFile

    texts = TextFile(file, field)
    opened = options.load_sentence_model(model, weights, pooling, offline)
    began = time.perf_counter()
    vectors = opened.embed_to(
        output, texts, batch_tokens=batch_tokens, normalize=normalize, show_progress=None if progress else False,
        dtype=dtype, prompt=prompt, prompt_name=prompt_name, truncate=truncate,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    count, dim = vectors.shape
    click.echo(
        f"{count:,} texts, {dim} {dtype} numbers each, in {seconds:,.1f} s ({count / seconds:,.0f} texts/s): {output}"
    )
