"""`fastmixer bench`: one table, every op in NumPy, Numba and Cython. Knows only how to ask and to print."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastmixer.cli import options


@click.command("bench")
@click.argument("op", nargs=-1)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved rounds a workload."
)
@click.option("--every-level", is_flag=True, help="Of the table of ops: a column for each native level.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Of the table of ops: its figures, too."
)
@click.option(
    "--against",
    help="Instead: ours beside others, interleaved: a comma list of torch, openblas-avx2, machine, numba, and of "
    "engines that write text: llama.cpp, openvino; of `bench embed`: onnxruntime, openvino, torch; or all (default: none).",
)
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of generate and of engines: a quantized .gguf file (default: SmolLM2-135M-Instruct, downloaded once).",
)
@click.option("--long", is_flag=True, help="Instead, or after --against: time per token at 1024 and 4096 tokens.")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of --against, generate and embed: also write a page of results (default: only the tables).",
)
@click.option("--profile", is_flag=True, help="Instead: where the time of a training step of GPT-2 124M goes.")
@click.option("--precision", default="float32", show_default=True, help="Of --profile: float32 or bfloat16.")
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Of --profile: sequences a step.")
@click.option("--time", type=click.IntRange(1, 1024), default=64, show_default=True, help="Of --profile: their tokens.")
@click.option(
    "--chart",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of --profile: also draw it, as .png or .svg (default: only the table).",
)
@options.threads
@click.pass_context
def bench(context: click.Context, op: tuple[str, ...], **choices: Any) -> None:
    """Time all ops, or each OP, in NumPy, Numba and Cython, interleaved, over the measured peak.

    \b
    Examples:
      fastmixer bench                    the whole table (about three minutes)
      fastmixer bench matmul attention   two ops
      fastmixer bench step               a whole training step of GPT-2 124M
      fastmixer bench step --profile     where that step's time goes, and how near each part is to the machine's limit
      fastmixer bench step --profile --batch 1 --time 1024    the same of one long sequence
      fastmixer bench step --long        a step's time per token at 1024 and 4096 tokens, and attention's part of it
      fastmixer bench --against torch    attention, embedding, head and steps beside PyTorch's (some ten minutes)
      fastmixer bench --against openblas-avx2,machine    matrix products: of OpenBLAS' speed, and of the peak
      fastmixer bench generate           text: sequences together, and long context, beside one short sequence
      fastmixer bench --against llama.cpp,openvino    reading prompts and writing text beside other engines
      fastmixer bench embed              vectors of sentences: in each precision, alone and together, and loading
      fastmixer bench embed --against onnxruntime,openvino,torch    the same beside other engines (some five minutes)
      fastmixer bench --against all --long --markdown benchmarks/RESULTS.md    everything, as a page
    """
    mode = MODES[_mode_of(op, choices["against"], choices["long"], choices["profile"])]
    _check_options(context, mode)
    mode.run(op, **{name: choices[name] for name in mode.options})


def _mode_of(op: tuple[str, ...], against: str | None, long: bool, profile: bool) -> str:
    """What is asked for, as MODES has it. Where several are named the first counts, and does not take the others' flags."""
    if op == ("embed",):
        return "embed"
    if against is not None:
        from fastmixer.bench.peers import PEERS, peer_names

        return "engines" if all(PEERS[name].is_engine for name in peer_names(against)) else "against"
    if op == ("generate",):
        return "generate"
    return "long" if long else "profile" if profile else "table"


def _check_options(context: click.Context, mode: "Mode") -> None:
    """UsageError for an option that was given and that this mode would not look at, or a file that could not be written."""
    for option in context.command.params:
        name, flag = str(option.name), option.opts[0]
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not is_given or name not in ALL_OPTIONS:
            continue
        if name not in (*mode.options, mode.flag):
            others = [other.title for other in MODES.values() if name in other.options]
            others += ["`bench step`" for other in MODES.values() if name == other.flag]
            told = f"; it is of {' and of '.join(others)}" if others else ""
            raise click.UsageError(f"{flag} is not of {mode.title}{told}")
        if name in WRITTEN and not context.params[name].parent.is_dir():
            raise click.UsageError(f"{flag} must be in a folder that exists; got {context.params[name]}")


def _table(op: tuple[str, ...], rounds: int, every_level: bool, json_path: Path | None) -> None:
    from fastmixer.bench import runner, table
    from fastmixer.bench.workloads import workloads
    from fastmixer.config_report import config_report

    selected = [workload for name in op for workload in workloads(name)] if op else workloads()
    names = runner.columns(every_level)
    report = config_report(measure=False)
    click.echo(
        f"{report['processor']}, {report['threads']} threads, {names[-1] if len(names) > 2 else 'no native kernels'}"
    )
    click.echo("medians of interleaved rounds, peak and bandwidth probed among them; ratios: times faster than NumPy\n")
    click.echo(table.header(names))
    timings = []
    for timing in runner.run(selected, names, rounds):
        timings.append(timing)
        click.echo(table.row(timing, names))
    click.echo(table.footer(timings))
    if json_path is not None:
        json_path.write_text(json.dumps({"config": report, "rows": table.rows(timings)}, indent=2) + "\n")
        click.echo(f"figures written to {json_path}")


def _profile(op: tuple[str, ...], precision: str, batch: int, time: int, chart: Path | None) -> None:
    from fastmixer.bench.profile import profile_step
    from fastmixer.bench.workloads import step_workload
    from fastmixer.chart import require_picture, save_profile

    if op not in ((), ("step",)):
        raise click.UsageError(f"--profile is of the step: fastmixer bench step --profile; got {' '.join(op)}")
    if chart is not None:
        require_picture(chart)
    found = profile_step(step_workload(batch, time, precision))
    click.echo(found.table())
    if chart is not None:
        drawn = save_profile(chart, found.rows(), found.seconds, found.steps)
        click.echo(f"chart: {chart}" if drawn else 'a chart needs matplotlib: pip install "fastmixer[plot]"')


def _long(op: tuple[str, ...]) -> None:
    from fastmixer.bench import long

    if op not in ((), ("step",)):
        raise click.UsageError(f"--long is of the step: fastmixer bench step --long; got {' '.join(op)}")
    click.echo(long.table(long.measure()))


def _against(op: tuple[str, ...], against: str, rounds: int, long: bool, markdown: Path | None) -> None:
    from fastmixer.bench import against as comparing
    from fastmixer.bench import long as growing
    from fastmixer.bench.isolated import run_isolated
    from fastmixer.bench.peers import PEERS, find_peer, peer_names
    from fastmixer.config_report import config_report
    from fastmixer.kernels.select import implementation

    names = peer_names(against)
    engines = [name for name in names if PEERS[name].is_engine]
    modules = {name: find_peer(name) for name in names if name not in engines}
    if engines:
        raise click.UsageError(f"{', '.join(engines)}: compare them apart from {', '.join(modules)}")
    found = {name: module.comparisons() for name, module in modules.items()}
    groups = list(dict.fromkeys(one.group for comparisons in found.values() for one in comparisons))
    found = {name: [one for one in comparisons if not op or one.group in op] for name, comparisons in found.items()}
    if not any(found.values()):
        raise click.UsageError(f"nothing to compare in {' '.join(op)}; there are {', '.join(groups)}")
    report = config_report(measure=False)
    about = {"processor": report["processor"], "threads": str(report["threads"]), "kernels": implementation("matmul")}
    about |= {"python": report["python"], "numpy": report["libraries"]["numpy"]}
    click.echo(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    click.echo(comparing.HEADER)
    outcomes = []
    for name, comparisons in found.items():
        if not comparisons:
            continue
        if PEERS[name].environment:
            versions, measured = run_isolated(name, comparisons, rounds, op)
        else:
            versions, measured = modules[name].versions(), comparing.run(comparisons, rounds)
        about |= versions
        for outcome in measured:
            outcomes.append(outcome)
            click.echo(comparing.row(outcome))
    click.echo("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    growth = growing.measure() if long else None
    if growth is not None:
        click.echo("\n" + growing.table(growth))
    if markdown is not None:
        more = "" if growth is None else growing.markdown(growth)
        markdown.write_text(comparing.markdown(outcomes, about, more), encoding="utf-8")
        click.echo(f"\nresults written to {markdown}")


def _engines(op: tuple[str, ...], against: str, rounds: int, markdown: Path | None, model: Path | None) -> None:
    from fastmixer.bench.peers import find_peer, peer_names

    engines = tuple(peer_names(against))
    for name in engines:
        find_peer(name)
    if op not in ((), ("generate",)):
        raise click.UsageError(f"--against {', '.join(engines)} is of generate alone; got {' '.join(op)}")
    _inference(engines, rounds, markdown, model)


def _generate(op: tuple[str, ...], rounds: int, markdown: Path | None, model: Path | None) -> None:
    _inference((), rounds, markdown, model)


def _inference(engines: tuple[str, ...], rounds: int, path: Path | None, model: Path | None) -> None:
    from fastmixer.bench import inference, inference_table
    from fastmixer.bench.model_files import SMOLLM2, cached_model

    run = inference.Bench(model or cached_model(SMOLLM2), engines, min(rounds, inference.ROUNDS))
    _show(run, inference_table, run.path.name, path)


def _embed(op: tuple[str, ...], against: str | None, rounds: int, markdown: Path | None) -> None:
    from fastmixer.bench import embed, embed_table

    run = embed.EmbedBench(embed.peers_of(against), min(rounds, embed.ROUNDS), tell=click.echo)
    _show(run, embed_table, "all-MiniLM-L6-v2", markdown)


def _show(run: Any, table: Any, model: str, path: Path | None) -> None:
    """A run's rows as they come, as the module `table` has them, and as a page."""
    from fastmixer.config_report import config_report

    report = config_report(measure=False)
    about = {"processor": report["processor"], "threads": str(run.threads), "python": report["python"]}
    click.echo(", ".join(f"{name} {value}" for name, value in about.items()) + f", {model}\n")
    rows: list[Any] = []
    for one in run.rows():
        if not rows:  # what a run tells while it prepares stands above the table
            click.echo(table.HEADER)
        rows.append(one)
        click.echo(table.row(one))
    click.echo("\n" + table.footer(run))
    if path is not None:
        path.write_text(table.markdown(rows, run, about), encoding="utf-8")
        click.echo(f"\nresults written to {path}")


@dataclass(frozen=True)
class Mode:
    """One of the things that the command does. title: as errors call it; options: of the command's, those that it takes,
    which run gets by their names; flag: one that only says that this is meant."""

    title: str
    run: Callable[..., None]
    options: tuple[str, ...] = ()
    flag: str = ""


WRITTEN = ("json_path", "chart", "markdown")  # options that name a file to write
MODES = {
    "table": Mode("the table of ops", _table, ("rounds", "every_level", "json_path")),
    "profile": Mode("--profile", _profile, ("precision", "batch", "time", "chart"), "profile"),
    "long": Mode("--long", _long, (), "long"),
    "against": Mode("--against torch, openblas-avx2, machine or numba", _against, ("against", "rounds", "long", "markdown")),
    "engines": Mode("--against llama.cpp or openvino", _engines, ("against", "rounds", "markdown", "model")),
    "generate": Mode("`bench generate`", _generate, ("rounds", "markdown", "model")),
    "embed": Mode("`bench embed`", _embed, ("against", "rounds", "markdown")),
}
ALL_OPTIONS = {name for mode in MODES.values() for name in (*mode.options, mode.flag)}  # of which each mode takes some
