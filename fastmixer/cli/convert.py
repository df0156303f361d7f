"""`fastmixer convert`: a model in another format. Knows only how to ask and to print."""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastmixer.cli import options

if TYPE_CHECKING:
    from fastmixer.weights.source import ModelSource


@click.command("convert")
@click.argument("model")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--type", "type_name", help="Of matrices: F32, F16, BF16, Q8_0 or Q4_0 (default: as they are stored).")
@options.context
@click.option("--force", is_flag=True, help="Write over a model that stands at TARGET.")
@options.offline
def convert(model: str, target: Path, type_name: str | None, context: int | None, force: bool, offline: bool) -> None:
    """Write MODEL (a .gguf file, a folder, a training run, or org/name) to TARGET: a name that ends in .gguf, or a folder
    that transformers opens. Folders hold F32, F16 or BF16. In files of Q8_0 or Q4_0, matrices whose rows are no
    multiple of 32 are F16; a warning tells which.

    \b
    Examples:
      fastmixer convert runs/book book.gguf
      fastmixer convert model.gguf smaller.gguf --type Q4_0
      fastmixer convert model.gguf folder --type BF16
    """
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; add --force to write over it")

    from fastmixer.opening import place_of
    from fastmixer.progress import LateBar
    from fastmixer.weights.convert import convert as write
    from fastmixer.weights.source import open_source

    source = open_source(place_of("convert", "MODEL", model), context=context, offline=offline or None)
    with LateBar(_bytes(source, type_name), shown=options.at_terminal(), desc="writing", unit="B", unit_scale=True) as bar:
        path = write(source, target, type_name, bar.update)
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    written = open_source(path)
    counts: dict[str, int] = {}
    for tensor in written.tensors.values():
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    types = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    total = options.size(sum(one.stat().st_size for one in files))
    tokenizer = "with its tokenizer" if written.tokenizer is not None else "without a tokenizer"
    click.echo(f"wrote {path}: {total}, tensors: {types}, {tokenizer}")


def _bytes(source: "ModelSource", type_name: str | None) -> int:
    """About as many as will be written."""
    from fastmixer.weights.quantized import BY_NAME

    chosen = BY_NAME.get((type_name or "").upper())
    if chosen is None:
        return sum(tensor.nbytes for tensor in source.tensors.values())
    return sum(prod(tensor.shape) * chosen.bytes // chosen.block for tensor in source.tensors.values())
