"""`fastmixer quickstart`: the pipeline told aloud. Knows only how to ask."""

from pathlib import Path

import click

from fastmixer.cli import options


@click.command("quickstart")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder (default: runs/quickstart, -2, ...).",
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps (default: about a minute of them).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights, data and samples.")
@options.threads
def quickstart(out: Path | None, steps: int | None, seed: int) -> None:
    """See the whole pipeline at work: text to ids to rows to logits, then train a small GPT on a book and let it write.

    Needs no network and no file; takes about a minute on two cores.

    \b
    Examples:
      fastmixer quickstart
      fastmixer quickstart --out runs/first --steps 100
    """
    from fastmixer import quickstart as walk

    folder = _unused_folder() if out is None else out
    walk.quickstart(folder, steps=steps or walk.STEPS, seed=seed, say=click.echo)


def _unused_folder() -> Path:
    """runs/quickstart, or with the first number at which nothing stands yet."""
    first = Path("runs") / "quickstart"
    number = 1
    folder = first
    while folder.exists():
        number += 1
        folder = first.with_name(f"quickstart-{number}")
    return folder
