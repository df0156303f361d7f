"""`fastmixer bench`: one table, every op in NumPy, Numba and Cython. Knows only how to ask and to print."""

import json
from pathlib import Path
from typing import Any

import click

from fastmixer.cli import options

MODEL_OF = "--model is of `bench generate`, and of --against llama.cpp or openvino"


@click.command("bench")
@click.argument("op", nargs=-1)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved rounds a workload."
)
@click.option("--every-level", is_flag=True, help="A column for each native instruction-set level.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write all figures here."
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
    help="Of --against (and --long beside it): also write a page of results (default: only the tables).",
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
def bench(
    op: tuple[str, ...],
    rounds: int,
    every_level: bool,
    json_path: Path | None,
    profile: bool,
    precision: str,
    batch: int,
    time: int,
    chart: Path | None,
    against: str | None,
    long: bool,
    markdown: Path | None,
    model: Path | None,
) -> None:
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
    if op == ("embed",):
        others = {"--every-level": every_level, "--json": json_path, "--model": model, "--long": long, "--profile": profile}
        for name, value in {**others, "--chart": chart}.items():
            if value:
                raise click.UsageError(f"{name} is not of `bench embed`")
        _embed(against, rounds, markdown)
        return
    if against is not None:
        _against(op, against, rounds, long, markdown, model)
        return
    if op == ("generate",):
        _inference((), rounds, markdown, model)
        return
    if model is not None:
        raise click.UsageError(MODEL_OF)
    if markdown is not None:
        raise click.UsageError("--markdown writes what --against measures: give both")
    if long:
        _long(op)
        return
    if profile:
        _profile(op, precision, batch, time, chart)
        return
    if chart is not None:
        raise click.UsageError("--chart draws what --profile measures: give both")
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
    from fastmixer.chart import save_profile

    if op not in ((), ("step",)):
        raise click.UsageError(f"--profile is of the step: fastmixer bench step --profile; got {' '.join(op)}")
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


def _against(
    op: tuple[str, ...], peers: str, rounds: int, with_long: bool, path: Path | None, model: Path | None
) -> None:
    from fastmixer.bench import against, long
    from fastmixer.bench.isolated import run_isolated
    from fastmixer.bench.peers import PEERS, find_peer, peer_names
    from fastmixer.config_report import config_report
    from fastmixer.kernels.select import implementation

    names = peer_names(peers)
    modules = {name: find_peer(name) for name in names if not PEERS[name].is_engine}
    engines = tuple(name for name in names if PEERS[name].is_engine)
    for name in engines:
        find_peer(name)
    if not modules:
        if with_long or op not in ((), ("generate",)):
            raise click.UsageError("--against llama.cpp or openvino is of generate alone")
        _inference(engines, rounds, path, model)
        return
    if model is not None:
        raise click.UsageError(MODEL_OF)
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
    click.echo(against.HEADER)
    outcomes = []
    for name, comparisons in found.items():
        if not comparisons:
            continue
        if PEERS[name].environment:
            versions, measured = run_isolated(name, comparisons, rounds, op)
        else:
            versions, measured = modules[name].versions(), against.run(comparisons, rounds)
        about |= versions
        for outcome in measured:
            outcomes.append(outcome)
            click.echo(against.row(outcome))
    click.echo("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    growth = long.measure() if with_long else None
    if growth is not None:
        click.echo("\n" + long.table(growth))
    if path is not None:
        more = "" if growth is None else long.markdown(growth)
        path.write_text(against.markdown(outcomes, about, more), encoding="utf-8")
        click.echo(f"\nresults written to {path}")


def _inference(engines: tuple[str, ...], rounds: int, path: Path | None, model: Path | None) -> None:
    from fastmixer.bench import inference, inference_table
    from fastmixer.bench.model_files import SMOLLM2, cached_model

    run = inference.Bench(model or cached_model(SMOLLM2), engines, min(rounds, inference.ROUNDS))
    _show(run, inference_table, run.path.name, path)


def _embed(peers: str | None, rounds: int, path: Path | None) -> None:
    from fastmixer.bench import embed, embed_table

    run = embed.EmbedBench(embed.peers_of(peers), min(rounds, embed.ROUNDS), tell=click.echo)
    _show(run, embed_table, "all-MiniLM-L6-v2", path)


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
