"""Options that several commands share. Knows nothing of the commands."""

import signal
import sys
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


def _several(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Options in the order in which they are given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


context = click.option("--context", type=int, help="The longest sequence, in tokens (default: the model's own).")
offline = click.option("--offline", is_flag=True, help="Names on huggingface.co: from the cache alone.")
weights = click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="How matrices are kept: auto (blocks of 4 and 8 bits as the file has them, F32 and F16 as bfloat16 where the "
    "processor multiplies it, else as float32; encoders' in what keeps their vectors), float32, bfloat16, int8 or int4.",
)
cache = click.option(
    "--cache",
    default="bfloat16",
    show_default=True,
    help="What keys and values are kept in: float32, bfloat16 or int8.",
)
packed_cache = click.option(
    "--packed-cache",
    is_flag=True,
    default=None,
    help="Keep packed weights on the disk: the next start maps them (default: as FASTMIXER_PACKED_CACHE says).",
)
loading = _several(weights, cache, context, packed_cache, threads, offline)  # what a command that loads a model asks


def read_bias(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[int | str, float] | None:
    """TOKEN=NUMBER, several times, as Options.logit_bias."""
    found: dict[int | str, float] = {}
    for value in values:
        token, sign, number = value.rpartition("=")
        try:
            bias = float(number)
        except ValueError:
            sign = ""
        if not sign or not token:
            raise click.BadParameter(f"must be TOKEN=NUMBER, TOKEN an id or a piece of text; got {value!r}")
        found[int(token) if token.isdecimal() else token] = bias
    return found or None


# What is not given is left to the model's makers, and then to fastmixer.generate.Options.
sampling = _several(
    click.option(
        "--temperature", type=float, help="0 takes the likeliest every time (default: the model's, else 0.8)."
    ),
    click.option("--top-k", type=int, help="Only the k likeliest (default: the model's, else 0: all)."),
    click.option(
        "--top-p", type=float, help="Only the likeliest that make up this part (default: the model's, else 1)."
    ),
    click.option(
        "--min-p", type=float, help="Only those this likely beside the likeliest (default: the model's, else 0)."
    ),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less (default: the model's, else 1)."),
    click.option("--presence-penalty", type=float, help="Taken once from what was written already (default: 0)."),
    click.option("--frequency-penalty", type=float, help="Taken for each time that it was written (default: 0)."),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="TOKEN=NUMBER",
        callback=read_bias,
        help="Add to the logit of an id or a piece of text; -inf rules it out (default: none; several times).",
    ),
    click.option("--seed", type=int, help="The same seed writes the same text (default: a new one)."),
    click.option(
        "--stop",
        multiple=True,
        help="End before this text, or at this special token (default: none; several times). It is taken as it stands: "
        "$'\\n' is a line's end in bash.",
    ),
    click.option("--stop-token", type=int, multiple=True, help="End at this id (default: none; several times)."),
    click.option("--ignore-eos", is_flag=True, default=None, help="Write on after the model has ended its text."),
    click.option(
        "--speculative", type=int, help="Guess so many tokens, at most 15, from the text so far (default: 0; the same text)."
    ),
    click.option("--deterministic", is_flag=True, default=None, help="Bits that do not depend on other requests."),
)


def given(choices: dict[str, Any]) -> dict[str, Any]:
    """Those sampling options that were given, as Options names them, and judged."""
    from fastmixer.generate.options import make_options

    choices = dict(choices)
    stops = (*choices.pop("stop"), *choices.pop("stop_token"))
    found = {name: value for name, value in choices.items() if value is not None}
    if stops:
        found["stop"] = stops
    make_options({}, found)
    return found


def load_language_model(
    model: str, weights: str, cache: str, context: int | None, packed_cache: bool | None, offline: bool
) -> Any:
    """The model that `loading` asked for, which must be one that writes."""
    from fastmixer.generate.language_model import LanguageModel
    from fastmixer.opening import load

    opened = load(
        model, weights=weights, cache=cache, context=context, packed_cache=packed_cache, offline=offline or None,
        progress=at_terminal(),
    )  # fmt: skip
    if not isinstance(opened, LanguageModel):
        raise ValueError(f"{model} makes vectors, and writes no text; `fastmixer embed` takes texts")
    return opened


pooling = click.option(
    "--pooling",
    help="How a language model's tokens become one vector: mean, cls, max, last, weightedmean or mean_sqrt_len (default: as "
    "the model's folder says).",
)
prompts = _several(
    click.option("--prompt", help="What is put before each text (default: the model's prompt for it, see above)."),
    click.option("--prompt-name", help="One of the model's own prompts (default: see --prompt)."),
)


def load_sentence_model(model: str, weights: str, pooling: str | None, offline: bool) -> Any:
    """The model, which must be one that makes vectors, or be told how."""
    from fastmixer.embed import SentenceModel
    from fastmixer.opening import load

    opened = load(model, weights=weights, offline=offline or None, progress=at_terminal())
    if isinstance(opened, SentenceModel):
        if pooling is not None:
            raise ValueError(f"{model} says itself how it makes vectors ({opened.recipe.pooling}); leave --pooling out")
        return opened
    if pooling is None:
        raise ValueError(
            f"{model} is a language model without pooling files (modules.json, 1_Pooling); give --pooling last or mean, or "
            "a model that is made for vectors"
        )
    return opened.embedder(pooling)


def at_terminal() -> bool:
    """Whether stderr is a terminal: in a file, a bar would be one long line."""
    return sys.stderr.isatty()


def visible(text: str) -> str:
    """Text from a stranger's file, without anything that a terminal would act on."""
    from fastmixer.text.pieces import printable

    return printable(text)


def quoted(piece: str) -> str:
    """A token's text, as Tokenizer.id_to_token gives it, in quotes."""
    return f"'{visible(piece)}'"


def text_from_stdin(data: bytes) -> str:
    """What stdin gave, as text; ValueError for what is no UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def figures(details: Any) -> str:
    """One line on a finished text: what was read and written, and how fast."""
    read, wrote = details.prefill_tokens_per_second, details.decode_tokens_per_second
    return (
        f"{len(details.tokens)} tokens, end: {details.finish_reason or 'interrupted'}; "
        f"read {read:,.0f}, wrote {wrote:,.0f} tokens/s"
    )


def exit_status(number: int = 0) -> int:
    """What a shell expects of a program that a signal ended; 0: Ctrl-C, where nobody asked."""
    return 128 + (number or signal.SIGINT)
