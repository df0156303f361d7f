"""`fastmixer generate`: a model folder goes on from a prompt. Knows only how to ask and to print."""

from pathlib import Path

import click

from fastmixer.cli import options


@click.command("generate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("prompt", default="")
@click.option("--max-new-tokens", "-n", type=int, default=128, show_default=True, help="At most so many tokens.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest every time.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Only the k likeliest (0: all).")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Only the likeliest that make up this part.")
@click.option(
    "--min-p", type=float, default=0.0, show_default=True, help="Only those this likely beside the likeliest."
)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--seed", type=int, help="The same seed writes the same text (default: a new one).")
@click.option("--stop", multiple=True, help="End before this text (may be given several times).")
@click.option("--stats", is_flag=True, help="Print tokens a second at the end.")
@options.threads
def generate(folder: Path, prompt: str, stop: tuple[str, ...], stats: bool, **choices: object) -> None:
    """Let the model in FOLDER (a training run, or what model.save wrote) go on from PROMPT.

    \b
    Examples:
      fastmixer generate runs/book "Alice was"
      fastmixer generate runs/book "Alice was" --temperature 0 --max-new-tokens 40
    """
    from fastmixer.opening import load

    pieces = load(folder).stream(prompt, stop=stop or None, **choices)
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
    if stats:
        details = pieces.details
        read, wrote = details.prefill_tokens_per_second, details.decode_tokens_per_second
        click.echo(
            f"{len(details.tokens)} tokens, end: {details.finish_reason}; read {read:,.0f}, wrote {wrote:,.0f} tokens/s",
            err=True,
        )
