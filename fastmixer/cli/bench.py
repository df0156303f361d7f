"""`fastmixer bench`: one table, every op in NumPy, Numba and Cython. Knows only how to ask and to print."""

import json
from pathlib import Path

import click

from fastmixer.cli import options


@click.command("bench")
@click.argument("op", nargs=-1)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved rounds a workload."
)
@click.option("--every-level", is_flag=True, help="A column for each native instruction-set level.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write all figures here."
)
@click.option("--against", help="Instead: ours beside a peer's, interleaved: torch (default: no peer).")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of --against: also write a page of results (default: only the table).",
)
@click.option("--profile", is_flag=True, help="Instead: where the time of a training step of GPT-2 124M goes.")
@click.option("--precision", default="float32", show_default=True, help="Of --profile: float32 or bfloat16.")
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
    chart: Path | None,
    against: str | None,
    markdown: Path | None,
) -> None:
    """Time all ops, or each OP, in NumPy, Numba and Cython, interleaved, over the measured peak.

    \b
    Examples:
      fastmixer bench                    the whole table (about three minutes)
      fastmixer bench matmul attention   two ops
      fastmixer bench step               a whole training step of GPT-2 124M
      fastmixer bench step --profile     where that step's time goes, and how near each part is to the machine's limit
      fastmixer bench --against torch    attention, embedding, head and steps beside PyTorch's (some ten minutes)
    """
    if against is not None:
        _against(op, against, rounds, markdown)
        return
    if markdown is not None:
        raise click.UsageError("--markdown writes what --against measures: give both")
    if profile:
        _profile(op, precision, chart)
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


def _profile(op: tuple[str, ...], precision: str, chart: Path | None) -> None:
    from fastmixer.bench.profile import profile_step
    from fastmixer.chart import save_profile

    if op not in ((), ("step",)):
        raise click.UsageError(f"--profile is of the step: fastmixer bench step --profile; got {' '.join(op)}")
    found = profile_step(precision)
    click.echo(found.table())
    if chart is not None:
        drawn = save_profile(chart, found.rows(), found.seconds, found.steps)
        click.echo(f"chart: {chart}" if drawn else 'a chart needs matplotlib: pip install "fastmixer[plot]"')


def _against(op: tuple[str, ...], peers: str, rounds: int, path: Path | None) -> None:
    from fastmixer.bench import against
    from fastmixer.bench.peers import find_peer
    from fastmixer.config_report import config_report
    from fastmixer.kernels.select import implementation

    modules = [find_peer(name.strip()) for name in peers.split(",")]
    comparisons = [one for module in modules for one in module.comparisons() if not op or one.group in op]
    if not comparisons:
        raise click.UsageError(f"nothing to compare in {' '.join(op)}; there are attention, embedding, head, step, memory")
    report = config_report(measure=False)
    about = {"processor": report["processor"], "threads": str(report["threads"]), "kernels": implementation("matmul")}
    about |= {"python": report["python"], "numpy": report["libraries"]["numpy"]}
    for module in modules:
        about |= module.versions()
    click.echo(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    click.echo(against.HEADER)
    outcomes = []
    for outcome in against.run(comparisons, min(rounds, against.ROUNDS)):
        outcomes.append(outcome)
        click.echo(against.row(outcome))
    if path is not None:
        path.write_text(against.markdown(outcomes, about), encoding="utf-8")
        click.echo(f"\nresults written to {path}")
