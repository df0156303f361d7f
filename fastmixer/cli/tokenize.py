"""`fastmixer tokenize`: one text at three levels. Knows only how to ask and to print."""

from pathlib import Path

import click


@click.command("tokenize")
@click.argument("text")
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Learn the tokenizers from this text (default: Alice)."
)
@click.option("--vocab-size", type=int, default=4096, show_default=True, help="Pieces for words and bpe.")
@click.option(
    "--tokenizer",
    "tokenizer_path",
    type=click.Path(path_type=Path),
    help="Show this tokenizer.json (or folder) instead.",
)
def tokenize(text: str, path: Path | None, vocab_size: int, tokenizer_path: Path | None) -> None:
    """Show the pieces and ids of TEXT, and tokens per word: characters, whole words, subwords.

    \b
    Examples:
      fastmixer tokenize "Alice introduced Bob to Chloe."
      fastmixer tokenize "The bank by the river" --vocab-size 512
      fastmixer tokenize "Alice was" --tokenizer runs/book
    """
    import warnings

    from fastmixer.text import KINDS, Tokenizer, train_tokenizer
    from fastmixer.text.assets import alice_path
    from fastmixer.weights.folder import newest_checkpoint

    if not text:
        raise ValueError("tokenize: TEXT is empty")
    if tokenizer_path is not None:
        tokenizers = [Tokenizer.load(newest_checkpoint(tokenizer_path) or tokenizer_path)]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # fewer pieces than asked: the table shows how many there are
            tokenizers = [train_tokenizer(path or alice_path(), kind, vocab_size) for kind in KINDS]
    words = max(1, len(text.split()))
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        pieces = [tokenizer.id_to_token(int(i)) for i in ids]
        click.echo(
            f"{tokenizer.kind}: {len(ids)} tokens, {len(ids) / words:.2f} a word, vocabulary {tokenizer.vocab_size:,}"
        )
        click.echo(columns([(shown(piece), str(i)) for piece, i in zip(pieces, ids, strict=True)]))
        click.echo()


def shown(piece: str) -> str:
    r"""A piece on one line: a space as ␣, a newline as \n; bytes that are part of a character come as \xe2 already."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece).replace(" ", "␣")


def columns(pairs: list[tuple[str, str]], width: int = 96) -> str:
    """Pieces over their ids, aligned, wrapped at width."""
    lines, top, bottom = [], "", ""
    for piece, token_id in pairs:
        cell = max(len(piece), len(token_id)) + 2
        if top and len(top) + cell > width:
            lines += [top.rstrip(), bottom.rstrip(), ""]
            top = bottom = ""
        top, bottom = top + piece.ljust(cell), bottom + token_id.ljust(cell)
    return "\n".join(f"  {line}".rstrip() for line in [*lines, top.rstrip(), bottom.rstrip()])
