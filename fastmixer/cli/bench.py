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
@options.threads
def bench(op: tuple[str, ...], rounds: int, every_level: bool, json_path: Path | None) -> None:
    """Time all ops, or each OP, in NumPy, Numba and Cython, interleaved, over the measured peak.

    \b
    Examples:
      fastmixer bench                    the whole table (about three minutes)
      fastmixer bench matmul attention   two ops
      fastmixer bench step               a whole training step of GPT-2 124M
    """
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
