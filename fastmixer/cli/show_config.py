"""`fastmixer show-config`: what was chosen on this machine. Knows nothing that fastmixer.config_report does not."""

import json

import click


@click.command("show-config")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Probe the peak and the bandwidth.")
def show_config(as_json: bool, measure: bool) -> None:
    """Print kernels, instruction-set levels, threads and the measured limits of this machine.

    \b
    Examples:
      fastmixer show-config
      fastmixer show-config --json --no-measure
    """
    from fastmixer import config_report

    if as_json:
        click.echo(json.dumps(config_report.config_report(measure), indent=2))
    else:
        config_report.show_config(measure)
