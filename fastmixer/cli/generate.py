"""`fastmixer generate`: a model goes on from a prompt. Knows only how to ask and to print."""

import sys
from pathlib import Path
from typing import Any

import click

from fastmixer.cli import options

NEW_TOKENS = 128  # unless the model's makers or -n say


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="Read the prompt from this file (default: PROMPT; - is stdin).",
)
@click.option("--max-new-tokens", "-n", type=int, help="At most so many tokens (default: the model's, else 128).")
@click.option("--samples", "n", type=int, default=1, show_default=True, help="So many texts, one after another.")
@options.sampling
@click.option(
    "--logprobs", type=int, help="Also print log-probabilities, with those of so many others (default: none)."
)
@click.option("--stats", is_flag=True, help="Print tokens a second at the end.")
@options.loading
def generate(
    model: str,
    prompt: str | None,
    prompt_file: Path | None,
    stats: bool,
    weights: str,
    cache: str,
    context: int | None,
    packed_cache: bool | None,
    offline: bool,
    **choices: Any,
) -> None:
    """Let MODEL go on from PROMPT: a .gguf file, a folder (Hugging Face's or ours), a training run, or org/name.

    Without a PROMPT it begins a text of its own.

    \b
    Examples:
      fastmixer generate runs/book "Alice was"
      fastmixer generate model.gguf "The capital of France is" --temperature 0 -n 40 --stats
      fastmixer generate model.gguf --prompt-file book.txt --context 4096 --cache int8
      echo "Once upon a time" | fastmixer generate model.gguf -
    """
    given = options.given(choices)
    prompt = _prompt(prompt, prompt_file)
    if prompt == "":
        raise ValueError("generate: the prompt is empty; without one the model begins a text of its own")

    opened = options.load_language_model(model, weights, cache, context, packed_cache, offline)
    given.setdefault("max_new_tokens", opened.generation.get("max_new_tokens", NEW_TOKENS))
    begin: Any = _beginning(opened) if prompt is None else prompt
    if given["n"] > 1:
        results = opened.generate(begin, return_details=True, **given)
        for number, details in enumerate(results, 1):
            click.echo(f"--- {number} ---\n{prompt or ''}{details.text}")
            _show_logprobs(details, opened.tokenizer)
    else:
        results = [_write(opened.stream(begin, **given), prompt or "")]
        _show_logprobs(results[0], opened.tokenizer)
    if stats:
        for details in results:
            click.echo(options.figures(details), err=True)
    if not results[-1].finish_reason:
        sys.exit(options.exit_status())


def _prompt(prompt: str | None, path: Path | None) -> str | None:
    if path is not None and prompt is not None:
        raise click.UsageError("give PROMPT or --prompt-file, not both")
    if prompt == "-":
        return options.text_from_stdin(sys.stdin.buffer.read())
    if path is None:
        return prompt

    from fastmixer.text.files import read_text

    return read_text(path)


def _beginning(model: Any) -> list[int]:
    """What stands before a text of the model's own: the token that begins one, or that ends the one before."""
    if model.tokenizer is None:
        raise ValueError(f"generate: {model.name} has no tokenizer")
    return [model.tokenizer.end_id if model.tokenizer.begin_id is None else model.tokenizer.begin_id]


def _write(pieces: Any, prompt: str) -> Any:
    """Print a stream as it comes, behind its prompt; what came of it, also if Ctrl-C ended it."""
    with pieces:
        try:
            click.echo(prompt, nl=False)
            for piece in pieces:
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            pieces.close()
        click.echo()
        return pieces.details


def _show_logprobs(details: Any, tokenizer: Any) -> None:
    """A line for each token, if they were asked for: its log-probability, and the likeliest in its place."""
    for one in details.logprobs or []:
        others = "  ".join(f"{options.quoted(tokenizer.id_to_token(i))} {value:.3f}" for i, value in one.top)
        piece = options.quoted(tokenizer.id_to_token(one.token))
        click.echo(f"{one.logprob:9.3f}  {piece:<16}  {others}".rstrip())
