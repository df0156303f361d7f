"""Options that several commands share. Knows nothing of the commands."""

from collections.abc import Callable
from typing import Any

import click


def threads(command: Callable[..., Any]) -> Callable[..., Any]:
    """--threads N, applied before the command runs."""

    def apply(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
        if value is not None:
            from fastmixer.kernels.threads import set_threads

            try:
                set_threads(value)
            except ValueError as error:
                reason = str(error).removeprefix("set_threads: threads ").replace("an integer ", "")
                raise click.BadParameter(reason) from error

    return click.option(
        "--threads", type=int, callback=apply, expose_value=False, help="Threads to use (default: see show-config)."
    )(command)
