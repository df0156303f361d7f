"""`fastmixer train-embedder`: pairs of texts and an encoder in, a better encoder out. Knows only how to ask and to print."""

import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmixer.cli import options
from fastmixer.cli.options import exit_status

if TYPE_CHECKING:
    from fastmixer.train.embedder import EmbedderResult


@click.command("train-embedder")
@click.argument("pairs", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", required=True, help="An encoder's folder, or its name on huggingface.co.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new folder, written at the end.")
@click.option("--epochs", type=int, default=1, show_default=True, help="Times over the pairs.")
@click.option("--steps", type=int, help="Optimizer steps (default: what the epochs take).")
@click.option("--batch", type=int, default=32, show_default=True, help="Pairs a step: more make it harder, and better.")
@click.option("--learning-rate", type=float, default=2e-5, show_default=True, help="The peak.")
@click.option("--schedule", default="linear", show_default=True, help="Down to 0: linear or cosine; or constant.")
@click.option("--warmup", type=int, help="Steps up to the peak (default: a tenth of all).")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, help="Of matrices, decoupled.")
@click.option("--clip-norm", type=float, default=1.0, show_default=True, help="Limit of the gradients' norm.")
@click.option("--dropout", type=float, default=0.1, show_default=True, help="Part of activations dropped in training.")
@click.option("--scale", type=float, default=20.0, show_default=True, help="Of cosines before the softmax.")
@click.option("--symmetric", is_flag=True, help="Also look for the anchor of each positive.")
@click.option("--max-length", type=int, help="Tokens of a text (default: the model's limit).")
@click.option("--anchor-prompt", help="What stands before anchors (default: the model's for queries, or its default).")
@click.option("--text-prompt", help="What stands before positives and negatives (default: as above, for documents).")
@click.option("--fields", help="Names of the lines' fields, two or three (default: anchor,positive,negative).")
@click.option("--freeze-embeddings", is_flag=True, help="Leave embeddings of tokens and positions as they are.")
@click.option("--precision", default="float32", show_default=True, help="Of products: float32 or bfloat16.")
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pairs to evaluate on (default: a part held out).",
)
@click.option(
    "--holdout", type=float, default=0.1, show_default=True, help="Part of PAIRS to evaluate on without --eval."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the pairs' order, of dropout and --holdout.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show a progress bar.")
@options.offline
@options.threads
def train_embedder(
    pairs: Path, model: str, out: Path, evaluation: Path | None, fields: str | None, progress: bool, offline: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Fine-tune an encoder on PAIRS of texts that belong together, so that each finds the other by similarity.

    PAIRS is a .jsonl file, one pair a line: {"anchor": "...", "positive": "..."}, or "query" and "text"; "negative" may
    add a text (or a list) that looks alike and does not belong. Every other text of a batch counts as a negative too.
    Models of the BERT family (MiniLM, BGE, E5, GTE-small), DistilBERT, RoBERTa, XLM-R, MPNet and ModernBERT. --out is a
    folder for sentence-transformers and for `fastmixer embed`, which finds the two prompts there. Ctrl-C (SIGTERM,
    SIGHUP) finishes the step and saves; a second Ctrl-C ends at once, with nothing written.

    \b
    Examples:
      fastmixer train-embedder pairs.jsonl --model all-MiniLM-L6-v2 --out tuned
      fastmixer train-embedder faq.jsonl --fields question,answer --model ./bge-small --out tuned --epochs 3
      fastmixer train-embedder train.jsonl --eval test.jsonl --model ./e5-small --out tuned \\
          --anchor-prompt "query: " --text-prompt "passage: "
    """
    from fastmixer.train import EmbedderTrainer

    names = None if fields is None else [name.strip() for name in fields.split(",")]
    trainer = EmbedderTrainer(
        model, pairs, out=out, evaluation=evaluation, fields=names, progress=progress, offline=offline or None,
        on_message=None if progress else click.echo, **settings,
    )  # fmt: skip
    held_out = "none held out" if trainer.held_out is None else f"{len(trainer.held_out):,} to evaluate on"
    parameters = trainer.encoder.parameters
    count = sum(parameters[name].size for name in parameters)
    click.echo(
        f"{count:,} parameters, {len(trainer.pairs):,} pairs to train on, {held_out}; "
        f"{trainer.steps:,} steps of {trainer.batch} pairs"
    )
    result = trainer.fit()
    is_interrupted = result.reason == "interrupted"
    with suppress(OSError) if is_interrupted else nullcontext():  # of SIGHUP: the terminal may be gone
        _tell(result, out)
    if is_interrupted:
        sys.exit(exit_status(result.signal))


def _tell(result: "EmbedderResult", out: Path) -> None:
    if not result.saved:
        click.echo("interrupted before the first step was done: nothing was written")
        return
    click.echo(
        f"{result.reason} at step {result.steps}: loss {result.losses[-1]:.3f}, {result.pairs_per_second:,.0f} pairs/s"
    )
    if result.before is not None and result.after is not None:
        click.echo(f"top-1 accuracy {result.before.accuracy:.1%} -> {result.after.accuracy:.1%}")
    click.echo(f"saved in {out}")
