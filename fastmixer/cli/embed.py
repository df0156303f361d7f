"""`fastmixer embed`: a file of texts in, a file of vectors out. Knows only how to ask and to print."""

import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fastmixer.cli import options

ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
KEPT = 1 << 14  # numbers of lines that were read last: more than texts are read ahead of the encoder
TEXT = re.compile(r"^(\w+: (?:character \d+ of )?)texts\[(\d+)\]")  # as errors and warnings begin


@click.command("embed")
@click.argument("model")
@click.argument("file")
@click.option(
    "-o", "--output", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .npy to write."
)
@click.option("--field", help="FILE has a JSON object a line: take this field (default: text, of a .jsonl file).")
@options.prompts
@options.pooling
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Vectors of length 1.")
@click.option("--dtype", default="float32", show_default=True, help="Of the vectors: float32 or float16.")
@click.option("--batch-tokens", type=int, default=8192, show_default=True, help="Tokens that are worked on at once.")
@click.option(
    "--truncate/--no-truncate",
    default=True,
    show_default=True,
    help="Cut texts longer than the model takes, or refuse.",
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="A bar for what takes over a second.")
@options.weights
@options.threads
@options.offline
def embed(
    model: str, file: str, output: Path, field: str | None, prompt: str | None, prompt_name: str | None,
    pooling: str | None, normalize: bool, dtype: str, batch_tokens: int, truncate: bool, progress: bool, weights: str,
    offline: bool,
) -> None:  # fmt: skip
    """Write the vectors of all texts in FILE, one a line, to a .npy file: row i is line i + 1.

    MODEL is an encoder's folder (BERT, MiniLM, BGE, E5, GTE, MPNet, ModernBERT), a decoder made for vectors
    (Qwen3-Embedding), their names on huggingface.co, or, with --pooling, any language model. FILE is text, or .jsonl with
    an object a line; - reads stdin. Texts are read as they are needed, so both files may be larger than memory. OUTPUT
    appears once all is well. If the model has a prompt called "document", "passage" or "corpus", texts get the first of
    these, as queries get "query" in `fastmixer search`, unless --prompt or --prompt-name says otherwise (--prompt "": none).

    \b
    Examples:
      fastmixer embed all-MiniLM-L6-v2 sentences.txt -o vectors.npy
      fastmixer embed ./e5-small articles.jsonl -o vectors.npy --field body --prompt "passage: "
      sort -u names.txt | fastmixer embed ./bge-small - -o names.npy --dtype float16
    """
    from fastmixer.text.text_file import TextFile

    texts = _Lines(TextFile(file, field))
    opened = options.load_sentence_model(model, weights, pooling, offline)
    if prompt is None and prompt_name is None:
        prompt = opened.prompt_for("document")
    began = time.perf_counter()
    with _terminable(), texts.named():
        vectors = opened.embed_to(
            output, texts, batch_tokens=batch_tokens, normalize=normalize, show_progress=None if progress else False,
            dtype=dtype, prompt=prompt, prompt_name=prompt_name, truncate=truncate,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    count, dim = vectors.shape
    click.echo(
        f"{count:,} texts, {dim} {dtype} numbers each, in {seconds:,.1f} s ({count / seconds:,.0f} texts/s): {output}"
    )


class _Lines:
    """The texts of a TextFile for embed_to, whose errors and warnings then name the line instead of texts[i]."""

    def __init__(self, file: Any):
        self._file = file
        self._numbers: deque[int] = deque(maxlen=KEPT)
        self._count = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file.lines():
            self._numbers.append(line.number)
            self._count += 1
            yield line.text

    def __length_hint__(self) -> int:
        return int(self._file.__length_hint__())

    @contextmanager
    def named(self) -> Iterator[None]:
        with warnings.catch_warnings():
            show = warnings.showwarning
            warnings.showwarning = lambda message, *rest: show(self._told(message), *rest)  # type: ignore[assignment]
            try:
                yield
            except (TypeError, ValueError) as error:
                if (told := self._told(error)) == str(error):
                    raise
                raise (TypeError if isinstance(error, TypeError) else ValueError)(told) from error

    def _told(self, message: Any) -> str:
        def place(found: re.Match[str]) -> str:
            index = int(found[2]) - self._count  # from the end of those that were read
            if not -len(self._numbers) <= index < 0:
                return found[0]
            return f"{found[1]}{self._file.name}, line {self._numbers[index]}"

        return TEXT.sub(place, str(message))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as an error does, so that no half of a file stays behind. What is ignored stays so
    (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
        if signal.getsignal(number) not in (None, signal.SIG_IGN):  # None is a handler that Python could not put back
            before[number] = signal.signal(number, lambda number, frame: sys.exit(options.exit_status(number)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
