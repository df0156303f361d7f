"""The group of all commands, each loaded only when called, and errors as one clear line.

Knows nothing of what the commands do.
"""

import warnings
from importlib import import_module
from typing import TextIO

import click

from fastmixer import __version__
from fastmixer.cli import options

COMMANDS = (
    "quickstart", "train", "train-embedder", "generate", "chat", "info", "convert", "perplexity", "embed", "search",
    "tokenize", "bench", "show-config",
)  # fmt: skip

# What a command may raise because of what it was given: shown as one line. Anything else is a defect, with its traceback.
EXPECTED = (ValueError, TypeError, IndexError, OSError, ImportError, FloatingPointError, MemoryError)


class LazyGroup(click.Group):
    """Finds commands by module name: `show-config` is fastmixer.cli.show_config.show_config."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = name.replace("-", "_")
        return getattr(import_module(f"fastmixer.cli.{module}"), module)

    def invoke(self, context: click.Context) -> object:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(context)
            except BrokenPipeError:  # `fastmixer ... | head` has read enough: click ends quietly
                raise
            except EXPECTED as error:
                if context.params.get("traceback"):
                    raise
                raise click.ClickException(_visible(error) or type(error).__name__) from error


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line on stderr, without the place in the source that Python adds."""
    click.echo(f"Warning: {_visible(message)}", err=True)


def _visible(message: object) -> str:
    """What was said, maybe with a stranger's words in it: nothing that a terminal would act on but a line's end."""
    return "\n".join(options.visible(line) for line in str(message).split("\n"))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastmixer")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def main(traceback: bool) -> None:
    """Train and run transformers on a CPU.

    \b
    Begin with:
      fastmixer quickstart
    """
