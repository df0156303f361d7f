"""`fastmixer train`: text files in, a run folder out. Knows only how to ask, to set up and to print."""

import sys
import warnings
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastmixer.cli import options
from fastmixer.cli.options import exit_status

if TYPE_CHECKING:
    from fastmixer.model import ModelConfig
    from fastmixer.train import Trainer, TrainSettings

TABLE_ROWS = 10  # of the table that tells where a step's time went
# What may differ when a run goes on: how far, in how much memory, and what is shown and kept. All else would make it
# another run.
RESUMABLE = frozenset(
    "steps checkpoint_activations force_precision evaluate_every evaluate_batches sample_every sample_prompt patience "
    "save_every keep_last".split()
)


def _read_clip_norm(context: click.Context, parameter: click.Parameter, value: str) -> float | None:
    """A number; None for 0 and for none."""
    try:
        return None if value.lower() == "none" else float(value) or None
    except ValueError as error:
        raise click.BadParameter(f"must be a number, or 0 or none for no limit; got {value!r}") from error


@click.command("train")
@click.argument("text", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, as if never stopped.")
@click.option("--preset", default="tiny", show_default=True, help="tiny, small, gpt2, gpt2-medium or llama-tiny.")
@click.option("--context", type=int, help="Longest sequence of the model (default: the preset's).")
@click.option(
    "--precision", default="float32", show_default=True, help="Of products: float32 or bfloat16 (weights stay float32)."
)
@click.option(
    "--checkpoint-activations/--keep-activations",
    default=False,
    show_default=True,
    help="Keep layers' inputs only and compute the rest again: less memory, the same bits.",
)
@click.option("--sparse-embedding", is_flag=True, help="Update only the embedding rows that occurred (untied heads).")
@click.option("--force-precision", is_flag=True, help="bfloat16 even without instructions for it (slow).")
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Part of activations dropped in training.")
@click.option(
    "--tokenizer", default="bpe", show_default=True, help="bpe, words, characters, or the path of a tokenizer.json."
)
@click.option("--vocab-size", type=int, default=4096, show_default=True, help="Pieces of a new tokenizer.")
@click.option("--field", default="text", show_default=True, help="The text's field in JSON lines.")
@click.option("--validation", type=float, default=0.1, show_default=True, help="Part of the text kept for validation.")
@click.option("--steps", type=int, default=1000, show_default=True, help="Optimizer steps.")
@click.option("--batch", type=int, default=8, show_default=True, help="Sequences at once.")
@click.option("--time", type=int, help="Tokens a sequence (default: the context).")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Batches a step.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="The peak.")
@click.option("--min-learning-rate", type=float, help="Where the schedule ends (default: a tenth of the peak).")
@click.option("--schedule", default="cosine", show_default=True, help="cosine, linear or constant.")
@click.option("--warmup", type=int, default=50, show_default=True, help="Steps up to the peak.")
@click.option("--weight-decay", type=float, default=0.1, show_default=True, help="Of matrices, decoupled.")
@click.option(
    "--clip-norm",
    callback=_read_clip_norm,
    default="1.0",
    show_default=True,
    metavar="FLOAT",
    help="Limit of the gradients' norm; 0 or none: no limit.",
)
@click.option("--evaluate-every", type=int, default=100, show_default=True, help="Steps (0: at the end only).")
@click.option("--evaluate-batches", type=int, default=20, show_default=True, help="Validation batches a time.")
@click.option("--sample-every", type=int, default=0, show_default=True, help="Steps between samples (0: none).")
@click.option("--sample-prompt", default="\n", show_default="a new line", help="What samples go on from.")
@click.option("--patience", type=int, default=0, show_default=True, help="Stop after so many evaluations without gain.")
@click.option("--save-every", type=int, default=200, show_default=True, help="Steps between checkpoints.")
@click.option("--keep-last", type=int, default=2, show_default=True, help="Checkpoints kept.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, data order and dropout.")
@click.option("--tensorboard", is_flag=True, help='Also log for TensorBoard (needs "fastmixer[tensorboard]").')
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show a progress bar.")
@options.threads
def train(
    text: tuple[Path, ...], out: Path, resume: bool, tensorboard: bool, progress: bool, **choices: object
) -> None:
    """Train a model on TEXT files (.txt, or .jsonl and .ndjson with one text a line). Ctrl-C (SIGTERM, SIGHUP) finishes the
    step and saves.

    \b
    Examples:
      fastmixer train book.txt --out runs/book --steps 500
      fastmixer train a.txt b.txt --out runs/ab --preset small --vocab-size 8000 --dropout 0.1
      fastmixer train --out runs/book --resume
    """
    from fastmixer.train import Trainer

    how: dict[str, Any] = {
        "tensorboard": tensorboard,
        "progress": progress,
        "on_message": None if progress else click.echo,
    }
    with ExitStack() as until_done:
        if resume:
            if text:
                click.echo(f"TEXT is not read again: {out} has its tokens")
            trainer = Trainer.resume(out, **how, **_changes(choices))
        else:
            trainer = _new_trainer(text, out, dict(choices), how, until_done)
        model = trainer.model
        assert model.tokenizer is not None
        click.echo(
            f"{model.config.num_parameters:,} parameters, vocabulary {model.tokenizer.vocab_size:,}, "
            f"{len(trainer.data.train):,} tokens to train on, {len(trainer.data.validation):,} to validate on"
        )
        result = trainer.fit()
    if result.reason == "interrupted":
        with suppress(OSError):  # of SIGHUP: the terminal may be gone
            click.echo(
                f"interrupted: step {result.step} is finished and saved; go on with: fastmixer train --out {out} --resume"
            )
        sys.exit(exit_status(result.signal))
    loss = result.validation_loss
    ending = f"{result.reason} at step {result.step}"
    if loss is not None:
        import math

        ending += f": validation loss {loss:.4f} nats a token, perplexity {math.exp(min(loss, 700)):.1f}"
    click.echo(ending)
    if not result.losses:
        early = "it had stopped early; a larger --patience lets it go on"
        done = f"all its steps were done; --steps N with N over {result.step} trains on"
        click.echo(f"nothing was left to do: {early if result.reason == 'early stop' else done}")
        return
    memory = result.peak_memory / 2**20
    click.echo(f"{result.tokens_per_second:,.0f} tokens/s in the last step, peak memory {memory:,.0f} MB")
    if result.profile.steps:
        click.echo(f"\n{result.profile.table(most=TABLE_ROWS)}\n")
    click.echo(f'saved in {out}; try: fastmixer generate {out} "Once"')


def _changes(choices: dict[str, Any]) -> dict[str, Any]:
    """The settings typed beside --resume; UsageError for one that would make it another run."""
    source = click.get_current_context().get_parameter_source
    typed = [name for name in choices if source(name) is ParameterSource.COMMANDLINE]
    for name in typed:
        if name not in RESUMABLE:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(f"{option} cannot change when a run goes on: leave it out beside --resume")
    return {name: choices[name] for name in typed}


def _new_trainer(
    text: tuple[Path, ...], out: Path, choices: dict[str, Any], how: dict[str, Any], until_done: ExitStack
) -> "Trainer":
    """until_done: what keeps other runs out of the folder is entered there."""
    from fastmixer.data import write_dataset
    from fastmixer.data.shards import read_documents
    from fastmixer.model import ModelConfig, Transformer
    from fastmixer.text import KINDS, Tokenizer, train_tokenizer
    from fastmixer.text.text_file import is_json_lines
    from fastmixer.train import Trainer, TrainSettings
    from fastmixer.train.run_folder import locked
    from fastmixer.train.trainer import DATA
    from fastmixer.weights.folder import CHECKPOINTS

    if not text:
        raise click.UsageError("give one or more TEXT files, or --resume")
    if any((out / CHECKPOINTS).glob("step-*")):
        raise click.UsageError(f"{out} already holds a run: add --resume to go on, or choose another --out")
    take = choices.pop
    preset, context, dropout = take("preset"), take("context"), take("dropout")
    model_options = ("precision", "force_precision", "sparse_embedding", "checkpoint_activations")
    how_to_train = {name: take(name) for name in model_options}
    kind, vocab_size, field = take("tokenizer"), take("vocab_size"), take("field")
    validation = take("validation")
    # Everything that can be wrong is looked at before work begins.
    config = ModelConfig.preset(preset, dropout=dropout, **({} if context is None else {"context": context}))
    settings = TrainSettings(**{**choices, "time": config.context if choices["time"] is None else choices["time"]})
    _judge(config, settings, how_to_train, validation, how["tensorboard"])
    for path in text:
        for _ in read_documents(path, field):
            pass
    until_done.enter_context(locked(out))
    if kind in KINDS:
        texts = [t for path in text for t in (read_documents(path, field) if is_json_lines(path) else [path])]
        tokenizer = train_tokenizer(texts, kind, vocab_size)
    else:
        tokenizer = Tokenizer.load(kind)
    data = write_dataset(
        list(text), tokenizer, out / DATA, validation_fraction=validation, field=field, seed=settings.seed
    )
    config = ModelConfig.from_dict({**config.to_dict(), "vocab": tokenizer.vocab_size})
    model = Transformer(config, seed=settings.seed, tokenizer=tokenizer, **how_to_train)
    return Trainer(model, tokenizer, data, folder=out, **how, **asdict(settings))


def _judge(
    config: "ModelConfig", settings: "TrainSettings", how_to_train: dict[str, Any], validation: float, tensorboard: bool
) -> None:
    """Raise now what would be raised once there is a tokenizer: by options that do not fit, by the environment."""
    from fastmixer.kernels.select import implementation
    from fastmixer.kernels.threads import get_threads
    from fastmixer.model import Transformer
    from fastmixer.ops.checks import check_number
    from fastmixer.train.memory import check_training_memory
    from fastmixer.train.metrics import tensorboard_writer

    get_threads(), implementation("matmul")  # FASTMIXER_THREADS; FASTMIXER_KERNELS and FASTMIXER_ISA
    settings.check_together(config)
    check_number("train", "validation", validation, at_least=0, below=1)
    if settings.patience and not validation:
        raise ValueError(
            f"train: patience {settings.patience} counts validation losses and needs validation > 0; got 0"
        )
    if tensorboard:
        tensorboard_writer()
    # The tokenizer that comes may have any size: here the smallest, and the trainer looks again.
    least = replace(config, vocab=1)
    check_training_memory(
        least, settings.batch, settings.time, precision=how_to_train["precision"],
        checkpoint_activations=how_to_train["checkpoint_activations"],
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # the model itself will say what it lacks here
        Transformer(replace(least, layers=1), seed=None, **how_to_train)
